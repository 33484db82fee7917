"""`kvtrie serve`: a model behind OpenAI's HTTP API.

app.py          routes: parse, call, reply
requests.py     bodies that are sent        replies.py   bodies that are answered
prompts.py      messages and text to tokens, outside the event loop
generation.py   requests to the engine, and their tokens as they come
choice.py       tokens of one choice to text
"""

"""Choosing the next token of every sequence of a step.

parameters           what a request asks for: `Sampling`
processors           logit bias, penalties, grammar and minimum length: they change logits
sorted_filters       temperature, top-k, top-p, min-p by one sort, as Hugging Face does it: the reference; GPUs
nucleus              the same distribution without the sort: CPUs
uniforms             a request's random numbers, from its seed alone
logprobs             the model's own log probabilities
choose               all rows of a step: who needs which of these
grammar, constraint  JSON schemas and regular expressions
stop_strings         the end of a completion by its text
fan_out              several completions of one prompt
"""

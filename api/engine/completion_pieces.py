"""A completion in pieces, as it is computed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kvtrie.api.engine.engine import Engine
from kvtrie.api.engine.request import Completion
from kvtrie.api.engine.text_stream import TextStream


def completion_pieces(engine: Engine, completion: Completion, tokenizer: Any) -> Iterator[str | int]:
    """Steps `engine` and yields what it computes of a completion: an empty piece at once, then pieces of text.

    Pieces of text, joined, are what the completion adds to the text of its prompt, without special tokens and the
    token that ended it. Closing the iterator, once it has begun, cancels the request.

    Args:
        completion: a request that was submitted to `engine`.
        tokenizer: anything with `decode`; None for token ids instead of text.

    Raises:
        KvtrieError: what ended the request.
    """
    request, seen = completion.request, 0
    try:
        text = None if tokenizer is None else TextStream(tokenizer, request.tokens.tolist())
        # 1. An empty piece, so that the `finally` below is reached however early the iterator is closed.
        yield ""
        # 2. Step until there are new tokens, and yield them.
        while True:
            while not completion.done and len(completion.tokens) == seen:
                engine.step()
            fresh = completion.tokens[seen:]
            seen += len(fresh)
            if text is None:
                yield from fresh
            elif piece := "".join(text.add(token) for token in fresh if token not in request.eos):
                yield piece
            if completion.done and seen == len(completion.tokens):
                break
        # 3. The request's error, or the end of the text: bytes of a character that was not completed.
        if completion.error is not None:
            raise completion.error
        if text is not None and (rest := text.finish()):
            yield rest
    finally:
        engine.discard([completion])

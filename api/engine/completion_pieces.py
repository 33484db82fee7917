"""A completion in pieces, as it is computed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kvtrie.api.engine.engine import Engine
from kvtrie.api.engine.request import Completion
from kvtrie.api.engine.text_stream import TextStream


def completion_pieces(engine: Engine, completion: Completion, tokenizer: Any) -> Iterator[str | int]:
    """Yields what `engine` computes of a completion: an empty piece at once, then pieces of text.

    This thread steps, unless the engine has a loop.

    Pieces of text, joined, are what the completion adds to the text of its prompt, without special tokens and the
    token that ended it. Closing the iterator, once it has begun, cancels the request.

    Args:
        completion: a request that was submitted to `engine`.
        tokenizer: anything with `decode`; None for token ids instead of text.

    Raises:
        KvtrieError: what ended the request.
    """
    request = completion.request
    # Where stop strings may end it, the text is the completion's own: only that is decided.
    is_decided = tokenizer is not None and request.tokenizer is not None
    seen = said = 0
    try:
        text = None if tokenizer is None or is_decided else TextStream(tokenizer, request.tokens.tolist())
        # 1. An empty piece, so that the `finally` below is reached however early the iterator is closed.
        yield ""
        # 2. Step until there are new tokens, and yield them.
        while True:
            engine.wait_for_token(completion, seen)
            is_done = completion.done
            fresh = completion.tokens[seen:]
            seen += len(fresh)
            if is_decided:
                pieces = completion.texts[said:]
                said += len(pieces)
                if piece := "".join(pieces):
                    yield piece
            elif text is None:
                yield from fresh
            elif piece := "".join(text.add(token) for token in fresh if token not in request.ends):
                yield piece
            if is_done:
                break
        # 3. The request's error, or the end of the text: bytes of a character that was not completed.
        if completion.error is not None:
            raise completion.error
        if text is not None and (rest := text.finish()):
            yield rest
    finally:
        engine.discard([completion])

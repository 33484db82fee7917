"""The model's own greedy `generate`, without kvtrie: what answers are compared with."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class PlainAnswer:
    """What `model.generate` made of a prompt."""

    tokens: list[int]
    """New tokens, with the one that ended the answer."""
    ttft_seconds: float
    """From the call to the first new token."""


@torch.no_grad()
def plain_answer(model: Any, prompt: Sequence[int], new_tokens: int) -> PlainAnswer:
    """Computes the whole prompt and at most `new_tokens` tokens, the likeliest each time, with the model's own eos.

    Penalties of the model's generation config are left out: the engine's greedy choice has none.
    """
    streamer = _FirstToken()
    ids = torch.tensor([list(prompt)], device=model.device)
    start = time.perf_counter()
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new_tokens,
        do_sample=False,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        streamer=streamer,
    )
    assert streamer.at is not None
    return PlainAnswer(output[0, len(prompt) :].tolist(), streamer.at - start)


class _FirstToken:
    """A streamer that notes when the first new token came."""

    def __init__(self) -> None:
        self.at: float | None = None
        self._prompt_seen = False

    def put(self, value: object) -> None:
        if self._prompt_seen and self.at is None:
            self.at = time.perf_counter()
        self._prompt_seen = True

    def end(self) -> None:
        """Nothing to flush."""

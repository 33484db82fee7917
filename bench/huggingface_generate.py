"""`GenerationMixin.generate` while a test of Hugging Face's runs: counted, or through kvtrie and compared."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from kvtrie.api import PrefixCachedModel
from kvtrie.prefix_tree.errors import InputError

MEMORY, CHUNK_TOKENS = "16MiB", 2
"""Prompts of these tests have about seven tokens."""

TOLERANCE = 1e-4
"""Largest difference of scores, relative to the largest."""

NOT_SERVED = ("output_attentions", "output_hidden_states", "token_type_ids")
"""Arguments that many tests pass beside what they test."""


@dataclass(slots=True)
class Run:
    """One test, once."""

    passed: bool = False
    skipped: bool = False
    error: str = ""
    calls: int = 0
    """Of `generate`, by the test itself."""
    cached_tokens: int = 0
    refused: str = ""


@contextmanager
def counted(run: Run) -> Iterator[None]:
    """Counts the calls of the test itself, and leaves them as they are."""
    plain = transformers.GenerationMixin.generate
    depth = 0

    def generate(model: Any, *args: Any, **keywords: Any) -> Any:
        nonlocal depth
        run.calls += depth == 0
        depth += 1
        try:
            return plain(model, *args, **keywords)
        finally:
            depth -= 1

    generate.__signature__ = inspect.signature(plain)  # type: ignore[attr-defined]
    transformers.GenerationMixin.generate = generate
    try:
        yield
    finally:
        transformers.GenerationMixin.generate = plain


class Through:
    """`GenerationMixin.generate` while it goes through kvtrie."""

    def __init__(self, run: Run, is_warm: bool, asks_less: bool) -> None:
        self._run = run
        self._is_warm = is_warm
        self._asks_less = asks_less
        self._plain = transformers.GenerationMixin.generate
        self._is_inside = False
        self._wrappers: list[PrefixCachedModel] = []

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Until the end of one test."""

        def generate(model: Any, *args: Any, **keywords: Any) -> Any:
            return self._generate(model, args, keywords)

        # Tests ask for its signature.
        generate.__signature__ = inspect.signature(self._plain)  # type: ignore[attr-defined]
        transformers.GenerationMixin.generate = generate
        try:
            yield
        finally:
            transformers.GenerationMixin.generate = self._plain
            for wrapper in self._wrappers:
                wrapper.check()
                wrapper.close()

    def _generate(self, model: Any, args: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        if self._is_inside:
            return self._plain(model, *args, **keywords)
        if self._asks_less:
            keywords = {name: value for name, value in keywords.items() if name not in NOT_SERVED}
        self._is_inside = True
        try:
            return self._compared(model, args, keywords)
        except InputError as refused:
            self._run.refused = str(refused)
            raise
        finally:
            self._is_inside = False

    def _compared(self, model: Any, args: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        self._run.calls += 1
        before = torch.get_rng_state()
        is_continuation = any(keywords.get(name) is not None for name in ("cache", "past_key_values"))
        expected = None
        if not is_continuation:
            try:
                expected = self._plain(model, *_fresh(args), **_fresh(keywords))
            except Exception:
                # A test of errors: kvtrie's own comes from the same call, below.
                expected = None
            torch.set_rng_state(before)
        if not (is_continuation and self._wrappers):
            self._wrappers.append(PrefixCachedModel(model, memory=MEMORY, chunk_tokens=CHUNK_TOKENS))
        wrapper = self._wrappers[-1]
        if self._is_warm and not is_continuation:
            wrapper.generate(*_fresh(args), **_fresh(keywords))
            torch.set_rng_state(before)
        held = wrapper.stats().get("cached_tokens", 0)
        output = wrapper.generate(*args, **keywords)
        self._run.cached_tokens += wrapper.stats().get("cached_tokens", 0) - held
        if expected is not None:
            _assert_same(expected, output)
        return output


def _fresh(value: Any) -> Any:
    """A copy of arguments that a call may change; models stay themselves."""
    if isinstance(value, nn.Module):
        return value
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, tuple | list) and type(value) in (tuple, list):
        return type(value)(map(_fresh, value))
    if type(value) is dict:
        return {name: _fresh(part) for name, part in value.items()}
    return copy.deepcopy(value)


def _assert_same(expected: Any, found: Any) -> None:
    """Tokens exactly, scores and logits within rounding."""
    assert type(found) is type(expected), f"{type(found).__name__} for {type(expected).__name__}"
    if isinstance(expected, Tensor):
        assert torch.equal(expected, found), f"tokens {found.tolist()} for {expected.tolist()}"
        return
    assert torch.equal(expected.sequences, found.sequences), "other tokens"
    for name in ("scores", "logits"):
        steps, ours = getattr(expected, name, None), getattr(found, name, None)
        assert (steps is None) == (ours is None), f"{name}: {ours} for {steps}"
        for step, (theirs, our) in enumerate(zip(steps or (), ours or (), strict=True)):
            finite = torch.isfinite(theirs)
            assert torch.equal(finite, torch.isfinite(our)), f"{name} of step {step}: other infinities"
            if finite.any():
                scale = max(1.0, float(theirs[finite].abs().max()))
                off = float((theirs[finite] - our[finite]).abs().max()) / scale
                assert off <= TOLERANCE, f"{name} of step {step}: off by {off:.2g}"

"""What one client does, over and over: requests of every kind, most of them disturbed in some way."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from transformers.generation.streamers import BaseStreamer

from bench.chaos.faults import ChaosError, ChaosExit
from bench.chaos.plain import BEAM_NEW, BEAMS, MOST_NEW, Plain
from kvtrie.api import Completion, PrefixCachedModel
from kvtrie.prefix_tree import InputError
from kvtrie.prefix_tree.errors import PinBudgetExceeded, PoolExhausted

TENANTS = ("acme", "globex", "initech")

PIN_SECONDS = 0.05

RAISED = (ChaosError, ChaosExit, MemoryError)
"""Raised on purpose, in a pass or by what a caller hands to `generate`."""


class WrongTokens(Exception):
    """A result that is not the plain model's."""


class Raising(BaseStreamer):  # type: ignore[misc]
    """A streamer and a logits processor that raise at their n-th call; 0 for never."""

    def __init__(self, at: int, error: type[BaseException]) -> None:
        self._left = at
        self._error = error

    def put(self, value: Any) -> None:
        """As a streamer."""
        self._left -= 1
        if self._left == 0:
            raise self._error("at a token")

    def end(self) -> None:
        """As a streamer."""

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """As a logits processor."""
        self.put(ids)
        return scores


class Client:
    """One thread's requests."""

    def __init__(self, cached: PrefixCachedModel, plain: Plain, seed: int) -> None:
        self._cached = cached
        self._plain = plain
        self._chance = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.doing = ""
        """For the watchdog's report."""
        self._actions: list[tuple[int, Callable[[], int]]] = [
            (20, self._submit),
            (8, self._submit_many),
            (8, self._cancel),
            (8, self._stream),
            (8, self._abandon_stream),
            (5, self._sample),
            (9, self._generate),
            (4, self._generate_batch),
            (5, self._beams),
            (5, self._raise_in_generate),
            (3, self._warm),
            (2, self._bad_input),
            (1, self._look),
        ]

    def act(self) -> int:
        """Does one thing, and returns how many requests that was.

        Raises:
            WrongTokens: a result differs from the plain model's.
            Exception: anything that no disturbance explains.
        """
        weights = [weight for weight, _ in self._actions]
        ((_, action),) = self._chance.choices(self._actions, weights)
        self.doing = action.__name__
        try:
            return action()
        except RAISED as error:
            self.counts[f"ended by {type(error).__name__}"] += 1
            return 1
        except PoolExhausted:
            if not self.doing.startswith(("_generate", "_beams", "_raise_in")):
                raise
            # Rows of one call must all be there at once, beside those of other calls.
            self.counts["generate: pool exhausted"] += 1
            return 1
        finally:
            self.counts[self.doing] += 1

    # ---- through the engine

    def _pick(self) -> tuple[int, int]:
        """A prompt, and a number of new tokens."""
        return self._chance.randrange(len(self._plain.prompts)), self._chance.randint(1, MOST_NEW)

    def _tenant(self) -> str:
        return self._chance.choice(TENANTS)

    def _ask(self, place: int, new: int, eos: tuple[int, ...] = ()) -> Completion:
        prompt = self._plain.prompts[place]
        return self._cached.submit(prompt, tenant=self._tenant(), max_new_tokens=new, eos=eos)

    def _check(self, completion: Completion, expected: list[int]) -> None:
        """The completion is the expected one; its beginning, where it was disturbed."""
        if completion.error is not None and not isinstance(completion.error, RAISED):
            raise completion.error
        is_whole = completion.error is None and not completion.cancelled
        tokens = expected if is_whole else expected[: len(completion.tokens)]
        if completion.tokens != tokens:
            raise WrongTokens(f"{completion.request.tokens.tolist()}: {completion.tokens}, not {expected}")
        if completion.error is not None:
            self.counts[f"ended by {type(completion.error).__name__}"] += 1

    def _wait(self, completions: list[Completion]) -> None:
        while True:
            try:
                self._cached.engine.wait(completions)
                return
            except ChaosExit:
                # Of the lower tier or the model, in this thread: the requests go on.
                self.counts["interrupted wait"] += 1

    def _submit(self) -> int:
        place, new = self._pick()
        expected = self._plain.greedy[place][:new]
        eos: tuple[int, ...] = ()
        if self._chance.random() < 0.3:
            end = self._chance.choice(expected)
            eos, expected = (end,), expected[: expected.index(end) + 1]
        completion = self._ask(place, new, eos)
        self._wait([completion])
        self._check(completion, expected)
        return 1

    def _submit_many(self) -> int:
        picks = [self._pick() for _ in range(self._chance.randint(2, 6))]
        completions = [self._ask(*pick) for pick in picks]
        self._wait(completions)
        for (place, new), completion in zip(picks, completions):
            self._check(completion, self._plain.greedy[place][:new])
        return len(picks)

    def _cancel(self) -> int:
        place, new = self._pick()
        completion = self._ask(place, new)
        for _ in range(self._chance.randrange(6)):
            try:
                self._cached.engine.step()
            except ChaosExit:
                self.counts["interrupted step"] += 1
        if self._chance.random() < 0.5:
            completion.cancel()
            self._wait([completion])
        else:
            self._cached.engine.discard([completion])
        self._check(completion, self._plain.greedy[place][:new])
        return 1

    def _stream(self) -> int:
        place, new = self._pick()
        prompt, found = self._plain.prompts[place], []
        try:
            for token in self._cached.stream(prompt, tenant=self._tenant(), max_new_tokens=new, eos=()):
                found.append(token)
        finally:
            if found != self._plain.greedy[place][: len(found)]:
                raise WrongTokens(f"{prompt}: streamed {found}, not {self._plain.greedy[place]}")
        if len(found) != new:
            raise WrongTokens(f"{prompt}: a stream of {len(found)} tokens, not {new}")
        return 1

    def _abandon_stream(self) -> int:
        place, _ = self._pick()
        stream: Any = self._cached.stream(
            self._plain.prompts[place], tenant=self._tenant(), max_new_tokens=MOST_NEW, eos=()
        )
        found = [next(stream) for _ in range(self._chance.randrange(5))]
        if self._chance.random() < 0.5:
            # Only a garbage collection ends it, whenever and in whatever thread that comes.
            cycle = [stream]
            cycle.append(cycle)
        if found != self._plain.greedy[place][: len(found)]:
            raise WrongTokens(f"{self._plain.prompts[place]}: streamed {found}, then left")
        return 1

    def _sample(self) -> int:
        sampled = self._chance.choice(self._plain.sampled)
        completion = self._cached.submit(
            self._plain.prompts[sampled.prompt],
            tenant=self._tenant(),
            max_new_tokens=BEAM_NEW,
            eos=(),
            sampling=sampled.sampling,
        )
        self._wait([completion])
        self._check(completion, sampled.tokens)
        return 1

    # ---- through Hugging Face's loop

    def _run_generate(self, places: list[int], new: int, expected: list[list[int]], **options: Any) -> None:
        rows = [self._plain.prompts[place] for place in places]
        columns = max(map(len, rows))
        ids = torch.tensor([[0] * (columns - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (columns - len(row)) + [1] * len(row) for row in rows])
        output = self._cached.generate(
            ids,
            attention_mask=mask,
            tenant=self._tenant(),
            max_new_tokens=new,
            do_sample=False,
            eos_token_id=None,
            **options,
        )
        found = output[:, columns:].tolist()
        if found != expected:
            raise WrongTokens(f"{rows}: generate({new}, {options}) gave {found}, not {expected}")

    def _generate(self) -> int:
        place, new = self._pick()
        self._run_generate([place], new, [self._plain.greedy[place][:new]])
        return 1

    def _generate_batch(self) -> int:
        places = [self._pick()[0] for _ in range(self._chance.randint(2, 3))]
        new = self._chance.randint(1, MOST_NEW // 2)
        self._run_generate(places, new, [self._plain.greedy[place][:new] for place in places])
        return len(places)

    def _beams(self) -> int:
        place, beams = self._pick()[0], self._chance.choice(BEAMS)
        self._run_generate([place], BEAM_NEW, [self._plain.beams[place, beams]], num_beams=beams)
        return 1

    def _raise_in_generate(self) -> int:
        place, new = self._pick()
        raising = Raising(self._chance.randint(1, 8), self._chance.choice(RAISED))
        handed: dict[str, Any] = (
            {"streamer": raising} if self._chance.random() < 0.5 else {"logits_processor": [raising]}
        )
        self._run_generate([place], new, [self._plain.greedy[place][:new]], **handed)
        return 1

    # ---- and besides

    def _warm(self) -> int:
        place, _ = self._pick()
        prompt, tenant = self._plain.prompts[place], self._tenant()
        if len(prompt) < self._cached.engine.memory.shape.chunk_tokens:
            return 1
        try:
            warmed = self._cached.warm(prompt, tenant=tenant, pin=self._chance.choice((False, PIN_SECONDS)))
        except PinBudgetExceeded:
            self.counts["warm: pin budget exceeded"] += 1
            return 1
        if warmed.pin is not None and self._chance.random() < 0.5:
            self._cached.unpin(warmed.pin)
        return 1

    def _bad_input(self) -> int:
        bad: dict[str, Any] = self._chance.choice(
            (
                {"prompt": torch.ones(2, 3, dtype=torch.long)},
                {"prompt": [1.5]},
                {"prompt": [5, -1]},
                {"prompt": [5, 2**40]},
                {"prompt": []},
                {"prompt": [5], "max_new_tokens": -1},
                {"prompt": [5], "max_new_tokens": 10**6},
                {"prompt": [5], "sampling": "hot"},
                {"prompt": [5], "eos": ["</s>"]},
            )
        )
        try:
            self._cached.submit(**bad)
        except InputError:
            return 1
        raise WrongTokens(f"submit({bad}) was not refused")

    def _look(self) -> int:
        self._cached.stats()
        self._cached.take_snapshot()
        return 0

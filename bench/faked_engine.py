"""An engine without a model: its steps compute nothing, and everything else is as ever. Answers are token 7."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from kvtrie.api import Completion, Engine, EngineConfig, Request
from kvtrie.api.engine.kv_memory import KvMemory
from kvtrie.api.engine.step_runner import Batch, StepOutcome
from kvtrie.api.models.model_facts import ModelFacts
from kvtrie.api.models.model_identity import Digests
from kvtrie.prefix_tree import ChunkShape, Namespace, Root

CHUNK = 16
TOKEN = 7
_MODEL = Digests("w", "")


class FakedSteps:
    """Takes the place of `StepRunner`."""

    def __init__(self, real: Any) -> None:
        self.runner = real.runner
        self.graphs = None
        self.rows: list[dict[Completion, int]] = []
        """Of each step, how many rows each request had."""
        self.at_step: Callable[[], object] = lambda: None
        """Called in the middle of each step."""

    def reserve_ahead(self, running: object) -> None:
        """Nothing is captured."""

    def run(self, batch: Batch) -> StepOutcome:
        """Notes the batch, and says that all went well."""
        self.rows.append({job.completion: rows for job, rows in batch})
        self.at_step()
        count = len(batch)
        return StepOutcome(_MODEL, [TOKEN] * count, [True] * count, torch.zeros(count, 16))


class Faked:
    """An engine with a pool of chunks of 16 tokens.

    Args:
        slots: chunks of the pool.
        check: checks every invariant after each step that is made here.
        options: of `Engine`.
    """

    def __init__(self, slots: int = 1024, *, check: bool = True, **options: Any) -> None:
        shape = ChunkShape(1, 1, CHUNK, 1, 1, "float32")
        self.memory = KvMemory(shape, slots * shape.chunk_bytes, "cpu")
        model = torch.nn.Identity().eval()
        facts = ModelFacts(
            model,
            SimpleNamespace(root=model),  # type: ignore[arg-type]
            SimpleNamespace(),
            1,
            1,
            1,
            1,
            "float32",
            torch.device("cpu"),
            1 << 31,
            1 << 30,
            "nothing",
        )
        config = options.pop("config", EngineConfig())
        identity: Any = SimpleNamespace(digests=lambda: _MODEL)
        self.engine = Engine(self.memory, facts, identity, config, **options)
        self.steps = FakedSteps(self.engine._steps)
        self.engine._steps = self.steps  # type: ignore[assignment]
        self._is_checked = check
        self._chance = np.random.default_rng(0)

    def root(self, tenant: str = "a") -> Root:
        """The root of a tenant's namespace."""
        return self.memory.tree.root(
            Namespace(f"tenant:{tenant}", weights="w", adapter="", chunk_tokens=CHUNK)
        )

    def prompt(self, tokens: int) -> list[int]:
        """Random tokens, so that no two prompts begin alike."""
        found: list[int] = self._chance.integers(0, 1 << 20, tokens).tolist()
        return found

    def submit(self, prompt: int | list[int], new: int = 1, tenant: str = "a", **options: Any) -> Completion:
        """Submits a prompt, or a random one of so many tokens."""
        tokens = self.prompt(prompt) if isinstance(prompt, int) else prompt
        return self.engine.submit(Request(tokens, self.root(tenant), max_new_tokens=new, **options))

    def step(self, count: int = 1) -> None:
        """Makes steps."""
        for _ in range(count):
            self.engine.step()
            if self._is_checked:
                self.memory.check()

    def steps_until(self, condition: Callable[[], object], most: int = 20_000) -> int:
        """Steps until something is so; how many it took."""
        taken = 0
        while not condition():
            assert taken < most, f"not within {most} steps"
            self.step()
            taken += 1
        return taken

    def run(self) -> int:
        """Steps until idle; how many steps it took."""
        return self.steps_until(lambda: self.engine.idle)

    @property
    def preemptions(self) -> int:
        """Of all requests, since the beginning."""
        return self.memory.counters["preemptions"]

    def assert_balanced(self) -> None:
        """Nothing is held."""
        self.memory.check()
        assert self.engine.idle
        assert not self.memory.tree.leases
        assert self.memory.tree.tiers[0].pending_bytes == 0
        assert all(node.is_resident for node in self.memory.tree.walk())

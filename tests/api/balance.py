"""A wrapped tiny model that must be left as it was found: nothing held, every byte accounted for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from transformers import PreTrainedModel

from kvtrie.api import Completion, PrefixCachedModel
from kvtrie.api.models.model_facts import model_facts

CHUNK = 8


def chunk_bytes(model: torch.nn.Module, chunk_tokens: int = CHUNK) -> int:
    return model_facts(model).chunk_shape(chunk_tokens).chunk_bytes


@contextmanager
def wrapped(
    model: torch.nn.Module, chunks: int = 64, chunk_tokens: int = CHUNK, **options: Any
) -> Iterator[PrefixCachedModel]:
    """A wrapper with a pool of `chunks` that checks every invariant after every step, and at the end."""
    options.setdefault("memory", chunks * chunk_bytes(model, chunk_tokens))
    with mock.patch.dict(os.environ, KVTRIE_CHECK="1"):
        wrapper = PrefixCachedModel(model, chunk_tokens=chunk_tokens, **options)
    with wrapper:
        yield wrapper
        assert_balanced(wrapper)


def assert_balanced(wrapper: PrefixCachedModel) -> None:
    """Nothing is held or under way, free + used = capacity, and the model has its own attention."""
    wrapper.check()
    memory, device = wrapper.engine.memory, wrapper.stats()["device"]
    assert wrapper.engine.idle
    assert not memory.tree.leases
    assert device["pending_bytes"] == 0
    assert device["used_bytes"] + device["free_bytes"] == device["capacity_bytes"]
    assert memory.pool.free_slots.free * memory.shape.chunk_bytes == device["free_bytes"]
    assert all(node.is_resident for node in memory.tree.walk()), "a claim outlived its request"
    assert wrapper.model.config._attn_implementation_internal != "kvtrie"


def greedy(model: Any, row: list[int], count: int) -> list[int]:
    """What the uncached model says after `row`."""
    with torch.no_grad():
        output = model.generate(
            torch.tensor([row]), max_new_tokens=count, do_sample=False, eos_token_id=None, pad_token_id=0
        )
    found: list[int] = output[0, len(row) :].tolist()
    return found


def complete(wrapper: PrefixCachedModel, *rows: list[int], new: int = 4, **options: Any) -> list[Completion]:
    """Rows through the engine, all submitted at once."""
    completions = [wrapper.submit(row, max_new_tokens=new, eos=(), **options) for row in rows]
    run_to_the_end(wrapper)
    return completions


def run_to_the_end(wrapper: PrefixCachedModel, most_steps: int = 3000) -> None:
    """`engine.run`, but requests that wait for ever are a failure and not a test that never ends."""
    for _ in range(most_steps):
        if wrapper.engine.idle:
            return
        wrapper.engine.step()
    raise AssertionError(f"not idle after {most_steps} steps")


def assert_same(model: PreTrainedModel, completion: Completion) -> None:
    """The completion is the uncached model's, token by token."""
    assert completion.error is None, completion.error
    prompt = completion.request.tokens.tolist()
    assert completion.tokens == greedy(model, prompt, completion.request.max_new_tokens)


def poisoned(model: PreTrainedModel) -> torch.nn.Parameter:
    """A weight of which every key and value of the second layer is made."""
    parameter = model.model.layers[0].mlp.down_proj.weight
    assert isinstance(parameter, torch.nn.Parameter)
    return parameter

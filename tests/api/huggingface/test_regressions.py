"""Defects found by review, each with the scenario that showed it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from kvtrie.api import EngineConfig, PrefixCachedModel
from kvtrie.prefix_tree import InputError, Namespace
from tests.api.balance import wrapped
from tests.api.tiny_models import prompts, tiny_model


@pytest.fixture
def model() -> PreTrainedModel:
    return tiny_model("llama-gqa")


class FailingTier:
    """A lower tier with a defect: it raises what no tier may raise."""

    def load(self, namespace: Namespace, keys: Sequence[bytes]) -> list[bytes]:
        raise ZeroDivisionError

    def offer(self, namespace: Namespace, key: bytes, make: Callable[[], bytes]) -> bool:
        raise ZeroDivisionError

    def flush(self, timeout_seconds: float) -> bool:
        return True

    def stats(self) -> Mapping[str, int | float]:
        return {}

    def close(self) -> None:
        """Nothing to close."""


def test_a_parameter_replaced_by_one_at_the_same_address_is_another_model(model: PreTrainedModel) -> None:
    """Nothing kept the old tensor alive, so the new one could get its address and version."""
    ids = torch.tensor(prompts([60]))
    layer = model.model.layers[0].self_attn.o_proj
    shape = layer.weight.shape
    with wrapped(model) as cached:
        cached.generate(ids, max_new_tokens=4)
        for seed in range(5):
            layer.weight = None
            layer.weight = nn.Parameter(torch.empty(shape))
            torch.manual_seed(seed)
            nn.init.normal_(layer.weight)
            expected = model.generate(ids, max_new_tokens=4)
            assert torch.equal(cached.generate(ids, max_new_tokens=4), expected)


def test_a_defective_tier_costs_no_request(model: PreTrainedModel) -> None:
    ids = torch.tensor(prompts([60]))
    expected = model.generate(ids, max_new_tokens=4)
    with wrapped(model, store=FailingTier()) as cached:
        for _ in range(2):
            assert torch.equal(cached.generate(ids, max_new_tokens=4), expected)
        assert cached.stats()["lower_outages"] >= 2


def test_one_requests_nan_stays_its_own_in_a_slab(model: PreTrainedModel) -> None:
    """Rows side by side with private runs of different lengths: padding must not be a neighbour's slot."""
    from kvtrie.chunk_kernels import ChunkPool, StepSequence, attend, prepare_step
    from kvtrie.prefix_tree import ChunkShape

    pool = ChunkPool(ChunkShape(1, 1, 4, 8, 8, "float32"), 4)
    pool.k.normal_()
    pool.v.normal_()
    step = prepare_step([StepSequence([0], 2, 1), StepSequence([1], 1, 1), StepSequence([2, 3], 5, 1)], pool)
    pool.v[0, :, 1, 1] = torch.nan
    out, _ = attend(torch.randn(3, 1, 8), pool, 0, step, 1.0)
    assert torch.isfinite(out).all(-1).all(-1).tolist() == [True, False, True]


def test_warming_that_is_interrupted_leaves_nothing_held(model: PreTrainedModel) -> None:
    first, second = prompts([40, 60])
    with wrapped(model, engine=EngineConfig(max_running=1)) as cached:
        cached.submit(first, max_new_tokens=4)

        def fail(module: nn.Module, inputs: object) -> None:
            raise ZeroDivisionError

        hook = model.model.layers[0].register_forward_pre_hook(fail)
        with pytest.raises(ZeroDivisionError):
            cached.warm(second)
        hook.remove()
        cached.engine.run()


def test_readers_given_as_one_text_are_refused(model: PreTrainedModel) -> None:
    """A text is a collection of letters: tenant `a` would have read what is `acme`'s."""
    with pytest.raises(InputError, match="list of tenants"):
        PrefixCachedModel(model, memory="1MiB", shared={"tools": "acme"})

"""Decode steps in lanes: the captured path, run without capturing, equals ordinary steps token for token.

Without a GPU the kernels are interpreted and a "replay" just runs the work again: all but the capture itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

pytest.importorskip("triton")

from kvtrie.api import PrefixCachedModel, Sampling
from kvtrie.api.engine.decode_graphs import CudaCapture, DecodeGraphs
from kvtrie.api.engine.engine_config import EngineConfig
from kvtrie.api.engine.kv_memory import device_slot
from kvtrie.api.engine.request import Completion
from kvtrie.prefix_tree.errors import InputError
from tests.api.tiny_models import tiny_model

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
VOCABULARY = 97
CHUNK = 8
SHARED = [5 + i % 60 for i in range(4 * CHUNK)]


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=VOCABULARY,
        max_position_embeddings=512,
    )
    return LlamaForCausalLM(config).to(DEVICE).eval()


def in_lanes(cached: PrefixCachedModel, most: int = 8) -> DecodeGraphs:
    """Switches an engine to the captured path, whatever the device."""
    engine = cached.engine
    graphs = DecodeGraphs(
        engine._steps.runner,
        engine._steps._identity,
        engine.memory.pool,
        most,
        CudaCapture() if DEVICE == "cuda" else _run_again,
    )
    engine._steps.graphs = graphs
    return graphs


def _run_again(work: Callable[[], None]) -> Callable[[], None]:
    for _ in range(2):
        work()
    return work


def serve(model: Any, captured: bool, memory: str = "1MiB") -> tuple[list[list[int]], PrefixCachedModel]:
    """Requests that join and leave at different steps, some sharing a prompt, some sampled."""
    cached = PrefixCachedModel(
        model, memory=memory, chunk_tokens=CHUNK, engine=EngineConfig(decode_graphs=False)
    )
    if captured:
        in_lanes(cached)
    found: list[Completion] = []
    for i in range(6):
        sampling = Sampling(temperature=0.8, top_k=20, seed=i) if i == 2 else None
        prompt = [*SHARED, 90, i] if i % 3 else [7, 8, 9 + i]
        found.append(cached.submit(prompt, max_new_tokens=5 + 7 * (i % 3), sampling=sampling, eos=()))
        for _ in range(2):
            cached.engine.step()
    cached.engine.run()
    cached.check()
    return [completion.tokens for completion in found], cached


def test_lanes_equal_ordinary_steps(model: Any) -> None:
    expected, plain = serve(model, captured=False)
    found, captured = serve(model, captured=True)
    assert found == expected
    assert captured.stats()["graph_steps"] > 10
    assert plain.stats().get("graph_steps", 0) == 0
    assert captured.stats()["device"]["used_bytes"] == plain.stats()["device"]["used_bytes"]
    plain.close()
    captured.close()


def test_a_steady_step_sends_nothing(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rooms are reserved ahead, so of 30 tokens that cross four chunks only a few steps make a new plan."""
    with PrefixCachedModel(
        model, memory="1MiB", chunk_tokens=CHUNK, engine=EngineConfig(decode_graphs=False)
    ) as cached:
        graphs = in_lanes(cached)
        completions = [cached.submit([*SHARED, i], max_new_tokens=30, eos=()) for i in range(3)]
        while cached.stats().get("graph_steps", 0) < 1:
            cached.engine.step()
        assert graphs._latest is not None
        lanes, sent = graphs._latest.lanes, []
        for name in ("_replan", "_send_tokens"):
            plain = getattr(lanes, name)
            monkeypatch.setattr(
                lanes, name, lambda *a, _plain=plain, _name=name: (sent.append(_name), _plain(*a))[1]
            )
        cached.engine.run()
        assert all(len(completion.tokens) == 30 for completion in completions)
        assert cached.stats()["graph_steps"] >= 28
        assert len(sent) <= 2, sent


def test_what_lanes_cannot_hold_runs_without(model: Any) -> None:
    with PrefixCachedModel(
        model, memory="1MiB", chunk_tokens=CHUNK, engine=EngineConfig(decode_graphs=False)
    ) as cached:
        in_lanes(cached, most=1)
        completions = [cached.submit([*SHARED, i], max_new_tokens=4 + 4 * i, eos=()) for i in range(2)]
        cached.engine.run()
        assert [len(completion.tokens) for completion in completions] == [4, 8]
        assert 0 < cached.stats()["graph_steps"] <= 5, "only while one is alone"


@pytest.mark.parametrize("worth_steps", [4, 100])
def test_few_run_in_a_graph_for_many_until_one_of_their_own_pays(
    model: Any, monkeypatch: pytest.MonkeyPatch, worth_steps: int
) -> None:
    """Capturing stops the service for as long as tens of steps take."""
    monkeypatch.setattr("kvtrie.api.engine.decode_graphs.WORTH_STEPS", worth_steps)
    with PrefixCachedModel(
        model, memory="1MiB", chunk_tokens=CHUNK, engine=EngineConfig(decode_graphs=False)
    ) as cached:
        prompts = [[*SHARED, 90, i] for i in range(3)]
        alone = [cached.submit(prompt, max_new_tokens=12, eos=()) for prompt in prompts]
        cached.engine.run()
        graphs = in_lanes(cached)
        found = [
            cached.submit(prompt, max_new_tokens=new, eos=()) for prompt, new in zip(prompts, (4, 4, 12))
        ]
        cached.engine.run()
        assert [one.tokens for one in found] == [one.tokens[:new] for one, new in zip(alone, (4, 4, 12))]
        captured = sorted(size for size, bucket in graphs._buckets.items() if bucket.replays)
        assert captured == ([1, 4] if worth_steps == 4 else [4])


def test_a_model_that_cannot_be_captured_is_served_all_the_same(
    model: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(work: Callable[[], None]) -> Callable[[], None]:
        raise RuntimeError("operation not permitted when stream is capturing")

    expected, plain = serve(model, captured=False)
    plain.close()
    with PrefixCachedModel(
        model, memory="1MiB", chunk_tokens=CHUNK, engine=EngineConfig(decode_graphs=False)
    ) as cached:
        graphs = in_lanes(cached)
        graphs._capture = refuse
        completion = cached.submit([*SHARED, 90, 1], max_new_tokens=12, eos=())
        cached.engine.run()
        assert completion.tokens == expected[1]
        assert "not permitted" in str(graphs.refused)
        assert "without CUDA graphs" in caplog.text


def test_graphs_of_another_model_are_dropped(model: Any) -> None:
    """Weights that changed between requests: what the old graph computed is not used."""
    with PrefixCachedModel(
        model, memory="1MiB", chunk_tokens=CHUNK, engine=EngineConfig(decode_graphs=False)
    ) as cached:
        graphs = in_lanes(cached)
        cached.submit([*SHARED, 1], max_new_tokens=4, eos=())
        cached.engine.run()
        before = graphs._made_for
        assert before is not None
        weight = model.model.layers[0].mlp.up_proj.weight
        with torch.no_grad():
            weight.mul_(-1.0)
        try:
            completion = cached.submit([*SHARED, 1], max_new_tokens=6, eos=())
            cached.engine.run()
            expected = model.generate(
                torch.tensor([[*SHARED, 1]], device=DEVICE),
                max_new_tokens=6,
                do_sample=False,
                eos_token_id=None,
            )
            assert completion.tokens == expected[0, len(SHARED) + 1 :].tolist()
            assert graphs._made_for not in (None, before)
        finally:
            with torch.no_grad():
                weight.mul_(-1.0)


def test_no_graph_of_another_model_stays_beside_new_ones(model: Any) -> None:
    """Weights change, and the next step captures for another number of lanes: the old graphs go all the same."""
    with PrefixCachedModel(
        model, memory="1MiB", chunk_tokens=CHUNK, engine=EngineConfig(decode_graphs=False)
    ) as cached:
        graphs = in_lanes(cached)
        cached.submit([*SHARED, 1], max_new_tokens=4, eos=())
        cached.engine.run()
        (old,) = graphs._buckets.values()
        weight = model.model.layers[0].mlp.up_proj.weight
        with torch.no_grad():
            weight.mul_(-1.0)
        try:
            for i in range(2):
                cached.submit([*SHARED, i], max_new_tokens=6, eos=())
            cached.engine.run()
            assert any(bucket.replays for bucket in graphs._buckets.values())
            assert old not in graphs._buckets.values()
        finally:
            with torch.no_grad():
                weight.mul_(-1.0)


def test_a_pool_of_graphs_that_are_gone_takes_no_new_ones(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CUDA's allocator refuses that, as long as anything of the old graphs' memory is in use."""

    class Captures:
        def __init__(self) -> None:
            made.append(self)

        def __call__(self, work: Callable[[], None]) -> Callable[[], None]:
            return _run_again(work)

    made: list[Captures] = []
    monkeypatch.setattr("kvtrie.api.engine.decode_graphs.CudaCapture", Captures)
    with PrefixCachedModel(
        model, memory="1MiB", chunk_tokens=CHUNK, engine=EngineConfig(decode_graphs=False)
    ) as cached:
        in_lanes(cached)._capture = None
        weight = model.model.layers[0].mlp.up_proj.weight
        for sign in (-1.0, -1.0):
            cached.submit([*SHARED, 1], max_new_tokens=6, eos=())
            cached.engine.run()
            with torch.no_grad():
                weight.mul_(sign)
    assert len(made) == 2


@pytest.mark.skipif(DEVICE == "cpu", reason="captures on a GPU")
def test_what_waits_for_the_device_is_refused_and_leaves_no_trace() -> None:
    count, here = torch.ones(1, device=DEVICE), torch.cuda.current_stream()

    def waits() -> None:
        count.item()

    def counts() -> None:
        count.add_(1)

    with pytest.raises(RuntimeError):
        CudaCapture()(waits)
    assert torch.cuda.current_stream() == here
    torch.cuda.empty_cache()
    replay = CudaCapture()(counts)
    before = count.item()
    replay()
    assert count.item() == before + 1


def test_no_graph_is_made_of_a_model_in_training_mode(model: Any) -> None:
    """Its dropout would be captured with it."""
    with PrefixCachedModel(
        model, memory="1MiB", chunk_tokens=CHUNK, engine=EngineConfig(decode_graphs=False)
    ) as cached:
        graphs = in_lanes(cached)
        cached.warm(SHARED)
        completion = cached.submit([*SHARED, 1], max_new_tokens=4, eos=())
        model.train()
        try:
            cached.engine.run()
        finally:
            model.eval()
        with pytest.raises(InputError, match="training mode"):
            raise completion.error or AssertionError("served")
        assert not any(bucket.replays for bucket in graphs._buckets.values())


def test_lanes_made_in_inference_mode_serve_outside_of_it(model: Any) -> None:
    expected, plain = serve(model, captured=False)
    plain.close()
    with PrefixCachedModel(
        model, memory="1MiB", chunk_tokens=CHUNK, engine=EngineConfig(decode_graphs=False)
    ) as cached:
        in_lanes(cached)
        with torch.inference_mode():
            cached.submit([*SHARED, 90, 7], max_new_tokens=4, eos=())
            cached.engine.run()
        completion = cached.submit([*SHARED, 90, 1], max_new_tokens=12, eos=())
        cached.engine.run()
        assert completion.error is None
        assert completion.tokens == expected[1]


def test_a_default_device_moves_nothing_but_the_model(model: Any) -> None:
    """Plans are staged on the host, whatever `torch.set_default_device` says."""
    with PrefixCachedModel(
        model, memory="1MiB", chunk_tokens=CHUNK, engine=EngineConfig(decode_graphs=False)
    ) as cached:
        graphs = in_lanes(cached)
        with torch.device("meta"):
            lanes = graphs._bucket(2).lanes
        lanes.clear()
        assert lanes._staged.device.type == "cpu"


def test_a_pool_made_in_inference_mode_serves_outside_of_it(model: Any) -> None:
    with torch.inference_mode():
        cached = PrefixCachedModel(model, memory="1MiB", chunk_tokens=CHUNK)
    with cached:
        for last in (1, 2):
            # The second begins with a copy of half of the first one's last chunk.
            completion = cached.submit([*SHARED, 3, 4, 5, last, 6, 7, 8, 9, last], max_new_tokens=2, eos=())
            cached.engine.run()
            assert completion.error is None


def test_lanes_store_the_int8_that_ordinary_steps_store() -> None:
    """By the kernel there, by torch here: the same elements, but for rounding that tips one over to the next."""
    model, tokens, stored = tiny_model("llama-gqa").to(DEVICE), [], []
    for captured in (False, True):
        with PrefixCachedModel(
            model,
            memory="1MiB",
            chunk_tokens=CHUNK,
            kv_format="int8",
            engine=EngineConfig(decode_graphs=False),
        ) as cached:
            if captured:
                in_lanes(cached, most=2)
            completions = [cached.submit([*SHARED, 90, i], max_new_tokens=10, eos=()) for i in range(2)]
            cached.engine.run()
            assert cached.stats().get("graph_steps", 0) == (9 if captured else 0)
            tokens.append([completion.tokens for completion in completions])
            pool, tree = cached.engine.memory.pool, cached.engine.memory.tree
            slots = [device_slot(node) for node in tree.walk() if node.depth == 5]
            assert len(slots) == 2, "a chunk each that decode steps have filled"
            stored.append(pool.v[:, :, slots].cpu().int())
    assert tokens[0] == tokens[1]
    apart = (stored[0] - stored[1]).abs()
    assert int(apart.max()) <= 1
    assert float(apart.float().mean()) < 0.01

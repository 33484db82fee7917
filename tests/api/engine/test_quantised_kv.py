"""int8 and fp8 pools end to end: warm equals cold, bytes shrink as computed, lossy and exact never meet."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from kvtrie.api import EngineConfig, PrefixCachedModel
from kvtrie.api.cli import main
from kvtrie.api.models.model_runner import ModelRunner
from kvtrie.api.tiers.store_tier import StoreTier
from kvtrie.chunk_kernels import ChunkPool
from kvtrie.prefix_tree import InputError, ModelOutputError
from kvtrie.store import decode_record, encode_record
from tests.api.balance import CHUNK, assert_balanced, assert_same, complete, poisoned, wrapped
from tests.api.lower_tiers import NEW, ROW, KeptStore, small_model
from tests.api.tiny_models import left_padded, prompts, tiny_model

LOSSY = ["int8", "fp8"]
CHUNKS = len(ROW) // CHUNK
LOGITS = {"return_dict_in_generate": True, "output_logits": True}


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny_model("llama-gqa")


def logits_of(cached: PrefixCachedModel, rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Sequences, and logits of every step."""
    found = cached.generate(**left_padded(rows), max_new_tokens=6, do_sample=False, **LOGITS)
    return found.sequences, torch.stack(found.logits)


def pool_bytes(pool: ChunkPool) -> list[torch.Tensor]:
    parts = (pool.k, pool.v, pool.k_scale, pool.v_scale)
    return [part.view(torch.uint8) for part in parts if part is not None]


@pytest.mark.parametrize("kv_format", LOSSY)
class TestWarmEqualsCold:
    def test_through_the_engine(self, model: PreTrainedModel, kv_format: str) -> None:
        rows = prompts([90, 75, 40, 5 * CHUNK, 1], shared=3 * CHUNK + 2)
        with wrapped(model, chunks=120, kv_format=kv_format) as cached:
            cold = complete(cached, *rows, new=12)
            warm = complete(cached, *rows, new=12)
            for first, second, row in zip(cold, warm, rows):
                assert second.cached_tokens >= (len(row) - 1) // CHUNK * CHUNK
                assert second.tokens == first.tokens

    def test_however_the_prompt_is_cut_into_steps(self, model: PreTrainedModel, kv_format: str) -> None:
        """A prompt in one piece reads its own new tokens as they are stored, not as they were computed."""
        row = prompts([90])[0]
        answers = []
        for step_tokens in (2048, 23, 1):
            config = EngineConfig(step_tokens=step_tokens)
            with wrapped(model, kv_format=kv_format, engine=config) as cached:
                (completion,) = complete(cached, row, new=12)
                answers.append(completion.tokens)
        assert answers[0] == answers[1] == answers[2]

    def test_beams_copy_scales_with_their_chunks(self, model: PreTrainedModel, kv_format: str) -> None:
        batch = left_padded(prompts([50, 33], shared=20))
        beams = {"max_new_tokens": 10, "num_beams": 3, "do_sample": False, "return_dict_in_generate": True}
        exact = model.generate(**batch, **beams, output_scores=True).sequences_scores
        with wrapped(model, kv_format=kv_format) as cached:
            cold, warm = (cached.generate(**batch, **beams, output_scores=True) for _ in range(2))
            assert torch.equal(warm.sequences, cold.sequences)
            torch.testing.assert_close(warm.sequences_scores, cold.sequences_scores, rtol=1e-4, atol=1e-4)
            # Not even close, were chunks copied without their scales.
            print(f"{kv_format}: beam scores {cold.sequences_scores.tolist()}, exact {exact.tolist()}")
            torch.testing.assert_close(cold.sequences_scores, exact, rtol=0.01, atol=0)

    def test_through_generate(self, model: PreTrainedModel, kv_format: str) -> None:
        rows = prompts([50, 33, 2 * CHUNK], shared=20)
        with wrapped(model, kv_format=kv_format) as cached:
            cold, cold_logits = logits_of(cached, rows)
            warm, warm_logits = logits_of(cached, rows)
            assert torch.equal(warm, cold)
            assert cached.stats()["cached_tokens"] > 0
            exact = model.generate(**left_padded(rows), max_new_tokens=1, **LOGITS).logits[0]
            scale = float(exact.abs().max())
            # Not bit for bit: another grouping rounds differently, and may tip an element over to the next
            # of 255 steps. But far closer together than the format is to the exact model.
            apart = float((warm_logits - cold_logits).abs().max()) / scale
            loss = float((cold_logits[0] - exact).abs().max()) / scale
            print(f"{kv_format}: warm and cold logits {apart:.1e} apart, lossy and exact {loss:.1e}")
            assert apart < loss / 3
            assert loss < 0.2


@pytest.mark.parametrize(("kv_format", "vector_bytes"), [("int8", 16 + 4), ("fp8", 16 + 4), ("raw", 16 * 4)])
def test_memory_holds_as_many_chunks_as_computed(
    model: PreTrainedModel, kv_format: str, vector_bytes: int
) -> None:
    """3 layers, 2 KV heads, keys and values of 16."""
    memory = 100_000
    with wrapped(model, memory=memory, kv_format=kv_format) as cached:
        chunk_bytes = 3 * 2 * CHUNK * 2 * vector_bytes
        pool = cached.engine.memory.pool
        assert cached.engine.memory.shape.chunk_bytes == chunk_bytes
        assert pool.slots == memory // chunk_bytes
        assert sum(part.numel() for part in pool_bytes(pool)) == pool.slots * chunk_bytes
        complete(cached, prompts([3 * CHUNK + 1])[0])
        assert cached.stats()["device"]["used_bytes"] == 3 * chunk_bytes


class TestStores:
    @pytest.mark.parametrize("kv_format", LOSSY)
    def test_a_second_wrapper_reads_the_very_bytes(self, kv_format: str) -> None:
        model, store = small_model(), KeptStore()
        chunks, tokens = [], []
        for _ in range(2):
            with wrapped(model, store=StoreTier(store), kv_format=kv_format) as cached:
                (completion,) = complete(cached, ROW, new=NEW)
                tokens.append(completion.tokens)
                assert cached.flush()
                memory = cached.engine.memory
                chunks.append(
                    [
                        np.concatenate(memory.pool.read_chunk(node.at[0].handle), axis=1).tobytes()
                        for node in memory.tree.walk()
                    ]
                )
                assert completion.cached_tokens == (CHUNKS * CHUNK if len(chunks) == 2 else 0)
        assert chunks[0] == chunks[1]
        assert len(chunks[0]) == CHUNKS
        assert tokens[0] == tokens[1]
        records = [decode_record(store.get_many([key])[0]) for key in store.scan()]
        shapes = {record.shape for record in records if record.depth}
        assert [(shape.kv_format, shape.dtype) for shape in shapes] == [(kv_format, "float32")]

    def test_formats_over_one_store_never_hit_each_other(self) -> None:
        model, store = small_model(), KeptStore()
        for kv_format in ("raw", "int8", "fp8"):
            with wrapped(model, store=StoreTier(store), kv_format=kv_format) as cached:
                (completion,) = complete(cached, ROW, new=NEW)
                assert completion.cached_tokens == 0
                assert cached.flush()
                assert not [name for name in cached.stats() if name.startswith("records_rejected")]
                if kv_format == "raw":
                    assert_same(model, completion)
        for kv_format in ("fp8", "raw", "int8"):
            with wrapped(model, store=StoreTier(store), kv_format=kv_format) as cached:
                (completion,) = complete(cached, ROW, new=NEW)
                assert completion.cached_tokens == CHUNKS * CHUNK, "but each its own"

    def test_a_record_of_another_format_under_the_right_key_is_a_miss(self) -> None:
        model, store = small_model(), KeptStore()
        with wrapped(model, store=StoreTier(store), kv_format="int8") as cached:
            complete(cached, ROW, new=NEW)
            assert cached.flush()
            key = next(iter(cached.engine.memory.tree.walk())).key
        record = decode_record(store.get_many([key])[0])
        assert record.shape is not None
        store.put_many([(key, encode_record(replace(record, shape=replace(record.shape, kv_format="fp8"))))])
        with wrapped(model, store=StoreTier(store), kv_format="int8") as cached:
            (completion,) = complete(cached, ROW, new=NEW)
            assert completion.cached_tokens == 0
            assert cached.stats()["records_rejected.dtype"] == 1

    @pytest.mark.parametrize(
        ("kv_format", "where", "what"),
        [
            ("int8", "scale", np.float32(np.nan).tobytes()),
            ("int8", "scale", np.float32(-np.inf).tobytes()),
            ("fp8", "scale", np.float32(np.inf).tobytes()),
            ("fp8", "element", b"\x7f"),
            ("fp8", "element", b"\xff"),
        ],
    )
    @pytest.mark.parametrize("part", ["keys", "values"])
    def test_a_payload_that_is_not_finite_is_a_miss(
        self, kv_format: str, where: str, what: bytes, part: str
    ) -> None:
        model, store = small_model(), KeptStore()
        with wrapped(model, store=StoreTier(store), kv_format=kv_format) as cached:
            complete(cached, ROW, new=NEW)
            assert cached.flush()
            keys = [node.key for node in cached.engine.memory.tree.walk()]
            shape = cached.engine.memory.shape
        record = decode_record(store.get_many([keys[2]])[0])
        payload = bytearray(record.payload)
        # One layer: key elements, key scales, value elements, value scales.
        end = shape.key_bytes if part == "keys" else len(payload)
        at = end - 8 if where == "scale" else end - shape.chunk_tokens * shape.kv_heads * 4 - 1
        payload[at : at + len(what)] = what
        store.put_many([(keys[2], encode_record(replace(record, payload=bytes(payload))))])
        with wrapped(model, store=StoreTier(store), kv_format=kv_format) as cached:
            (completion,) = complete(cached, ROW, new=NEW)
            assert completion.error is None
            assert completion.cached_tokens == 2 * CHUNK
            assert cached.stats()["records_rejected.values"] == 1

    @pytest.mark.parametrize("kv_format", LOSSY)
    def test_bytes_that_look_like_fp32_nan_are_fine(self, kv_format: str) -> None:
        """Elements are no floats: -1, -1, -1, -1 in int8 are the bits of a NaN."""
        model, store = small_model(), KeptStore()
        with wrapped(model, store=StoreTier(store), kv_format=kv_format) as cached:
            complete(cached, ROW, new=NEW)
            assert cached.flush()
            keys = [node.key for node in cached.engine.memory.tree.walk()]
        record = decode_record(store.get_many([keys[0]])[0])
        payload = bytearray(record.payload)
        payload[:4] = b"\xff\xff\xff\xff" if kv_format == "int8" else b"\x7e\xfe\x80\x7e"
        store.put_many([(keys[0], encode_record(replace(record, payload=bytes(payload))))])
        with wrapped(model, store=StoreTier(store), kv_format=kv_format) as cached:
            (completion,) = complete(cached, ROW, new=NEW)
            assert completion.cached_tokens == CHUNKS * CHUNK


class TestIdentity:
    def test_namespaces_differ_in_fidelity_and_in_nothing_else(self, model: PreTrainedModel) -> None:
        found = {}
        for kv_format in ("raw", *LOSSY):
            with wrapped(model, kv_format=kv_format) as cached:
                found[kv_format] = cached._identity.namespace("tenant:acme")
        assert found["raw"].fidelity == "exact"
        for one, other in (("raw", "int8"), ("raw", "fp8"), ("int8", "fp8")):
            assert found[one].differences(found[other]) == ["fidelity"]
            assert found[one].digest != found[other].digest

    def test_raw_is_the_default(self, model: PreTrainedModel) -> None:
        with wrapped(model) as default, wrapped(model, kv_format="raw") as raw:
            assert default._identity.namespace("a") == raw._identity.namespace("a")

    def test_snapshots_and_dumps_name_the_format(
        self, model: PreTrainedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = tmp_path / "tree.json"
        with wrapped(model, kv_format="int8") as cached:
            complete(cached, prompts([40])[0])
            cached.snapshot(path)
        assert main(["dump", str(path)]) == 0
        assert "int8, scale absmax/127 per token and KV head" in capsys.readouterr().out


@pytest.mark.parametrize("kv_format", LOSSY)
def test_nan_is_an_error_and_nothing_of_it_stays(model: PreTrainedModel, kv_format: str) -> None:
    model = tiny_model("llama-gqa")
    rows = prompts([40, 30], shared=CHUNK)
    with wrapped(model, kv_format=kv_format) as cached:
        before = [completion.tokens for completion in complete(cached, *rows)]
        used = cached.stats()["device"]["used_bytes"]
        weight = poisoned(model)
        kept = weight.detach().clone()
        with torch.no_grad():
            weight[0, 0] = torch.nan
        for completion in complete(cached, *rows):
            assert isinstance(completion.error, ModelOutputError)
        assert_balanced(cached)
        assert cached.stats()["device"]["used_bytes"] == used
        pool = cached.engine.memory.pool
        assert pool.k_scale is not None
        assert pool.v_scale is not None
        assert pool.k_scale.isfinite().all()
        assert pool.v_scale.isfinite().all()
        with torch.no_grad():
            weight.copy_(kept)
        assert [completion.tokens for completion in complete(cached, *rows)] == before


def test_new_tokens_are_read_as_they_are_stored(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control: were stored bytes not what is read, spoiling them as they come would not show."""
    row = prompts([40])[0]
    seen: list[torch.Tensor] = []
    forward = ModelRunner.forward

    def noted(runner: ModelRunner, *arguments: object) -> torch.Tensor:
        seen.append(forward(runner, *arguments))  # type: ignore[arg-type]
        return seen[-1]

    monkeypatch.setattr(ModelRunner, "forward", noted)
    with wrapped(model, kv_format="int8") as cached:
        complete(cached, row, new=1)
    write = ChunkPool.write

    def spoiled(pool: ChunkPool, layer: int, *arguments: torch.Tensor) -> None:
        write(pool, layer, *arguments)
        assert pool.v_scale is not None
        pool.v_scale[layer] *= 1.5

    with wrapped(model, kv_format="int8") as cached:
        # Only now: a wrapper whose values are spoiled is refused.
        monkeypatch.setattr(ChunkPool, "write", spoiled)
        complete(cached, row, new=1)
    assert (seen[0] - seen[-1]).abs().max() > 0.05 * seen[0].abs().max()


@pytest.mark.parametrize("kv_format", ["int4", "", None, 8])
def test_unknown_formats_are_refused(model: PreTrainedModel, kv_format: object) -> None:
    with pytest.raises(InputError, match=r"kv_format .* is not one of \['raw', 'int8', 'fp8'\]"):
        PrefixCachedModel(model, kv_format=kv_format)  # type: ignore[arg-type]

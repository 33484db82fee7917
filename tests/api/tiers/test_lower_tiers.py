"""Through a store and through a sidecar: hits of another process, and never an output of a bad record."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from kvtrie.api import PrefixCachedModel
from kvtrie.api.models.model_runner import ModelRunner
from kvtrie.api.tiers.store_tier import StoreTier
from kvtrie.prefix_tree import InputError
from kvtrie.prefix_tree.keys import TOKEN_BYTES
from kvtrie.store import Record, decode_record, encode_record, open_store
from kvtrie.store.record import HEADER_BYTES, TRAILER_BYTES
from tests.api.balance import CHUNK, assert_same, complete, greedy, wrapped
from tests.api.lower_tiers import NEW, ROW, KeptStore, ask_in_another_process, small_model
from tests.api.tiny_models import prompts

CHUNKS = len(ROW) // CHUNK
PLACE = 2
"""The record of the path that is spoilt: two are good before it, and one after it."""


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return small_model()


@pytest.fixture
def store() -> KeptStore:
    return KeptStore()


class Held:
    """A wrapper whose device forgets everything before each request, so that the lower tier is asked."""

    def __init__(self, cached: PrefixCachedModel, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cached = cached
        self._logits: list[torch.Tensor] = []
        forward = ModelRunner.forward

        def noted(runner: ModelRunner, *arguments: Any) -> torch.Tensor:
            logits = forward(runner, *arguments)
            self._logits.append(logits.clone())
            return logits

        monkeypatch.setattr(ModelRunner, "forward", noted)
        self.keys: list[bytes] = []
        """Chunk keys of `ROW`."""
        self.expected = self._ask()
        self.keys = [node.key for node in cached.engine.memory.tree.walk()]
        assert len(self.keys) == CHUNKS

    def _ask(self) -> torch.Tensor:
        (completion,) = complete(self.cached, ROW, new=1)
        assert_same(self.cached.model, completion)
        self.cached_tokens = completion.cached_tokens
        assert self.cached.flush(20.0)
        return self._logits[-1]

    def forget(self) -> None:
        memory = self.cached.engine.memory
        held = memory.take("tenant:default", memory.pool.slots)
        assert held is not None
        # What is left of them in their slots must not help.
        for tensor in memory.pool.k, memory.pool.v:
            tensor.zero_()
        memory.give("tenant:default", held)

    def ask(self) -> int:
        """Cached tokens; the output is the expected one, logits included."""
        self.forget()
        found = self._ask()
        torch.testing.assert_close(found, self.expected, rtol=0, atol=1e-4)
        return self.cached_tokens

    def rejected(self) -> dict[str, int]:
        stats = self.cached.stats()
        prefix = "records_rejected."
        return {name[len(prefix) :]: n for name, n in stats.items() if name.startswith(prefix)}


@pytest.fixture
def held(model: PreTrainedModel, store: KeptStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    with wrapped(model, chunks=8, store=StoreTier(store)) as cached:
        yield Held(cached, monkeypatch)


def test_chunks_come_back_from_a_store(held: Held) -> None:
    assert held.ask() == CHUNKS * CHUNK
    assert held.cached.stats()["loaded_chunks"] == CHUNKS
    assert held.rejected() == {}


# ---- two processes


def test_another_process_gets_hits(
    model: PreTrainedModel, start_redis: Callable[..., Any], start_sidecar: Callable[..., Any]
) -> None:
    sidecar = start_sidecar(memory="4MiB", chunk_tokens=CHUNK)
    redis = start_redis()
    for url in redis.url, sidecar.url:
        with wrapped(model, store=url) as cached:
            assert_same(model, *complete(cached, ROW, new=NEW))
            assert cached.flush(20.0)
    urls = [redis.url, f"redis+unix://{redis.socket_path}", sidecar.url, sidecar.unix_url]
    for answer in ask_in_another_process(*urls):
        assert answer["cached_tokens"] == CHUNKS * CHUNK
        assert answer["counters"]["loaded_chunks"] == CHUNKS
        assert answer["tokens"] == greedy(model, ROW, NEW)


def test_shared_scopes_through_a_store(model: PreTrainedModel, store: KeptStore) -> None:
    options = {"shared": {"tools": ["acme"]}}
    with wrapped(model, store=StoreTier(store), **options) as cached:
        cached.warm(ROW, scope="tools")
        assert cached.flush()
    with wrapped(model, store=StoreTier(store), **options) as cached:
        for tenant, found in (("initech", 0), ("acme", CHUNKS * CHUNK)):
            (completion,) = complete(cached, ROW, tenant=tenant)
            assert_same(model, completion)
            assert completion.cached_tokens == found


def test_what_was_evicted_from_the_device_is_loaded_again(model: PreTrainedModel, store: KeptStore) -> None:
    rows = prompts([40, 37, 50, 45, 33], shared=20)
    with wrapped(model, chunks=8, store=StoreTier(store)) as cached:
        for _ in range(3):
            for row in rows:
                assert_same(model, *complete(cached, row))
            assert cached.flush()
        assert cached.stats()["evictions"] > 0
        assert cached.stats()["loaded_chunks"] > 0


def test_a_pool_too_small_for_what_could_be_loaded(model: PreTrainedModel, store: KeptStore) -> None:
    rows = prompts([6 * CHUNK + 3] * 4, shared=5 * CHUNK)
    for _ in range(2):
        with wrapped(model, chunks=9, store=StoreTier(store)) as cached:
            for completion in complete(cached, *rows, new=CHUNK):
                assert_same(model, completion)
            assert cached.flush()


# ---- bad records


def spoil(store: Any, held: Held, data: bytes, place: int = PLACE) -> None:
    store.put_many([(held.keys[place], data)])


def flips(record: bytes, payload_places: int) -> list[int]:
    """Every byte of header, tokens and trailer, and some of the payload."""
    payload = HEADER_BYTES + CHUNK * TOKEN_BYTES
    end = len(record) - TRAILER_BYTES
    sample = np.linspace(payload, end - 1, payload_places).astype(int).tolist()
    return [*range(payload), *sample, *range(end, len(record))]


def assert_all_missed(held: Held, store: Any, spoilt: Sequence[bytes]) -> None:
    (good,) = store.get_many([held.keys[PLACE]])
    for number, data in enumerate(spoilt, 1):
        spoil(store, held, data)
        assert held.ask() == PLACE * CHUNK
        assert sum(held.rejected().values()) == number
        # What was computed instead has taken its place.
        (mended,) = store.get_many([held.keys[PLACE]])
        assert decode_record(mended).payload == decode_record(good).payload


def test_a_flip_of_any_byte_is_a_miss(held: Held, store: KeptStore) -> None:
    good = store.get_many([held.keys[PLACE]])[0]
    assert good is not None
    generator = np.random.default_rng(0)
    spoilt = []
    for place in flips(good, 100):
        flipped = bytearray(good)
        flipped[place] ^= 1 << int(generator.integers(8))
        spoilt.append(bytes(flipped))
    assert len(spoilt) > 300
    assert_all_missed(held, store, spoilt)
    assert set(held.rejected()) >= {"magic", "version", "checksum", "truncated"}


def test_every_truncation_is_a_miss(held: Held, store: KeptStore) -> None:
    good = store.get_many([held.keys[PLACE]])[0]
    assert good is not None
    lengths = {*range(HEADER_BYTES + 8), *np.linspace(0, len(good) - 1, 150).astype(int).tolist()}
    assert_all_missed(held, store, [good[:length] for length in sorted(lengths)])
    assert held.rejected() == {"truncated": len(lengths)}
    spoil(store, held, good + b"\0")
    assert held.ask() == PLACE * CHUNK
    assert held.rejected()["length"] == 1


def test_flips_and_truncations_through_redis(
    model: PreTrainedModel, redis_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(redis_server.url)
    with wrapped(model, chunks=8, store=redis_server.url) as cached:
        held = Held(cached, monkeypatch)
        good = store.get_many([held.keys[PLACE]])[0]
        assert good is not None
        spoilt = [good[:length] for length in (0, 1, HEADER_BYTES, len(good) // 2, len(good) - 1)]
        for place in flips(good, 8)[::7]:
            spoilt.append(good[:place] + bytes([good[place] ^ 0x10]) + good[place + 1 :])
        assert_all_missed(held, store, spoilt)
    store.close()


LIES: dict[str, Callable[[Record], Record]] = {
    "namespace": lambda record: replace(record, namespace=bytes(32)),
    "key": lambda record: replace(record, key=bytes(16)),
    "parent": lambda record: replace(record, parent_key=bytes(16)),
    "path": lambda record: replace(record, path_digest=bytes(32)),
    "depth": lambda record: replace(record, depth=record.depth + 1),
    "tokens": lambda record: replace(record, tokens=record.tokens[:-4] + b"\7\0\0\0"),
    "dtype": lambda record: replace(
        record, shape=replace(record.shape, dtype="float16"), payload=bytes(len(record.payload) // 2)
    ),
    "shape": lambda record: replace(
        record, shape=replace(record.shape, layers=2), payload=bytes(2 * len(record.payload))
    ),
    "values": lambda record: replace(record, payload=with_element(record.payload, float("nan"))),
}


def with_element(payload: bytes | memoryview, value: float) -> bytes:
    """Float32 elements, one of which is `value`."""
    elements = np.frombuffer(payload, "<f4").copy()
    elements[len(elements) // 3] = value
    return elements.tobytes()


@pytest.mark.parametrize("reason", LIES)
def test_a_lie_with_a_valid_checksum_is_a_miss(held: Held, store: KeptStore, reason: str) -> None:
    good = store.get_many([held.keys[PLACE]])[0]
    assert good is not None
    spoil(store, held, encode_record(LIES[reason](decode_record(good))))
    assert held.ask() == PLACE * CHUNK
    assert held.rejected() == {reason: 1}
    assert held.ask() == CHUNKS * CHUNK, "mended"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_payload_that_is_not_finite_is_a_miss(store: KeptStore, dtype: torch.dtype, value: float) -> None:
    model = small_model(dtype=dtype)
    with wrapped(model, chunks=8, store=StoreTier(store)) as cached:
        complete(cached, ROW, new=1)
        assert cached.flush()
        keys = [node.key for node in cached.engine.memory.tree.walk()]
        (good,) = store.get_many([keys[PLACE]])
        assert good is not None
        record = decode_record(good)
        elements = torch.frombuffer(bytearray(record.payload), dtype=dtype).clone()
        elements[-1] = value
        payload = elements.view(torch.uint8).numpy().tobytes()
        store.put_many([(keys[PLACE], encode_record(replace(record, payload=payload)))])
    with wrapped(model, chunks=8, store=StoreTier(store)) as cached:
        (completion,) = complete(cached, ROW, new=1)
        assert completion.error is None
        assert completion.cached_tokens == PLACE * CHUNK
        assert cached.stats()["records_rejected.values"] == 1
        assert cached.engine.memory.pool.k.isfinite().all()
        assert cached.engine.memory.pool.v.isfinite().all()


def test_records_of_another_model_or_path_under_the_right_keys(held: Held, store: KeptStore) -> None:
    other = KeptStore()
    with wrapped(small_model(seed=1), store=StoreTier(other)) as cached:
        complete(cached, ROW, new=1)
        assert cached.flush()
        foreign = [other.get_many([node.key])[0] for node in cached.engine.memory.tree.walk()]
    own = store.get_many(held.keys)
    for place, data in enumerate(foreign):
        assert data is not None
        spoil(store, held, data, place)
    assert held.ask() == 0
    assert held.rejected() == {"namespace": 1}
    # Chunks of the same path that have changed places.
    assert own[0] is not None
    assert own[1] is not None
    spoil(store, held, own[0], 1)
    spoil(store, held, own[1], 0)
    assert held.ask() == 0
    assert held.rejected() == {"namespace": 1, "key": 1}
    # The namespace's own record under a chunk's key.
    name = next(key for key in store.scan() if key not in held.keys)
    (record,) = store.get_many([name])
    assert record is not None
    spoil(store, held, record, 0)
    assert held.ask() == 0
    assert held.rejected()["key"] == 2


def test_store_keys(model: PreTrainedModel, store: KeptStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def ask() -> tuple[int, dict[str, int]]:
        with wrapped(model, store=StoreTier(store)) as cached:
            (completion,) = complete(cached, ROW, new=1)
            assert_same(model, completion)
            assert cached.flush()
            rejected = {name: n for name, n in cached.stats().items() if name.startswith("records_rejected")}
            return completion.cached_tokens, rejected

    monkeypatch.setenv("KVTRIE_STORE_KEY", "sixteen or more bytes")
    assert ask() == (0, {})
    assert ask() == (CHUNKS * CHUNK, {})
    for key in "another one of that size", None:
        if key is None:
            monkeypatch.delenv("KVTRIE_STORE_KEY")
        else:
            monkeypatch.setenv("KVTRIE_STORE_KEY", key)
        assert ask() == (0, {"records_rejected.checksum": 1})
        assert ask() == (CHUNKS * CHUNK, {}), "its own records have taken their place"
    monkeypatch.setenv("KVTRIE_STORE_KEY", "short")
    with pytest.raises(InputError, match="16 to 64 bytes"):
        ask()

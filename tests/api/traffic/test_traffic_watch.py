"""A real engine and a real sidecar, watched: what they record is what they served."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from kvtrie.api.sidecar.sidecar import PutOutcome, Sidecar, SidecarConfig
from kvtrie.api.trace import open_trace, replay
from kvtrie.api.trace.policies import fresh_policy
from kvtrie.api.traffic import recorder
from kvtrie.prefix_tree import Namespace
from kvtrie.testing import StoredPath
from tests.api.balance import CHUNK, complete, wrapped
from tests.api.tiny_models import prompts, tiny_model


def test_an_engine_records_what_it_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "trace"
    monkeypatch.setenv("KVTRIE_TRACE", str(path))
    rows = prompts([3 * CHUNK + 2, 5 * CHUNK + 1, 3 * CHUNK + 2], shared=2 * CHUNK)
    cached = 0
    with wrapped(tiny_model("llama-gqa"), tenant="acme") as wrapper:
        for row in rows:
            (done,) = complete(wrapper, row, new=CHUNK)
            cached += done.cached_tokens // CHUNK
        # A turn that goes on where the last one ended: what was generated is there.
        (done,) = complete(wrapper, [*rows[-1], *done.tokens, 5], new=1)
        cached += done.cached_tokens // CHUNK
        (done,) = complete(wrapper, rows[0], tenant="globex", new=1)
        assert done.cached_tokens == 0
        stats = wrapper.stats()
    trace = open_trace(path)
    policy, _ = fresh_policy("lru", trace, 1000)
    result = replay(trace, 1000, policy)
    assert result.matched.sum() == cached > 0
    assert trace.prompt_tokens.tolist() == [26, 41, 26, 35, 26]
    assert trace.output_tokens.tolist() == [CHUNK, CHUNK, CHUNK, 1, 1]
    assert trace.asked_blocks.tolist() == [3, 5, 3, 4, 3]
    assert len(trace.tenants) == 2
    assert (trace.times[1:] >= trace.times[:-1]).all()
    assert set(stats["what_if"]) == {"tenant:acme", "tenant:globex"}
    # Two shared chunks, then three, then what the turn before has left, of fifteen.
    assert stats["what_if"]["tenant:acme"][400] == pytest.approx(7 / 15, abs=0.07)
    assert stats["what_if"]["tenant:globex"][100] == 0.0


def test_no_token_and_no_name_is_in_an_engine_s_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "trace"
    monkeypatch.setenv("KVTRIE_TRACE", str(path))
    with wrapped(tiny_model("llama-gqa"), tenant="acme-corporation", salt="s3cret") as wrapper:
        complete(wrapper, *prompts([4 * CHUNK] * 3, shared=CHUNK), new=CHUNK)
        keys = {node.key for node in wrapper.engine.memory.tree.walk()}
    text = path.read_text()
    assert "acme" not in text
    assert "s3cret" not in text
    header, *rows = map(json.loads, text.splitlines())
    assert header["source"] == "engine"
    known = {
        int.from_bytes(key[at : at + 8], order)
        for key in keys
        for at in (0, 8)
        for order in ("little", "big")
    }
    for row in rows:
        assert set(row) <= {"t", "who", "in", "out", "ids", "after", "from", "to"}
        ids = [*row["ids"], row.get("after", 1 << 40)]
        # A token is below 211 here; a hash of 62 bits is not, but once in 2^54.
        assert all(number > 1 << 20 for number in ids)
        assert not known & {number & mask for number in ids for mask in (-1, 2**62 - 1)}
    assert len(rows) == 3


def test_a_full_disk_fails_no_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVTRIE_TRACE", str(tmp_path / "trace"))
    with wrapped(tiny_model("llama-gqa")) as wrapper:

        def fail(file: int, line: bytes) -> int:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(recorder.os, "write", fail)
        (done,) = complete(wrapper, *prompts([3 * CHUNK]))
        assert done.error is None
        assert wrapper.engine.watch.recorder is not None
        assert wrapper.engine.watch.recorder.dropped == 1


def test_an_engine_s_log_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVTRIE_TRACE", str(tmp_path / "trace"))
    monkeypatch.setenv("KVTRIE_TRACE_BYTES", "4096")
    with wrapped(tiny_model("llama-gqa"), chunks=128) as wrapper:
        for seed in range(30):
            complete(wrapper, *prompts([6 * CHUNK], seed=seed), new=1)
    sizes = [path.stat().st_size for path in tmp_path.iterdir()]
    assert len(sizes) == 2
    assert sum(sizes) <= 4096
    assert len(open_trace(tmp_path / "trace")) < 30


@pytest.fixture
def chain() -> Callable[[list[int]], StoredPath]:
    """Records of a path, in one namespace."""
    return lambda tokens: StoredPath(Namespace("tenant:x", chunk_tokens=4), tokens)


def test_a_sidecar_records_its_gets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chain: Callable[[list[int]], StoredPath]
) -> None:
    monkeypatch.setenv("KVTRIE_TRACE", str(tmp_path / "trace"))
    sidecar = Sidecar(SidecarConfig(chunk_tokens=4))
    path = chain(list(range(100, 124)))
    home = path.namespace.digest
    for _ in range(2):
        # An engine asks for what it lacks, and puts what it had to compute.
        sidecar.get("tenant:acme", home, path.keys[:4])
        sidecar.put("tenant:acme", path.records, PutOutcome())
    # One that has the first two chunks on its device asks from the third on.
    assert len(sidecar.get("tenant:acme", home, path.keys[2:])) == 4
    assert "kvtrie_sidecar_what_if_hit_ratio{" in sidecar.metrics()
    assert sidecar.what_if({"tenant:other"}) == {}
    ratios = sidecar.what_if({"tenant:acme"})["tenant:acme"]
    assert ratios[100] == pytest.approx(6 / 12, abs=0.06)
    counters = sidecar.snapshot({"tenant:acme"}).counters
    assert counters["what_if.100.tenant:acme"] == ratios[100]
    assert not any(name.startswith("what_if") for name in sidecar.snapshot({"tenant:other"}).counters)
    sidecar.close()
    trace = open_trace(tmp_path / "trace")
    assert trace.asked_blocks.tolist() == [4, 4, 4]
    assert trace.asked_from.tolist() == [0, 0, 2]
    assert trace.unique_blocks == 6
    policy, _ = fresh_policy("lru", trace, 100)
    # The last two chunks were put without having been asked for: to a trace of gets they are new.
    assert replay(trace, 100, policy).hit_ratio_blocks() == pytest.approx(6 / 12)
    assert b"acme" not in (tmp_path / "trace").read_bytes()

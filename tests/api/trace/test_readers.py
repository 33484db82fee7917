"""Every form of trace: what is read from it, and what is said of a line that is wrong."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from kvtrie.api.trace import open_trace
from kvtrie.api.trace.agent_sessions import AgentSessions
from kvtrie.api.trace.csv_arrivals import CsvArrivals
from kvtrie.api.trace.open_trace import trace_reader
from kvtrie.prefix_tree.errors import InputError

MOONCAKE = [
    {"timestamp": 0, "input_length": 1030, "output_length": 5, "hash_ids": [0, 1, 2]},
    {"timestamp": 2500, "input_length": 600, "output_length": 7, "hash_ids": [0, 9]},
]
SESSION = {
    "id": "s1",
    "block_size": 64,
    "requests": [{"t": 0.0, "in": 130, "runs": [[1, 2]]}, {"t": 9.5, "in": 260, "runs": [[1, 1], [7, 3]]}],
}
LOG_HEADER = {"format": "kvtrie-trace", "version": 1, "chunk_tokens": 16, "source": "engine"}


def lines(path: Path, *documents: object) -> Path:
    path.write_text("".join(json.dumps(document) + "\n" for document in documents))
    return path


@pytest.mark.parametrize("packed", [False, True])
def test_mooncake(tmp_path: Path, packed: bool) -> None:
    path = lines(tmp_path / "chat.jsonl", *MOONCAKE)
    if packed:
        path = path.with_name("chat.jsonl.gz")
        path.write_bytes(gzip.compress((tmp_path / "chat.jsonl").read_bytes()))
    trace = open_trace(path)
    assert (trace.name, trace.block_tokens, trace.unique_blocks, len(trace)) == ("chat", 512, 4, 2)
    assert trace.times.tolist() == [0.0, 2.5]
    assert trace.starts.tolist() == [0, 3, 5]
    assert trace.blocks.tolist() == [0, 1, 2, 0, 3]
    assert (trace.prompt_tokens.tolist(), trace.output_tokens.tolist()) == ([1030, 600], [5, 7])


def test_requests_out_of_order_are_put_in_order(tmp_path: Path) -> None:
    trace = open_trace(lines(tmp_path / "t.jsonl", *reversed(MOONCAKE)))
    assert trace.times.tolist() == [0.0, 2.5]
    assert trace.prompt_tokens.tolist() == [1030, 600]


def test_ids_that_name_contents_become_paths(tmp_path: Path) -> None:
    """Block 5 after 1 is another prefix than block 5 after 2."""
    rows = [{**MOONCAKE[0], "hash_ids": ids} for ids in ([1, 5], [2, 5], [1, 5])]
    trace = open_trace(lines(tmp_path / "t.jsonl", *rows))
    assert trace.unique_blocks == 4
    assert trace.blocks[:2].tolist() == trace.blocks[4:].tolist() != trace.blocks[2:4].tolist()
    assert trace.blocks[1] != trace.blocks[3]


def test_agent_sessions(tmp_path: Path) -> None:
    path = lines(tmp_path / "agents.jsonl", SESSION, {**SESSION, "id": "s2"})
    requests = list(AgentSessions(path).requests())
    assert [request.time_seconds for request in requests] == sorted(r.time_seconds for r in requests)
    # random.Random(7).uniform(0, 28800), twice.
    assert {r.tenant: r.time_seconds for r in reversed(requests)} == pytest.approx(
        {"s1": 9326.38, "s2": 4344.46}, abs=0.1
    )
    trace = open_trace(path)
    assert (trace.block_tokens, trace.unique_blocks, trace.tenants) == (64, 10, ("s2", "s1"))
    # Ids are local to a session: nothing is shared.
    assert not set(requests[0].blocks) & set(requests[2].blocks)
    assert len(set(requests[0].blocks) & set(requests[1].blocks)) == 1


def test_our_own_log(tmp_path: Path) -> None:
    path = lines(
        tmp_path / "log",
        LOG_HEADER,
        {"t": 5.0, "who": "t-1", "in": 40, "out": 20, "ids": [11, 12, 13], "to": 2},
        {"t": 6.0, "who": "t-2", "in": 70, "out": 0, "after": 12, "ids": [14, 15], "from": 1},
        {"t": 7.0, "who": "t-2", "in": 50, "out": 0, "after": 13, "ids": []},
    )
    trace = open_trace(path)
    assert (trace.block_tokens, trace.tenants) == (16, ("t-1", "t-2"))
    assert trace.blocks.tolist() == [0, 1, 2, 0, 1, 3, 4, 0, 1, 2]
    assert trace.asked_blocks.tolist() == [2, 3, 3]
    # The second request: block 0 was not asked for, block 1 was and is there. The third: all three.
    assert trace.served_blocks(np.array([0, 2, 3])).tolist() == [0, 1, 3]
    # One token is always left to compute.
    assert trace.served_tokens(np.array([0, 2, 3])).tolist() == [0, 16, 48]


def test_our_own_log_in_two_halves_and_after_a_restart(tmp_path: Path) -> None:
    row = {"t": 5.0, "who": "t", "in": 40, "out": 0, "ids": [11]}
    lines(tmp_path / "log.1", LOG_HEADER, row)
    path = lines(tmp_path / "log", LOG_HEADER, {**row, "t": 6.0}, LOG_HEADER, {**row, "t": 7.0, "ids": [12]})
    assert open_trace(path).blocks.tolist() == [0, 0, 1]
    # What came before a restart is not what comes after it: its blocks cannot be meant.
    lines(path, LOG_HEADER, row, LOG_HEADER, {**row, "after": 11})
    with pytest.raises(InputError, match="log line 4 comes after block 11, which no line before it has"):
        open_trace(path)


def test_csv_with_prompts(tmp_path: Path) -> None:
    path = tmp_path / "arrivals.csv"
    path.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens,prompt,tenant\n"
        '2023-11-16 18:15:46.6805900,9,44,"abcdefg\n\nijklmno",x\n'
        '2023-11-16 18:15:47.1805900,,2,"abcdefg\n????????",y\n'
    )
    reader = CsvArrivals(path, block_tokens=2)
    first, second = reader.requests()
    assert second.time_seconds - first.time_seconds == pytest.approx(0.5)
    # Four bytes are a token, two of those a block: the first is shared, the second is not.
    assert (len(first.blocks), len(second.blocks)) == (2, 2)
    assert first.blocks[0] == second.blocks[0]
    assert first.blocks[1] != second.blocks[1]
    assert (first.prompt_tokens, second.prompt_tokens, first.output_tokens) == (9, 4, 44)
    assert open_trace(path, 2).tenants == ("x", "y")
    # The same with a tokenizer: a token a word.
    words = {"a": 1, "b": 2}
    path.write_text("timestamp,prompt\n1,a b a\n2,a b b\n")
    one, two = CsvArrivals(path, 1, lambda text: [words[word] for word in text.split()]).requests()
    assert (one.blocks == two.blocks).tolist() == [True, True, False]


WRONG = {
    "not json": ("{", "line 1 is not a JSON object"),
    "a list": ("[1]", "names no column 'timestamp'"),
    "no form": ('{"a": 1}', "has none of the known forms"),
    "nothing": ("", "is empty"),
    "blank": ("\n \n", "is empty"),
    "no ids": (
        '{"timestamp":0,"input_length":1,"output_length":1,"hash_ids":[1]}\n{"timestamp":0}',
        "line 2 needs 'hash_ids'",
    ),
    "ids that are none": (
        '{"timestamp":0,"input_length":1,"hash_ids":[1.5]}',
        "line 1 needs 'hash_ids', a list of block ids",
    ),
    "a negative id": ('{"timestamp":0,"input_length":1,"hash_ids":[-1]}', "line 1 needs 'hash_ids'"),
    "an endless time": ('{"timestamp":1e999,"input_length":1,"hash_ids":[1]}', "needs 'timestamp'"),
    "no length": ('{"timestamp":0,"hash_ids":[1],"output_length":0}', "needs 'input_length'"),
    "no blocks": (
        '{"timestamp":0,"hash_ids":[],"input_length":3,"output_length":0}',
        "holds no whole block of 512",
    ),
    "a wrong run": (
        '{"id":"s","block_size":64,"requests":[{"t":0,"in":1,"runs":[[1]]}]}',
        "line 1 needs 'runs'",
    ),
    "a giant run": (
        '{"id":"s","block_size":64,"requests":[{"t":0,"in":1,"runs":[[1,99999999]]}]}',
        "more than 16777216 blocks",
    ),
    "other blocks": (
        '{"id":"s","block_size":64,"requests":[]}\n{"id":"s","block_size":32,"requests":[]}',
        "line 2 has other blocks than the 64",
    ),
    "an old version": ('{"format":"kvtrie-trace","version":9}', "has version 9; this kvtrie reads 1"),
    "an unknown parent": (
        json.dumps(LOG_HEADER) + '\n{"t":1,"who":"x","in":1,"out":0,"after":3,"ids":[]}',
        "line 2 comes after block 3",
    ),
    "arrivals alone": (
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46,374,44\n",
        "no column 'prompt'",
    ),
    "a short row": ("timestamp,prompt\n1,a\n2\n", "line 3 has 1 columns, the first line 2"),
    "a time that is none": ("timestamp,prompt\nsoon,a\n", "line 2 has 'soon' as its time"),
    "a count that is none": ("timestamp,prompt,contexttokens\n1,a,-3\n", "line 2 has '-3' as contexttokens"),
    "an open quote": ('timestamp,prompt\n1,"a\n', "is not CSV"),
}


@pytest.mark.parametrize(("content", "said"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "trace"
    path.write_text(content)
    with pytest.raises(InputError) as caught:
        open_trace(path)
    assert said in str(caught.value)
    assert str(path) in str(caught.value) or "holds no" in said
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read: No such file"):
        open_trace(tmp_path / "none")
    cut = tmp_path / "cut.gz"
    cut.write_bytes(gzip.compress(b'{"hash_ids": []}' * 99)[:-9])
    with pytest.raises(InputError, match="damaged gzip file"):
        open_trace(cut)
    cut.write_bytes(b'{"hash_ids": "\xff"}')
    with pytest.raises(InputError, match="line 1 is not UTF-8"):
        open_trace(cut)
    with pytest.raises(InputError, match="at least 1 token"):
        trace_reader(_csv(tmp_path), 0)


def _csv(folder: Path) -> Path:
    path = folder / "x.csv"
    path.write_text("timestamp,prompt\n")
    return path

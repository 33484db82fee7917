"""`kvtrie trace simulate`: tables, JSON, CSV and plots of a trace small enough to count by hand."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from kvtrie.api.trace import plot_file

FIELDS = ["policy", "capacity_fraction", "capacity_blocks", "hit_ratio_blocks", "hit_ratio_tokens"]


@pytest.fixture
def trace_file(tmp_path: Path) -> str:
    """Two tenants' requests over ten different blocks: a shared prefix that comes back, and tails that do not."""
    path = tmp_path / "chat.jsonl"
    header = {"format": "kvtrie-trace", "version": 1, "chunk_tokens": 4, "source": "engine"}
    rows = [header]
    for at, (who, ids) in enumerate(
        [("a", [1, 2, 3]), ("a", [1, 2, 4]), ("b", [7, 8]), ("a", [1, 2, 5]), ("b", [7, 8])]
    ):
        rows.append({"t": 10.0 * at, "who": who, "in": 4 * len(ids), "out": 1, "ids": ids})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_json_rows(kvtrie, trace_file):
    document = kvtrie(
        "trace",
        "simulate",
        trace_file,
        "--capacity",
        "100%,2blocks",
        "--policy",
        "lru,opt",
        "--format",
        "json",
    ).document
    assert (document["format"], document["version"]) == ("kvtrie-simulation", 1)
    rows = document["rows"]
    assert [(row["policy"], row["capacity_blocks"]) for row in rows] == [
        ("lru", 7),
        ("lru", 2),
        ("opt", 7),
        ("opt", 2),
    ]
    assert set(FIELDS) <= set(rows[0])
    # Everything fits: 2 + 2 of a's chunks and 2 of b's come back, of 13.
    assert rows[0]["hit_ratio_blocks"] == pytest.approx(6 / 13)
    # b's prompt is two whole chunks: one token of it is left to compute.
    assert rows[0]["hit_ratio_tokens"] == pytest.approx((8 + 8 + 7) / 52)
    assert rows[1]["capacity_fraction"] == pytest.approx(2 / 7)
    # Room for two: a's next finds its own prefix, then b's takes its place.
    assert rows[1]["hit_ratio_blocks"] == pytest.approx(2 / 13)
    assert rows[3]["hit_ratio_blocks"] == pytest.approx(4 / 13)
    (facts,) = document["traces"]
    assert (facts["unique_blocks"], facts["block_uses"], facts["first_uses"]) == (7, 13, 7)
    assert facts["infinite_hit_ratio"] == rows[0]["hit_ratio_blocks"]
    assert sum(facts["reuse_distance_blocks"]) == 6
    small = document["replays"][1]
    assert small["evictions"] == sum(small["lifetime_seconds"]) == sum(small["idle_seconds"]) > 0


def test_every_policy_and_tenant(kvtrie, trace_file):
    document = kvtrie(
        "trace",
        "simulate",
        trace_file,
        "--policy",
        "all",
        "--capacity",
        "50%",
        "--per-tenant",
        "--format",
        "json",
    ).document
    rows = document["rows"]
    policies = dict.fromkeys(row["policy"] for row in rows)
    assert {"lru", "lfu", "opt", "arc", "s3fifo"} <= set(policies)
    for policy in policies:
        everyone, a, b = (row for row in rows if row["policy"] == policy)
        assert (everyone["tenant"], a["tenant"], b["tenant"]) == (None, "a", "b")
        assert a["asked_blocks"] + b["asked_blocks"] == everyone["asked_blocks"]
        together = sum(row["hit_ratio_blocks"] * row["asked_blocks"] for row in (a, b))
        assert together == pytest.approx(everyone["hit_ratio_blocks"] * 13)


def test_csv(kvtrie, trace_file):
    ran = kvtrie("trace", "simulate", trace_file, trace_file, "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(ran.out)))
    assert len(rows) == 2 * 5
    assert set(FIELDS) | {"trace", "tenant"} <= set(rows[0])
    assert (rows[0]["trace"], rows[0]["tenant"], rows[0]["capacity"]) == ("chat", "", "1%")
    assert rows[5]["trace"] == "chat (2)"


def test_table(kvtrie, trace_file, tmp_path):
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"n_layer": 2, "n_head": 2, "n_embd": 8, "dtype": "float32"}))
    # 64 bytes a layer and token: a block of 4 tokens has 512 bytes.
    ran = kvtrie(
        "trace",
        "simulate",
        trace_file,
        "--capacity",
        "50%,1.5KiB",
        "--model-config",
        str(config),
        "--per-tenant",
    )
    assert ran.code == 0
    assert "5 requests of 2 tenants in 40 s" in ran.out
    assert "13 blocks of 4 tokens asked for, 7 different; a cache without limit serves 46.15%" in ran.out
    lines = [line.split() for line in ran.out.splitlines()]
    assert [
        "POLICY",
        "CAPACITY",
        "BLOCKS",
        "KV",
        "HIT",
        "RATIO",
        "OF",
        "TOKENS",
        "EVICTIONS",
        "TOOK",
    ] in lines
    assert any(line[:5] == ["lru", "1.5KiB", "3", "1.5", "KiB"] for line in lines)
    assert "tenants under lru at 50%" in ran.out
    assert "evicted blocks by time since their last use" in ran.out
    assert any(line[:2] == ["first", "use"] for line in lines)
    assert "\x1b" not in ran.out


def test_csv_prompts_with_a_tokenizer(kvtrie, tmp_path, tokenizer_file):
    path = tmp_path / "arrivals.csv"
    path.write_text("TIMESTAMP,GeneratedTokens,prompt\n1,5,w1 w2 w3\n2,5,w1 w2 w4\n")
    arguments = (
        "trace",
        "simulate",
        str(path),
        "--block-tokens",
        "1",
        "--capacity",
        "100%",
        "--format",
        "json",
    )
    document = kvtrie(*arguments, "--tokenizer", tokenizer_file).document
    # `<s> w1 w2` of four tokens comes back.
    assert document["rows"][0]["hit_ratio_blocks"] == pytest.approx(3 / 8)
    assert document["traces"][0]["prompt_tokens"] == 8


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["none.jsonl"], "trace none.jsonl cannot be read: No such file"),
        (["TRACE", "--policy", "lru,fifo9"], "policy 'fifo9' is none of 2q, arc,"),
        (["TRACE", "--policy", "lru,lru"], "names a policy twice"),
        (["TRACE", "--capacity", "5"], "is not like 5%, 4GiB or 5000blocks"),
        (["TRACE", "--capacity", "4GiB"], "pass --model-config"),
        (["TRACE", "--capacity", "0%"], "is nothing"),
        (["TRACE", "--model-config", "none.json"], "model config none.json cannot be read"),
        (["TRACE", "--plot", "x.pdf"], "must end in .png or .svg"),
        (["TRACE", "--plot", "no/such/x.svg"], "there is no folder"),
        (["TRACE", "--tokenizer", "TRACE"], "cannot use tokenizer"),
    ],
)
def test_bad_usage_is_one_line(kvtrie, trace_file, arguments, said):
    ran = kvtrie(
        "trace", "simulate", *(trace_file if argument == "TRACE" else argument for argument in arguments)
    )
    assert ran.code == 2
    assert said in ran.err


def test_without_matplotlib_a_plot_is_refused_before_anything_runs(kvtrie, trace_file, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    ran = kvtrie("trace", "simulate", trace_file, "--plot", str(tmp_path / "x.png"))
    assert ran.code == 2
    assert "pip install matplotlib" in ran.err


@pytest.mark.parametrize("form", plot_file.FORMATS)
def test_plots(kvtrie, trace_file, tmp_path, form):
    pytest.importorskip("matplotlib")
    path = tmp_path / f"plot{form}"
    again = tmp_path / f"again{form}"
    for target in (path, again):
        ran = kvtrie(
            "trace",
            "simulate",
            trace_file,
            "--policy",
            "lru,opt",
            "--capacity",
            "30%,100%",
            "--plot",
            str(target),
        )
        assert ran.code == 0
    assert path.read_bytes().startswith(b"\x89PNG" if form == ".png" else b"<?xml")
    assert path.read_bytes() == again.read_bytes(), "the same figures give the same picture"


def test_torch_is_not_needed(trace_file):
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from kvtrie.api.cli.simulate import add_arguments, run\n"
        "import argparse; parser = argparse.ArgumentParser(); add_arguments(parser)\n"
        f"sys.exit(run(parser.parse_args([{trace_file!r}, '--policy', 'lru,opt'])))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "HIT RATIO" in ran.stdout

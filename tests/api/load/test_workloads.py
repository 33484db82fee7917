"""Workloads: prompts of the same seed are equal, in any process; and they share what they should."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import subprocess
import sys
from collections import Counter, defaultdict
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import pytest

from kvtrie.api.load.draws import Draws
from kvtrie.api.load.prompt import LoadPrompt, Message
from kvtrie.api.load.thought_trees import search_prompts
from kvtrie.api.load.workload_files import ThoughtLevel, WorkloadFiles
from kvtrie.api.load.workloads import SHOTS, WORKLOADS, WorkloadConfig
from kvtrie.prefix_tree.errors import InputError

DATA = Path(__file__).resolve().parents[4] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"no data in {DATA}")


def prompts(name: str, count: int, seed: int, **config: int) -> list[LoadPrompt]:
    return WORKLOADS[name](WorkloadConfig(**config), WorkloadFiles(DATA)).prompts(count, seed)


def digest(found: list[LoadPrompt]) -> str:
    return hashlib.sha256(json.dumps([asdict(one) for one in found]).encode()).hexdigest()


@needs_data
@pytest.mark.parametrize("name", WORKLOADS)
def test_a_seed_is_all_that_prompts_depend_on(name: str) -> None:
    found = prompts(name, 60, 7, tenants=3)
    assert found == prompts(name, 60, 7, tenants=3)
    assert found != prompts(name, 60, 8, tenants=3)
    # More requests begin with the same ones.
    assert prompts(name, 90, 7, tenants=3)[:60] == found
    assert {one.tenant for one in found} == {0, 1, 2}
    other = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from tests.api.load.test_workloads import digest, prompts;"
            "print(digest(prompts(sys.argv[1], 60, 7, tenants=3)))",
            name,
        ],
        env={**os.environ, "PYTHONHASHSEED": "5"},
        cwd=Path(__file__).resolve().parents[3],
        capture_output=True,
        text=True,
        check=True,
    )
    assert other.stdout.strip() == digest(found)


def test_draws_are_even() -> None:
    draws = Draws(1, "a")
    counts = Counter(draws.below(5) for _ in range(50_000))
    # Chi-squared of four degrees of freedom exceeds 23.5 with probability 0.0001.
    assert sum((counts[value] - 10_000) ** 2 / 10_000 for value in range(5)) < 23.5
    orders = Counter(tuple(draws.shuffled("abc")) for _ in range(60_000))
    assert len(orders) == 6
    assert sum((seen - 10_000) ** 2 / 10_000 for seen in orders.values()) < 27.9
    rounds = draws.rounds(range(7))
    for _ in range(5):
        assert sorted(next(rounds) for _ in range(7)) == list(range(7))
    assert Draws(1, "a").below(1 << 30) != Draws(1, "b").below(1 << 30)


@needs_data
def test_system_prompts_one_a_tenant() -> None:
    systems = defaultdict(set)
    users = []
    for one in prompts("system-prompts", 300, 1, tenants=5):
        system, user = one.messages
        assert (system.role, user.role) == ("system", "user")
        systems[one.tenant].add(system.content)
        users.append(user.content)
    assert [len(texts) for texts in systems.values()] == [1] * 5
    assert len(set.union(*systems.values())) == 5
    # 660 questions: none twice in 300.
    assert len(set(users)) == 300


@needs_data
def test_chats_turn_by_turn() -> None:
    found = prompts("chats", 400, 1, tenants=2, live_chats=6)
    turns = defaultdict(list)
    live: set[int] = set()
    for one in found:
        assert one.chat is not None
        assert one.messages[0].role == "system" and one.messages[-1].role == "user"
        turns[one.chat].append(one)
    for chat in turns.values():
        assert len({one.tenant for one in chat}) == 1
        for before, after in pairwise(chat):
            # The next turn has the turn before, its answer, and one message more at least.
            assert after.messages[: len(before.messages)] == before.messages
            assert after.messages[len(before.messages)].role == "assistant"
            assert len(after.messages) >= len(before.messages) + 2
    # No more chats than six are between their first and last turn.
    last = {one.chat: place for place, one in enumerate(found)}
    for place, one in enumerate(found):
        live.add(one.chat)
        assert len(live) <= 6
        if last[one.chat] == place:
            live.discard(one.chat)
    assert len(turns) > 6


@needs_data
def test_few_shot_examples_of_a_tenant_come_first() -> None:
    texts = defaultdict(list)
    for one in prompts("few-shot", 40, 2, tenants=2):
        texts[one.tenant].append(one.text)
    heads = []
    for of_tenant in texts.values():
        first, last = min(of_tenant), max(of_tenant)
        shared = first[: next(n for n, (a, b) in enumerate(zip(first, last)) if a != b)]
        assert shared.count("Question: ") == SHOTS + 1 and shared.count("\nAnswer: ") == SHOTS
        assert all(text.endswith("\nAnswer:") for text in of_tenant)
        heads.append(shared)
    assert heads[0] != heads[1]


def test_prompts_of_a_search_are_those_of_the_paper() -> None:
    templates = {
        "cot_prompt": "cot {input}\n",
        "propose_prompt": "next of {input}:",
        "value_prompt": "judge {input}",
        "value_last_step_prompt": "judge {input} by {answer}",
    }
    first, second = "4 + 5 = 9 (left: 6 9 10)\n", "6 + 9 = 15 (left: 10 15)\n"
    done = "2 * 12 = 24 (left: 24)\n"
    steps = (
        ThoughtLevel("4 5 6 10", ("",), (first,)),
        ThoughtLevel("4 5 6 10", (first, done), (first + second, done + "Answer: (4 + 5) = 24\n")),
    )
    assert search_prompts(steps, templates) == [
        "next of 4 5 6 10:",
        "judge 6 9 10",
        "next of 6 9 10:",
        "cot 4 5 6 10\nSteps:\n2 * 12 = 24 (left: 24)\n",
        "judge 10 15",
        "judge 4 5 6 10 by (4 + 5) = 24".lower(),
    ]


@needs_data
def test_thought_trees_are_a_forest() -> None:
    texts = [one.text for one in prompts("thought-trees", 500, 1, live_chats=4)]
    heads = Counter(text[:100] for text in texts)
    # Four templates at most, whatever the search.
    assert len(heads) <= 4
    assert heads.most_common(1)[0][1] > 250


def test_tokens_of_a_tenant_and_of_a_prompt() -> None:
    workload = WORKLOADS["tokens"](
        WorkloadConfig(tenants=2, shared_tokens=50, own_tokens=7, vocabulary=40), WorkloadFiles(None)
    )
    heads = defaultdict(set)
    found = workload.prompts(100, 1)
    for one in found:
        assert len(one.tokens) == 57 and set(one.tokens) <= set(range(3, 40))
        heads[one.tenant].add(one.tokens[:50])
    assert [len(head) for head in heads.values()] == [1, 1]
    assert heads[0] != heads[1]
    assert len({one.tokens for one in found}) == 100


def test_text_of_messages() -> None:
    system, user = Message("system", "Be brief."), Message("user", "Why?")
    assert LoadPrompt(0, (user,)).text == "Why?"
    assert LoadPrompt(0, (system, user)).text == "System: Be brief.\n\nUser: Why?\n\nAssistant:"


def test_missing_and_wrong_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"sysprompts_fabric.*--data"):
        WORKLOADS["system-prompts"](WorkloadConfig(), WorkloadFiles(None))
    with pytest.raises(InputError, match=r"tau_airline.* not in it"):
        WORKLOADS["chats"](WorkloadConfig(), WorkloadFiles(tmp_path))
    path = tmp_path / "tau_airline_gpt4o_dev.jsonl.gz"
    for line, problem in (
        ({"traj": 3}, "a list of messages"),
        ({"traj": [{"role": "robot", "content": "x"}]}, "role 'robot'"),
        ({"traj": [{"role": "user", "content": None}]}, "without text"),
        ({"traj": [{"role": "user", "content": "x"}]}, "no turn"),
    ):
        path.write_bytes(gzip.compress(json.dumps(line).encode()))
        with pytest.raises(InputError, match=problem):
            WORKLOADS["chats"](WorkloadConfig(), WorkloadFiles(tmp_path))
    for name in ("tenants", "live_chats", "own_tokens"):
        with pytest.raises(InputError, match=f"--{name.replace('_', '-')} must be at least 1, got 0"):
            WorkloadConfig(**{name: 0})


def test_a_tool_call_and_its_result_are_shown_as_text(tmp_path: Path) -> None:
    call = {"function": {"name": "look", "arguments": "{}"}, "id": "1", "type": "function"}
    chat = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "found", "name": "look", "tool_call_id": "1"},
        {"role": "assistant", "content": "done"},
    ]
    path = tmp_path / "tau_airline_gpt4o_dev.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps({"traj": chat}).encode()))
    assert WorkloadFiles(tmp_path).chats() == [
        (
            Message("system", "s"),
            Message("user", "u"),
            Message("assistant", '[{"arguments": "{}", "name": "look"}]'),
            Message("user", "Result of the tool:\nfound"),
            Message("assistant", "done"),
        )
    ]

"""The public data that workloads are made of, read from one folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvtrie.api.load.prompt import Message
from kvtrie.api.trace.json_lines import json_lines, text_field, wrong
from kvtrie.prefix_tree.errors import InputError

SYSTEM_PROMPTS = "sysprompts_fabric_dev.jsonl.gz"
"""`{"text": a system prompt}` a line."""
CHATS = "tau_airline_gpt4o_dev.jsonl.gz"
"""`{"traj": [{"role", "content"[, "tool_calls"]}, ...]}` a line, as tau-bench writes it (Yao et al., 2024)."""
EXAMPLES = "gsm8k_fewshot16_train.jsonl.gz"
QUESTIONS = "gsm8k_test_dev.jsonl.gz"
"""`{"question", "answer"}` a line, both of GSM8K (Cobbe et al., 2021)."""
SEARCHES = "tot_game24_dev.jsonl.gz"
"""`{"steps": [{"x", "ys", "new_ys"}, ...]}` a line, as Tree of Thoughts writes it (Yao et al., 2023)."""
SEARCH_PROMPTS = "tot_game24_prompts.json"


@dataclass(frozen=True, slots=True)
class Solved:
    """A question with its answer."""

    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class ThoughtLevel:
    """One level of a tree of thoughts."""

    x: str
    """The task."""
    ys: tuple[str, ...]
    """Thoughts that were extended."""
    new_ys: tuple[str, ...]
    """Their extensions, which were judged."""


class WorkloadFiles:
    """The files of a folder; None for no folder. A file is read when it is asked for.

    Every method raises InputError where its file is missing or has another form.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def system_prompts(self) -> list[str]:
        """Texts of `SYSTEM_PROMPTS`."""
        path = self._path(SYSTEM_PROMPTS)
        return _some(path, [text_field(said, "text", path, number) for number, said in json_lines(path)])

    def solved(self, name: str) -> list[Solved]:
        """Questions of `EXAMPLES` or `QUESTIONS`."""
        path = self._path(name)
        return _some(
            path,
            [
                Solved(text_field(said, "question", path, number), text_field(said, "answer", path, number))
                for number, said in json_lines(path)
            ],
        )

    def chats(self) -> list[tuple[Message, ...]]:
        """Chats of `CHATS`.

        Chat templates differ in how they show tool calls, and some refuse them: a call is shown as the
        assistant's text, and its result as a user's message.
        """
        path = self._path(CHATS)
        found = []
        for number, said in json_lines(path):
            turns = said.get("traj")
            if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
                raise wrong(path, number, "needs 'traj', a list of messages")
            found.append(tuple(_message(turn, path, number) for turn in turns))
        return _some(path, found)

    def searches(self) -> list[tuple[ThoughtLevel, ...]]:
        """Trees of `SEARCHES`, level by level."""
        path = self._path(SEARCHES)
        found = []
        for number, said in json_lines(path):
            try:
                steps = [
                    ThoughtLevel(str(s["x"]), tuple(map(str, s["ys"])), tuple(map(str, s["new_ys"])))
                    for s in said["steps"]
                ]
            except (KeyError, TypeError):
                raise wrong(path, number, "needs 'steps', a list of {'x', 'ys', 'new_ys'}") from None
            found.append(tuple(steps))
        return _some(path, found)

    def search_prompts(self) -> dict[str, str]:
        """Templates of `SEARCH_PROMPTS` by name."""
        path = self._path(SEARCH_PROMPTS)
        try:
            said = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            said = None
        if not isinstance(said, dict) or not all(isinstance(text, str) for text in said.values()):
            raise InputError(f"{path} must be a JSON object of texts")
        return said

    def _path(self, name: str) -> Path:
        if self._folder is None:
            raise InputError(f"this workload is made of {name}: pass --data with the folder that has it")
        path = self._folder / name
        if not path.is_file():
            raise InputError(f"--data {self._folder}: this workload is made of {name}, which is not in it")
        return path


def _some(path: Path, found: list[Any]) -> list[Any]:
    if not found:
        raise InputError(f"{path} is empty")
    return found


def _message(turn: dict[str, Any], path: Path, number: int) -> Message:
    role, content = turn.get("role"), turn.get("content")
    if role == "tool":
        return Message("user", f"Result of the tool:\n{content}")
    if role not in ("system", "user", "assistant"):
        raise wrong(path, number, f"has a message of role {role!a}")
    if turn.get("tool_calls"):
        calls = json.dumps([call.get("function") for call in turn["tool_calls"]], sort_keys=True)
        content = f"{content}\n{calls}" if content else calls
    if not isinstance(content, str):
        raise wrong(path, number, "has a message without text")
    return Message(role, content)

"""Workloads that share prefixes as real ones do, and one of random tokens that needs no files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kvtrie.api.load.draws import Draws
from kvtrie.api.load.prompt import LoadPrompt, Message, Workload
from kvtrie.api.load.thought_trees import ThoughtTrees
from kvtrie.api.load.workload_files import EXAMPLES, QUESTIONS, WorkloadFiles
from kvtrie.prefix_tree.errors import InputError

SHOTS = 8
"""Examples before a question, as GSM8K is mostly measured."""


@dataclass(frozen=True, slots=True)
class WorkloadConfig:
    """What a workload can be told."""

    tenants: int = 1
    live_chats: int = 16
    """Chats that are under way at a time."""
    shared_tokens: int = 1024
    """Of `tokens`: the first tokens of every prompt of a tenant."""
    own_tokens: int = 64
    """Of `tokens`: the other tokens of a prompt."""
    vocabulary: int = 1000
    """Of `tokens`: ids are 3..vocabulary-1. Every model has that many; the lowest are often special."""

    def __post_init__(self) -> None:
        least = {"tenants": 1, "live_chats": 1, "shared_tokens": 0, "own_tokens": 1, "vocabulary": 4}
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                flag = "--" + name.replace("_", "-")
                raise InputError(f"{flag} must be at least {smallest}, got {getattr(self, name)}")


class SystemPrompts:
    """A system prompt for each tenant, and a question. A request is of any tenant, all equally likely."""

    needs_token_ids = False

    def __init__(self, config: WorkloadConfig, files: WorkloadFiles) -> None:
        self._tenants = config.tenants
        self._systems = files.system_prompts()
        self._questions = [solved.question for solved in files.solved(QUESTIONS)]

    def prompts(self, count: int, seed: int) -> list[LoadPrompt]:
        """See `Workload.prompts`."""
        draws = Draws(seed, "system prompts")
        systems = draws.shuffled(self._systems)
        questions = draws.rounds(self._questions)
        found = []
        for _ in range(count):
            tenant = draws.below(self._tenants)
            system = Message("system", systems[tenant % len(systems)])
            found.append(LoadPrompt(tenant, (system, Message("user", next(questions)))))
        return found


class Chats:
    """Chats of several turns. Each request is the next turn of one of the chats that are under way.

    A turn's prompt is the recorded chat up to there, not what the server answered: so every server gets the
    same prompts.
    """

    needs_token_ids = False

    def __init__(self, config: WorkloadConfig, files: WorkloadFiles) -> None:
        self._tenants = config.tenants
        self._live_chats = config.live_chats
        self._chats = [turns for chat in files.chats() if (turns := _turns(chat))]
        if not self._chats:
            raise InputError("no chat has an answer of the assistant: there is no turn to ask for")

    def prompts(self, count: int, seed: int) -> list[LoadPrompt]:
        """See `Workload.prompts`."""
        draws = Draws(seed, "chats")
        chats = draws.rounds(self._chats)
        # Turns that are left of each live chat, the next one last; its tenant; its number.
        live: list[tuple[list[tuple[Message, ...]], int, int]] = []
        begun = 0
        found = []
        for _ in range(count):
            while len(live) < self._live_chats:
                live.append((list(next(chats))[::-1], draws.below(self._tenants), begun))
                begun += 1
            place = draws.below(len(live))
            turns, tenant, chat = live[place]
            found.append(LoadPrompt(tenant, turns.pop(), chat=chat))
            if not turns:
                del live[place]
        return found


class FewShot:
    """Examples that a tenant has before each of its questions."""

    needs_token_ids = False

    def __init__(self, config: WorkloadConfig, files: WorkloadFiles) -> None:
        self._tenants = config.tenants
        self._examples = files.solved(EXAMPLES)
        self._questions = files.solved(QUESTIONS)

    def prompts(self, count: int, seed: int) -> list[LoadPrompt]:
        """See `Workload.prompts`."""
        draws = Draws(seed, "few-shot")
        shots = [
            "".join(f"Question: {one.question}\nAnswer: {one.answer}\n\n" for one in chosen[:SHOTS])
            for chosen in (draws.shuffled(self._examples) for _ in range(self._tenants))
        ]
        questions = draws.rounds(self._questions)
        found = []
        for _ in range(count):
            tenant = draws.below(self._tenants)
            text = f"{shots[tenant]}Question: {next(questions).question}\nAnswer:"
            found.append(LoadPrompt(tenant, (Message("user", text),)))
        return found


class TokenPrefixes:
    """Random token ids: those that a tenant's prompts begin with, and those of each prompt."""

    needs_token_ids = True

    def __init__(self, config: WorkloadConfig, files: WorkloadFiles) -> None:
        self._config = config

    def prompts(self, count: int, seed: int) -> list[LoadPrompt]:
        """See `Workload.prompts`."""
        config, draws = self._config, Draws(seed, "tokens")

        def tokens(length: int) -> tuple[int, ...]:
            return tuple(3 + draws.below(config.vocabulary - 3) for _ in range(length))

        shared = [tokens(config.shared_tokens) for _ in range(config.tenants)]
        found = []
        for _ in range(count):
            tenant = draws.below(config.tenants)
            found.append(LoadPrompt(tenant, tokens=shared[tenant] + tokens(config.own_tokens)))
        return found


WORKLOADS: dict[str, Callable[[WorkloadConfig, WorkloadFiles], Workload]] = {
    "tokens": TokenPrefixes,
    "system-prompts": SystemPrompts,
    "chats": Chats,
    "few-shot": FewShot,
    "thought-trees": lambda config, files: ThoughtTrees(config.tenants, config.live_chats, files),
}
"""Workloads by name."""


def make_workload(name: str, config: WorkloadConfig, files: WorkloadFiles) -> Workload:
    """The workload of that name.

    Raises:
        InputError: there is none, or a file that it is made of is missing or wrong.
    """
    if name not in WORKLOADS:
        raise InputError(f"workload {name!a} is none of {', '.join(WORKLOADS)}")
    return WORKLOADS[name](config, files)


def _turns(chat: tuple[Message, ...]) -> list[tuple[Message, ...]]:
    """What is before each answer of the assistant."""
    return [chat[:place] for place, message in enumerate(chat) if message.role == "assistant" and place]

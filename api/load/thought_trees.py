"""Trees of thoughts over the game of 24: the prompts that a search sends, level by level.

Yao et al., "Tree of Thoughts" (NeurIPS 2023), §4.1. A level asks for extensions of each of its thoughts
(`propose`), then for a judgement of each extension (`value`). Prompts of one kind begin with the same examples.
"""

from __future__ import annotations

from kvtrie.api.load.draws import Draws
from kvtrie.api.load.prompt import LoadPrompt, Message
from kvtrie.api.load.workload_files import SEARCH_PROMPTS, ThoughtLevel, WorkloadFiles
from kvtrie.prefix_tree.errors import InputError

_TEMPLATES = ("cot_prompt", "propose_prompt", "value_prompt", "value_last_step_prompt")


class ThoughtTrees:
    """See `Workload`. Each request is the next one of one of the searches that are under way.

    Args:
        tenants: a search belongs to one of them.
        live_searches: searches that are under way at a time.
    """

    needs_token_ids = False

    def __init__(self, tenants: int, live_searches: int, files: WorkloadFiles) -> None:
        self._tenants = tenants
        self._live_searches = live_searches
        templates = files.search_prompts()
        missing = [name for name in _TEMPLATES if name not in templates]
        if missing:
            raise InputError(f"{SEARCH_PROMPTS} has no {missing[0]!a}")
        self._searches = [search_prompts(steps, templates) for steps in files.searches()]

    def prompts(self, count: int, seed: int) -> list[LoadPrompt]:
        """See `Workload.prompts`."""
        draws = Draws(seed, "thought trees")
        searches = draws.rounds([search for search in self._searches if search])
        # Prompts that are left of each live search, the next one last; its tenant.
        live: list[tuple[list[str], int]] = []
        found = []
        for _ in range(count):
            while len(live) < self._live_searches:
                live.append((next(searches)[::-1], draws.below(self._tenants)))
            place = draws.below(len(live))
            texts, tenant = live[place]
            found.append(LoadPrompt(tenant, (Message("user", texts.pop()),)))
            if not texts:
                del live[place]
        return found


def search_prompts(steps: tuple[ThoughtLevel, ...], templates: dict[str, str]) -> list[str]:
    """The prompts of one search, in the order in which they are sent."""
    found = []
    for step in steps:
        found += [_propose(step.x, thought, templates) for thought in step.ys]
        found += [_value(step.x, thought, templates) for thought in step.new_ys]
    return found


def _propose(task: str, thought: str, templates: dict[str, str]) -> str:
    numbers = _left(thought) if thought else task
    # The numbers are down to the result: what is asked for is the whole expression.
    if numbers == "24":
        return templates["cot_prompt"].format(input=task) + "Steps:\n" + thought
    return templates["propose_prompt"].format(input=numbers)


def _value(task: str, thought: str, templates: dict[str, str]) -> str:
    last_line = thought.strip().split("\n")[-1]
    if "left: " not in last_line:
        answer = last_line.lower().replace("answer: ", "")
        return templates["value_last_step_prompt"].format(input=task, answer=answer)
    return templates["value_prompt"].format(input=_left(thought))


def _left(thought: str) -> str:
    """The numbers that a thought's last line leaves: `4 + 5 = 9 (left: 6 9 10)` leaves `6 9 10`."""
    return thought.strip().split("\n")[-1].split("left: ")[-1].split(")")[0]

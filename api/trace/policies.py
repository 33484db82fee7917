"""Every policy that can be simulated: the tree's own, and OPT, which needs the trace."""

from __future__ import annotations

from collections.abc import Callable

from kvtrie.api.trace.opt import FarthestNextUse
from kvtrie.api.trace.trace import Trace
from kvtrie.prefix_tree import EvictionPolicy
from kvtrie.prefix_tree.errors import InputError
from kvtrie.prefix_tree.policies.named import POLICIES, policy_named

OPT = "opt"


def simulated_policies() -> tuple[str, ...]:
    """Names for `--policy`, sorted, OPT last."""
    return (*sorted(POLICIES), OPT)


def check_policy(name: str) -> None:
    """Whether there is a policy of that name.

    Raises:
        InputError: there is none; names those that there are.
    """
    if name not in simulated_policies():
        raise InputError(f"policy {name!a} is none of {', '.join(simulated_policies())}")


def fresh_policy(
    name: str, trace: Trace, capacity_blocks: int
) -> tuple[EvictionPolicy, Callable[[int], None] | None]:
    """A policy for one replay of `trace`, and a function to call with the index of each request, or None.

    Raises:
        InputError: there is no policy of that name.
    """
    check_policy(name)
    if name == OPT:
        opt = FarthestNextUse(trace)
        return opt, opt.before_request
    return policy_named(name, capacity_chunks=capacity_blocks), None

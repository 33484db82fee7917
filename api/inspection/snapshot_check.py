"""Checks a snapshot that came from a file or a network.

`Snapshot.from_json` reads the document; `parse_snapshot` also checks every value in it, so that readers of a
snapshot need not expect a text in place of a number, a cycle, or a parent that does not exist.
"""

from __future__ import annotations

import math
import re
from dataclasses import fields, is_dataclass
from functools import lru_cache
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from kvtrie.prefix_tree.errors import InputError
from kvtrie.prefix_tree.snapshot import REMEDY, Snapshot

_DIGEST = re.compile("[0-9a-f]{64}")
_KEY = re.compile("(?:[0-9a-f]{2})+")
_LARGEST = (1 << 63) - 1


def parse_snapshot(text: str | bytes) -> Snapshot:
    """Reads a snapshot document and checks all of it.

    Raises:
        InputError: it is not a snapshot, or a value in it is of the wrong type or contradicts another.
    """
    snapshot = Snapshot.from_json(text)
    _check_types(snapshot, Snapshot, "")
    _check_structure(snapshot)
    return snapshot


def _check_types(value: object, wanted: Any, where: str) -> None:
    origin = get_origin(wanted)
    # 1. Unions, such as `str | int`.
    if origin in (Union, UnionType):
        kinds = get_args(wanted)
        if value is None and NoneType in kinds:
            return
        others = [kind for kind in kinds if kind is not NoneType]
        # Unions are of plain types, or of one other type and None.
        if len(others) == 1:
            _check_types(value, others[0], where)
        elif type(value) not in others or not _is_finite(value):
            raise _damaged(where, value)
    # 2. Lists; those of integers (tokens) without a call per item.
    elif origin is list:
        if not isinstance(value, list):
            raise _damaged(where, value)
        (kind,) = get_args(wanted)
        if kind is int:
            if not all(type(item) is int for item in value):
                raise _damaged(where, value)
            return
        for i, item in enumerate(value):
            _check_types(item, kind, f"{where}[{i}]")
    # 3. Mappings, whose keys are always texts in JSON.
    elif origin is dict:
        if not isinstance(value, dict):
            raise _damaged(where, value)
        for name, item in value.items():
            _check_types(item, get_args(wanted)[1], f"{where}.{name}".lstrip("."))
    # 4. Nested views, field by field.
    elif isinstance(wanted, type) and is_dataclass(wanted):
        for name, kind in _kinds(wanted).items():
            _check_types(getattr(value, name), kind, f"{where}.{name}".lstrip("."))
    # 5. Plain values; JSON writes some floats as integers.
    elif wanted is float:
        if type(value) not in (int, float) or not _is_finite(value):
            raise _damaged(where, value)
    elif type(value) is not wanted or not _is_finite(value):
        raise _damaged(where, value)


@lru_cache(maxsize=16)
def _kinds(of: type[Any]) -> dict[str, Any]:
    hints = get_type_hints(of)
    return {f.name: hints[f.name] for f in fields(of)}


def _is_finite(value: object) -> bool:
    if isinstance(value, float):
        return math.isfinite(value) and abs(value) <= _LARGEST
    return not isinstance(value, int) or abs(value) <= _LARGEST


def _check_structure(snapshot: Snapshot) -> None:
    # 1. Namespaces.
    for i, namespace in enumerate(snapshot.namespaces):
        if not _DIGEST.fullmatch(namespace.digest):
            raise _damaged(f"namespaces[{i}].digest", namespace.digest)
        if int(namespace.fields["chunk_tokens"]) < 1:
            raise _damaged(f"namespaces[{i}].fields.chunk_tokens", namespace.fields["chunk_tokens"])
    # 2. Nodes, parents first: what they name must exist.
    depths: dict[int, int] = {}
    for i, node in enumerate(snapshot.nodes):
        where = f"nodes[{i}]"
        if node.id in depths:
            raise _damaged(f"{where}.id", node.id)
        if not 0 <= node.namespace < len(snapshot.namespaces):
            raise _damaged(f"{where}.namespace", node.namespace)
        if node.parent is not None and node.parent not in depths:
            raise _damaged(f"{where}.parent", node.parent)
        # 3. Each one's own values must fit its parent and its namespace.
        above = 0 if node.parent is None else depths[node.parent]
        # A chunk whose parent a store lacks may be at any depth.
        if node.depth < 1 or (node.parent is not None and node.depth != above + 1):
            raise _damaged(f"{where}.depth", node.depth)
        if not _KEY.fullmatch(node.key):
            raise _damaged(f"{where}.key", node.key)
        if len(node.tokens) != snapshot.namespaces[node.namespace].fields["chunk_tokens"]:
            raise _damaged(f"{where}.tokens", f"{len(node.tokens)} tokens")
        if min(node.tokens) < 0 or max(node.tokens) > 0x7FFFFFFF:
            raise _damaged(f"{where}.tokens", "a token id outside 0..2147483647")
        depths[node.id] = node.depth


def _damaged(where: str, value: object) -> InputError:
    # The value is from outside: ascii() makes it one line without control characters.
    shown = ascii(value)
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    return InputError(f"damaged kvtrie snapshot: {ascii(where)[1:-1]} cannot be {shown}; {REMEDY}")

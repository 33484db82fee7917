"""Homes: a client's namespace in one scope of a sidecar; and the homes without chunks."""

from __future__ import annotations

from dataclasses import dataclass, field

from kvtrie.api.tiers.record_link import RecordLink
from kvtrie.prefix_tree import Node, Root

NAMESPACE_BYTES = 4096
"""Bytes charged for a namespace besides its record."""


@dataclass(slots=True, eq=False)
class Home:
    """One client namespace in one scope: the root of its paths, and its chunks by key."""

    scope: str
    namespace: bytes
    """32 bytes, as the client computed it."""
    root: Root
    by_key: dict[bytes, Node] = field(default_factory=dict)
    """Held chunks by the client's chunk key."""
    record: bytes | None = None
    """The namespace record; None until a client has sent it."""
    fields: dict[str, str | int] = field(default_factory=dict)
    """Fields of the namespace record, for people."""

    @property
    def own_bytes(self) -> int:
        """Bytes charged for it besides its chunks."""
        return NAMESPACE_BYTES + len(self.record or b"")


@dataclass(frozen=True, slots=True)
class HeldRecord:
    """A chunk's handle in the tree."""

    home: Home
    link: RecordLink
    data: bytes
    """The encoded record, as it was put."""


class EmptyHomes:
    """Namespaces that hold no chunk, the one that has held none for longest first; of all scopes and of each."""

    def __init__(self) -> None:
        self._all: dict[Home, None] = {}
        self._of_scope: dict[str, dict[Home, None]] = {}

    def add(self, home: Home) -> None:
        """Notes that a home has lost its last chunk, or is new."""
        self._all[home] = None
        self._of_scope.setdefault(home.scope, {})[home] = None

    def discard(self, home: Home) -> None:
        """Notes that a home has a chunk, or is forgotten."""
        if home in self._all:
            del self._all[home]
            of_scope = self._of_scope[home.scope]
            del of_scope[home]
            if not of_scope:
                del self._of_scope[home.scope]

    def oldest(self, spared: Home | None, scope: str | None) -> Home | None:
        """The home of one scope, or of any, that has been without chunks for longest and is not `spared`."""
        among = self._all if scope is None else self._of_scope.get(scope, {})
        return next((home for home in among if home is not spared), None)

"""Settings of a server, apart from the model's."""

from __future__ import annotations

from dataclasses import dataclass, field

from kvtrie.api.http.record_frames import Limits
from kvtrie.prefix_tree.errors import InputError


def default_limits() -> Limits:
    """Limits of connections: more than a sidecar's, since each request of a client may take minutes."""
    return Limits(
        request_seconds=3600.0,
        max_connections=2048,
        max_unknown_per_address=1024,
        max_connections_per_key=1536,
    )


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """Settings of a server.

    Raises:
        InputError: no name, or a limit that is not positive.
    """

    names: tuple[str, ...]
    """Names that the model is served by; the first one is what replies call it."""
    source: str
    """What the model was loaded from, as /v1/models shows it."""
    max_body_bytes: int = 16 << 20
    """Longest body of a request."""
    body_seconds: float = 60.0
    """Most time for a body to arrive."""
    stall_seconds: float = 60.0
    """Most time that a client may leave a piece of a stream unread."""
    drain_seconds: float = 30.0
    """Time that requests in progress get to finish after SIGTERM or SIGINT."""
    failed_seconds: float = 5.0
    """Time between the end of the engine's thread and the end of the process: /readyz answers 503 meanwhile."""
    chat_bytes: int = 64 << 20
    """For texts and tokens of answered chats, whose next turns continue these tokens; 0 keeps none."""
    limits: Limits = field(default_factory=default_limits)
    """Of connections and requests."""

    def __post_init__(self) -> None:
        if not self.names or not all(self.names):
            raise InputError(f"a model needs a name to be served by, got {self.names!r}")
        for name in ("max_body_bytes", "body_seconds", "stall_seconds", "drain_seconds", "failed_seconds"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} must be above 0, got {getattr(self, name)}")

    @property
    def receive_bytes(self) -> int:
        """Most bytes of bodies that are not whole yet: one caller may hold half of it."""
        return 8 * self.max_body_bytes

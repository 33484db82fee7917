"""Pins that clients have set, by id."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from kvtrie.api.huggingface.cached_model import PrefixCachedModel
from kvtrie.api.server.replies import PinCard
from kvtrie.prefix_tree import Pin


@dataclass(frozen=True, slots=True)
class _Set:
    """A pin, and what is shown of it."""

    pin: Pin
    card: PinCard

    @property
    def is_over(self) -> bool:
        return self.card.expires_at is not None and self.card.expires_at <= time.time()


class PinShelf:
    """Thread-safe. Pins that are over are dropped when the shelf is looked at."""

    def __init__(self, model: PrefixCachedModel) -> None:
        self._model = model
        self._lock = threading.Lock()
        self._pins: dict[str, _Set] = {}

    def pin(self, tokens: Sequence[int], tenant: str, name: str, seconds: float | None) -> PinCard:
        """Computes a prompt's whole chunks where they are not cached, and holds them.

        Args:
            tokens: the prompt.
            tenant: in whose scope.
            name: shown in dumps beside the pin.
            seconds: None until `unpin`.

        Raises:
            InputError: the prompt has no whole chunk, or cannot be run.
            PinBudgetExceeded: the scope's pins would exceed their budget.
            PoolExhausted: it does not fit the pool.
        """
        warmed = self._model.warm(
            list(tokens), tenant=tenant, pin=True if seconds is None else seconds, name=name
        )
        assert warmed.pin is not None
        card = PinCard(
            id=f"pin-{uuid.uuid4().hex}",
            name=name,
            scope=f"tenant:{tenant}",
            tokens=warmed.tokens,
            pinned_tokens=warmed.stored_tokens,
            expires_at=warmed.pin.expires_at,
        )
        with self._lock:
            self._drop_over()
            self._pins[card.id] = _Set(warmed.pin, card)
        return card

    def cards(self, scope: str | None) -> list[PinCard]:
        """Pins in force of a scope, or of all, the oldest first."""
        with self._lock:
            self._drop_over()
            return [one.card for one in self._pins.values() if scope in (None, one.card.scope)]

    def unpin(self, pin_id: str, scope: str | None) -> bool:
        """Ends a pin; False where no such pin of the scope is in force."""
        with self._lock:
            self._drop_over()
            found = self._pins.get(pin_id)
            if found is None or scope not in (None, found.card.scope):
                return False
            del self._pins[pin_id]
        self._model.unpin(found.pin)
        return True

    def _drop_over(self) -> None:
        self._pins = {pin_id: one for pin_id, one in self._pins.items() if not one.is_over}

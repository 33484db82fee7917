"""Every error kvtrie raises, in one place.

    KvtrieError
    ├── InputError (ValueError)        what the caller passed cannot work; the message says what would
    │   ├── UnsupportedModel           the model, layer or generation mode is not one kvtrie can serve
    │   └── AccessDenied               an API key or scope that does not exist or may not be read
    ├── CapacityError                  something of a fixed size is too small for what was asked
    │   ├── PoolExhausted              a request needs more slots than the pool can ever free
    │   └── PinBudgetExceeded          a pin would hold more than its scope may pin
    ├── StoreError                     a lower tier failed; the engine answers by recomputing
    │   ├── StoreUnavailable           unreachable, or past its deadline
    │   └── StoreFull                  reachable, but it refuses to take more
    ├── RecordError                    bytes that are not the record that was asked for
    ├── ModelOutputError               the model produced NaN or infinity; nothing of that step is kept
    ├── LibraryChanged                 an installed library works in a way kvtrie was not written for
    └── PackageMissing                 a package that kvtrie does not depend on is needed, and not installed

A miss is never an error: it is `None`, or a shorter match.
"""

from __future__ import annotations


class KvtrieError(Exception):
    """Root of every error raised by kvtrie."""


class InputError(KvtrieError, ValueError):
    """A value that the caller passed cannot work; the message names the value and the way out."""


class UnsupportedModel(InputError):
    """The model, one of its layers, or the generation mode cannot be served exactly."""


class AccessDenied(InputError):
    """An API key or scope that does not exist, or that this tenant may not read."""


class CapacityError(KvtrieError):
    """Something of a fixed size is too small for what was asked of it."""


class PoolExhausted(CapacityError):
    """A request needs more slots than the pool can ever free for it."""


class PinBudgetExceeded(CapacityError):
    """A pin would hold more bytes than its scope may pin."""


class StoreError(KvtrieError):
    """A lower tier failed. Requests go on without it."""


class StoreUnavailable(StoreError):
    """The store cannot be reached, or did not answer within its deadline."""


class StoreFull(StoreError):
    """The store answers, but refuses to take more bytes."""


class RecordError(KvtrieError):
    """Bytes that are not the record that was asked for.

    `reason` is one word fit for a metric label: `magic`, `version`, `truncated`, `length`, `checksum`,
    `namespace`, `key`, `parent`, `path`, `depth`, `tokens`, `shape`, `dtype`, `codec`, `values`.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


class ModelOutputError(KvtrieError):
    """The model produced NaN or infinity. Nothing computed in that step was kept."""


class LibraryChanged(KvtrieError):
    """An installed library works in a way that kvtrie was not written for; going on could give wrong results."""


class PackageMissing(KvtrieError):
    """A package that is no dependency of kvtrie was asked for; the message has the command that installs it."""

"""An error that a contract asks for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def expected_error(kind: type[Exception], says: str = "") -> Iterator[None]:
    """The block must raise `kind`, or an error derived from it.

    Args:
        kind: class of the error.
        says: what its message must contain.

    Raises:
        AssertionError: the block raised nothing, or an error whose message does not contain `says`. Errors of other
            classes are raised as they are.
    """
    try:
        yield
    except kind as error:
        if says not in str(error):
            raise AssertionError(f"the message of {error!r} does not contain {says!r}") from error
    else:
        raise AssertionError(f"nothing was raised in place of {kind.__name__}")

"""Which checks of a suite fail, without a test runner."""

from __future__ import annotations


def failed_checks(suite: type) -> set[str]:
    """Runs every check of a suite; the names of those that raised, without `test_`."""
    failed = set()
    for name in dir(suite):
        if name.startswith("test_"):
            try:
                getattr(suite(), name)()
            except Exception:
                failed.add(name.removeprefix("test_"))
    return failed

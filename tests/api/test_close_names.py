"""Names like a mistyped one."""

from __future__ import annotations

import pytest

from kvtrie.api.close_names import close_names

KNOWN = ["tenant:acme", "tenant:acme-eu", "tenant:globex", "shared:tools"]


@pytest.mark.parametrize(
    ("name", "close"),
    [
        ("tenant:acem", ["tenant:acme"]),
        ("acme-eU", ["tenant:acme-eu", "tenant:acme"]),
        ("tenant:tolls", ["shared:tools"]),
        ("tenant:", []),
        ("", []),
        ("tenant:initech", []),
    ],
)
def test_close_names(name, close):
    assert close_names(name, KNOWN) == close


def test_at_most_five():
    assert close_names("tenant", [f"tenant{i}" for i in range(9)]) == [f"tenant{i}" for i in range(5)]

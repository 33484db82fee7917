"""Real sidecar processes, records for them, and servers that are none, for the tests of every room; and an engine
that expects too little."""

import pytest

from kvtrie.api.engine import admission
from tests.api.sidecar.conftest import answering, chain, sidecar, start_sidecar
from tests.api.tiny_models import VOCABULARY

__all__ = ["answering", "chain", "sidecar", "start_sidecar"]


@pytest.fixture
def underrated(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """An end token that no answer has, so that each grows longer than the engine expects, and memory runs out."""
    monkeypatch.setattr(admission, "_FIRST_GUESS_TOKENS", 0.0)
    monkeypatch.setattr(admission, "_WEIGHT", 0.0)
    return {VOCABULARY - 1}

"""Real sidecar processes, records for them, and servers that are none, for the tests of every room."""

from tests.api.sidecar.conftest import answering, chain, sidecar, start_sidecar

__all__ = ["answering", "chain", "sidecar", "start_sidecar"]

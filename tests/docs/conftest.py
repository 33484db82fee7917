"""Real sidecar processes for the tests of the pages."""

from tests.api.sidecar.conftest import chain, start_sidecar

__all__ = ["chain", "start_sidecar"]

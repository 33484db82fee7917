"""Real sidecar processes, and servers that are none, for the tests of the wrapper, too."""

from tests.api.sidecar.conftest import answering, start_sidecar

__all__ = ["answering", "start_sidecar"]

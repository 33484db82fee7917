"""Real and made traces, as the tests of the lab have them."""

from tests.api.trace.conftest import make_trace, random_paths, real_trace

__all__ = ["make_trace", "random_paths", "real_trace"]

"""The published contract of lower tiers, run on each of ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from kvtrie.api import LowerTier, SidecarTier
from kvtrie.api.tiers.open_tier import open_lower
from kvtrie.api.tiers.store_tier import StoreTier
from kvtrie.store import MemoryStore
from kvtrie.testing import LowerTierContract


class TestStoreTier(LowerTierContract):
    def make_tier(self) -> LowerTier:
        return StoreTier(MemoryStore())


class TestStoreTierOverRedis(LowerTierContract):
    @pytest.fixture(autouse=True)
    def _server(self, redis_server: Any) -> None:
        self.url = redis_server.url

    def make_tier(self) -> LowerTier:
        return open_lower(self.url)


class TestSidecarTier(LowerTierContract):
    @pytest.fixture(autouse=True, params=["tcp", "unix"])
    def _sidecar(self, request: pytest.FixtureRequest, start_sidecar: Callable[..., Any]) -> None:
        sidecar = start_sidecar()
        self.url = sidecar.url if request.param == "tcp" else sidecar.unix_url

    def make_tier(self) -> LowerTier:
        return SidecarTier(self.url, deadline_seconds=10.0)

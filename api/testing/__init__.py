"""Contract suites: whoever writes a store, a lower tier or an eviction policy runs the checks that ours pass.

    from kvtrie.testing import StoreContract

    class TestMyStore(StoreContract):
        def make_store(self) -> Store:
            return MyStore()

pytest finds the checks in the subclass: a method each, whose docstring is the rule that it holds the store to. The
suites themselves import no test runner. In the repository this folder is `api/testing`.
"""

import sys

if (_pytest := sys.modules.get("pytest")) is not None:
    # Before the suites are imported: a check that fails then shows the values that it compared.
    _pytest.register_assert_rewrite(
        *(f"{__name__}.{name}_contract" for name in ("eviction", "store", "tier"))
    )

from kvtrie.testing.eviction_contract import EvictionPolicyContract
from kvtrie.testing.one_tier_tree import OneTierTree
from kvtrie.testing.store_contract import StoreContract
from kvtrie.testing.stored_path import StoredPath
from kvtrie.testing.tier_contract import LowerTierContract

__all__ = ["EvictionPolicyContract", "LowerTierContract", "OneTierTree", "StoreContract", "StoredPath"]

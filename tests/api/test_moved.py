"""Imports by names of before: each says the present name, and all other imports are as ever."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kvtrie.api.moved import MOVED, RENAMED

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("former", MOVED)
def test_an_import_by_a_former_name_says_the_present_one(former: str) -> None:
    """The present name is a module that there is, and has the names that changed, in place of the former ones."""
    with pytest.raises(ModuleNotFoundError, match=f"the module {former} is {MOVED[former]} now") as refused:
        importlib.import_module(former)
    assert refused.value.name == former
    present = importlib.import_module(MOVED[former])
    for old, new in RENAMED.get(former, {}).items():
        assert f"; {old} is {new}" in str(refused.value)
        assert hasattr(present, new) and not hasattr(present, old)


def test_every_renamed_name_is_of_a_module_that_moved() -> None:
    assert set(RENAMED) <= set(MOVED)


@pytest.mark.parametrize(
    ("statement", "says"),
    [
        ("from kvtrie.prefix_tree.claims import Claim", "kvtrie.prefix_tree.node now"),
        ("from kvtrie.chunk_kernels.slots import SlotAllocator", "kvtrie.chunk_kernels.slot_allocator now"),
        ("from kvtrie.api.sidecar.client import SidecarTier", "kvtrie.api.tiers.sidecar_tier now"),
        ("import kvtrie.api.cached_model as m", "kvtrie.api.huggingface.cached_model now"),
        ("import kvtrie.api.nothing", "No module named 'kvtrie.api.nothing'"),
        ("import kvtrie.nothing.at_all", "No module named 'kvtrie.nothing'"),
    ],
)
def test_in_a_process_that_has_loaded_nothing_else(statement: str, says: str) -> None:
    ran = subprocess.run([sys.executable, "-c", statement], capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    last = ran.stderr.splitlines()[-1]
    assert last.startswith("ModuleNotFoundError: ") and last.endswith(says)


def test_an_import_of_nothing_of_ours_loads_nothing_of_ours() -> None:
    code = (
        "import sys, kvtrie\n"
        "try:\n    import kvtrie_of_others\nexcept ModuleNotFoundError:\n    pass\n"
        "assert not [name for name in sys.modules if name.startswith('kvtrie.')]"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


def test_a_missing_table_is_a_plain_error() -> None:
    """An installation without it: the import fails once, and does not look for it without end."""
    code = (
        "import sys, kvtrie\nkvtrie.__path__ = []\nsys.meta_path = sys.meta_path[-1:]\n"
        "import kvtrie.api.cached_model"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.stderr.splitlines()[-1] == "ModuleNotFoundError: No module named 'kvtrie.api'"


def test_the_engine_is_a_package_with_the_names_that_the_module_had() -> None:
    from kvtrie.api.engine import Engine, EngineConfig

    assert Engine.__module__ == "kvtrie.api.engine.engine"
    assert EngineConfig.__module__ == "kvtrie.api.engine.engine_config"


def test_readme_and_guides_name_no_former_module() -> None:
    guides = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *(REPOSITORY / "docs").glob("*.md")]
    text = "\n".join(guide.read_text() for guide in guides)
    assert [former for former in MOVED if re.search(rf"\b{re.escape(former)}\b(?!\.\w)", text)] == []

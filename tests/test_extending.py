"""Every program of docs/extending.md runs, passes its contract suite, and serves."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from kvtrie.api.tiers.store_tier import StoreTier
from kvtrie.testing import EvictionPolicyContract, LowerTierContract, StoreContract
from tests.api.balance import CHUNK, assert_same, complete, wrapped
from tests.api.lower_tiers import small_model
from tests.api.tiny_models import prompts

REPOSITORY = Path(__file__).resolve().parent.parent
GUIDE = (REPOSITORY / "docs" / "extending.md").read_text()
POLICY, STORE, TIER, FAMILY = re.findall(r"^```python\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)


def run_tests(program: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs a program's tests as a reader does, outside this repository."""
    (folder / "test_it.py").write_text(program)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_it.py"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def checks(suite: type) -> int:
    return sum(name.startswith("test_") for name in dir(suite))


@pytest.mark.parametrize(
    ("program", "tests"),
    [
        (POLICY, checks(EvictionPolicyContract) + 1),
        (STORE, checks(StoreContract)),
        (TIER, checks(LowerTierContract)),
    ],
    ids=["policy", "store", "tier"],
)
def test_a_program_passes_every_check_of_its_suite(program: str, tests: int, tmp_path: Path) -> None:
    ran = run_tests(program, tmp_path)
    assert ran.returncode == 0, ran.stdout
    assert f"\n{tests} passed in " in ran.stdout


def test_a_check_that_fails_says_its_rule_and_shows_what_it_compared(tmp_path: Path) -> None:
    """A tier that goes on after a gap. pytest shows values in other files than tests only where it is told to."""
    broken = TIER.replace("break  #", "continue  #")
    assert broken != TIER
    ran = run_tests(broken, tmp_path)
    assert ran.returncode == 1
    assert "1 failed" in ran.stdout
    assert "test_a_load_ends_at_the_first_chunk_that_is_missing" in ran.stdout
    assert "returns the longest held prefix of `keys`" in ran.stdout
    assert "Left contains one more item" in ran.stdout


def module_of(program: str) -> Any:
    module = ModuleType("extension")
    exec(compile(program, "docs/extending.md", "exec"), module.__dict__)
    return module


@pytest.mark.parametrize("kind", ["store", "tier"])
def test_an_engine_is_served_by_the_store_and_by_the_tier(kind: str, tmp_path: Path) -> None:
    """Chunks that the device evicted are loaded again, and every output is the model's own."""
    tier = (
        StoreTier(module_of(STORE).SqliteStore(str(tmp_path / "kv.db")))
        if kind == "store"
        else module_of(TIER).RecentRecords(1 << 20)
    )
    model, rows = small_model(), prompts([40, 37, 50, 45, 33], shared=20)
    with wrapped(model, chunks=8, chunk_tokens=CHUNK, store=tier) as cached:
        for _ in range(2):
            for row in rows:
                assert_same(model, *complete(cached, row))
            assert cached.flush()
        stats = cached.stats()
        assert stats["evictions"] > 0 and stats["loaded_chunks"] > 0


def test_the_family_of_the_guide_is_exact_and_warm() -> None:
    ran = subprocess.run([sys.executable, "-c", FAMILY], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    # A hit leaves at least one of 41 tokens to compute, and whole chunks of 8 are shared.
    assert ran.stdout == "40 tokens came from the cache\n"


def test_the_guide_names_files_that_there_are_and_can_be_read_raw() -> None:
    named = re.findall(r"`((?:api|prefix_tree|store|tests|docs)/[\w/]+\.py)`", GUIDE)
    assert len(named) > 5
    assert [name for name in named if not (REPOSITORY / name).exists()] == []
    assert [line for line in GUIDE.splitlines() if len(line) > 110] == []

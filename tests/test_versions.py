"""The lock, the floors and the tested versions agree with pyproject.toml, and so with each other."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from kvtrie.api.inspection.machine import PACKAGES
from kvtrie.api.inspection.version_range import VersionRange, ranges_tested

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture
def versions(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """requirements/versions.py, which is a script and in no package."""
    spec = importlib.util.spec_from_file_location(
        "requirements_versions", REPOSITORY / "requirements" / "versions.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up.
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def pyproject(directory: Path, core: str) -> Path:
    (directory / "pyproject.toml").write_text(
        f"""
        [build-system]
        requires = ["setuptools>=77.0.3"]
        [project]
        dependencies = [{core}]
        [project.optional-dependencies]
        all = ["redis>=5.0", "tomli>=2.0; python_version < '3.11'"]
        dev = ["pytest>=8.0"]
        """
    )
    return directory


def test_floors_are_those_of_pyproject_and_torch_has_none(versions, tmp_path, monkeypatch):
    monkeypatch.setattr(versions, "REPOSITORY", pyproject(tmp_path, '"numpy>=1.26", "torch>=2.11"'))
    assert versions.floors() == [
        "numpy==1.26",
        "pytest==8.0",
        "redis==5.0",
        "setuptools==77.0.3",
        "tomli==2.0; python_version < '3.11'",
    ]


@pytest.mark.parametrize("line", ["numpy", "numpy>=1.26,<3", "numpy~=1.26", "numpy[all]>=1.26"])
def test_a_dependency_without_one_floor_is_refused(versions, tmp_path, monkeypatch, line):
    monkeypatch.setattr(versions, "REPOSITORY", pyproject(tmp_path, f'"{line}"'))
    with pytest.raises(ValueError, match=re.escape(line)):
        versions.floors()


def test_two_floors_of_one_package_are_refused(versions, tmp_path, monkeypatch):
    monkeypatch.setattr(versions, "REPOSITORY", pyproject(tmp_path, '"redis>=4.0"'))
    with pytest.raises(ValueError, match=r"several floors of redis: 4\.0, 5\.0"):
        versions.floors()


def test_the_lock_names_every_dependency_at_or_above_its_floor(versions):
    locked = versions.locked()
    for one in versions.dependencies():
        if one.name not in locked:
            assert one.marker, f"requirements/locked.txt lacks {one.name}: run `make lock`"
        else:
            assert not VersionRange(one.floor, one.floor).is_older(locked[one.name]), one
    assert {"pip", "setuptools"} <= set(locked), "the tools that install are locked too"


def test_the_lock_serves_every_build_of_the_torch_that_the_makefile_installs(versions):
    makefile = (REPOSITORY / "Makefile").read_text()
    locked = versions.locked()
    assert f"TORCH := torch=={locked['torch']}\n" in makefile
    assert f"TRITON := triton=={locked['triton']}\n" in makefile
    assert not [version for version in locked.values() if "+" in version]


def test_the_file_of_tested_versions_is_what_lock_and_floors_give(versions):
    assert versions.TESTED.read_text() == versions.tested_text(), (
        "run `python requirements/versions.py tested`"
    )
    tested = ranges_tested()
    assert tested["transformers"] == VersionRange("5.17", versions.locked()["transformers"])
    assert {package.name for package in PACKAGES} == set(tested)


@pytest.mark.parametrize(
    ("version", "is_older", "is_newer"),
    [
        ("2.11", False, False),
        ("2.13.0+cpu", False, False),
        ("2.13", False, False),
        ("2.9.1", True, False),
        ("2.13.1", False, True),
        ("2.100.0", False, True),
        ("3.0.0rc1", False, True),
    ],
)
def test_versions_are_compared_as_numbers(version, is_older, is_newer):
    tested = VersionRange("2.11", "2.13.0")
    assert (tested.is_older(version), tested.is_newer(version)) == (is_older, is_newer)


@pytest.mark.parametrize(
    ("target", "constraint"),
    [
        *((target, "requirements/locked.txt") for target in ("demo", "test", "check", "bench", "gpu")),
        ("oldest", ".venv-oldest/floors.txt"),
        ("newest", None),
    ],
)
def test_what_each_target_of_the_makefile_installs(versions, target, constraint):
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    ran = subprocess.run(
        ["make", "--dry-run", "--always-make", target],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    installs = [line for line in ran.stdout.replace("\\\n", "").splitlines() if "pip install" in line]
    mine = [line for line in installs if constraint is None or f"--constraint {constraint}" in line]
    assert len(mine) >= 2, "the build tools, and all the rest"
    assert all(
        f"torch=={versions.locked()['torch']}" in line for line in installs if "locked.txt" not in line
    )
    if target in ("demo", "test", "check", "bench", "gpu"):
        assert mine == installs

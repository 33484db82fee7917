"""`from kvtrie import PrefixCachedModel` works as a wheel and editable, at the clone's root and elsewhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

import kvtrie
import kvtrie.api

REPOSITORY = Path(__file__).resolve().parent.parent
SHIPPED = ("kvtrie", "prefix_tree", "chunk_kernels", "store", "api", "pyproject.toml", "README.md", "LICENSE")

PROGRAM = """
import sys
import kvtrie
assert not {"torch", "transformers", "kvtrie.api"} & set(sys.modules), "import kvtrie must load nothing"
from kvtrie import PrefixCachedModel
import kvtrie.prefix_tree, kvtrie.store, kvtrie.chunk_kernels
from kvtrie.testing import EvictionPolicyContract, LowerTierContract, StoreContract
from kvtrie.api.huggingface.cached_model import PrefixCachedModel as same
assert PrefixCachedModel is same
try:
    import kvtrie.prefix_tree.claims
except ModuleNotFoundError as error:
    assert "kvtrie.prefix_tree.node" in str(error)
else:
    raise AssertionError("a former name was imported")
print(sys.modules["kvtrie.api"].__file__)
"""


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is shipped: setuptools writes beside the sources that it builds from."""
    root = tmp_path_factory.mktemp("clone")
    for name in SHIPPED:
        source = REPOSITORY / name
        if source.is_dir():
            shutil.copytree(source, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, root / name)
    return root


@pytest.fixture(scope="module")
def dependencies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Links to all installed packages but kvtrie: a second installation of it would answer for the first."""
    folder = tmp_path_factory.mktemp("dependencies")
    for site in map(Path, sys.path):
        if site.name not in ("site-packages", "dist-packages"):
            continue
        for entry in site.iterdir() if site.is_dir() else ():
            is_ours = entry.name.startswith(("kvtrie", "__editable__")) or entry.suffix == ".pth"
            link = folder / entry.name
            if not is_ours and not link.exists():
                link.symlink_to(entry.resolve())
    return folder


@pytest.fixture(scope="module", params=["wheel", "editable"])
def installed(
    request: pytest.FixtureRequest, clone: Path, dependencies: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    """How kvtrie is installed, and the python of the environment that has it."""
    folder = tmp_path_factory.mktemp(request.param)
    venv.create(folder / "venv", symlinks=True)
    python = folder / "venv" / "bin" / "python"
    site = next((folder / "venv").glob("lib/python*/site-packages"))
    (site / "dependencies.pth").write_text(f"{dependencies}\n")
    offline = ["--quiet", "--no-deps", "--no-build-isolation", "--disable-pip-version-check", "--no-index"]
    pip = [sys.executable, "-m", "pip"]
    if request.param == "wheel":
        run([*pip, "wheel", *offline, "--wheel-dir", str(folder), str(clone)])
        (wheel,) = folder.glob("kvtrie-*.whl")
        run([*pip, "--python", str(python), "install", *offline, str(wheel)])
    else:
        run([*pip, "--python", str(python), "install", *offline, "--editable", str(clone)])
    return request.param, python


def run(command: list[str], folder: Path | None = None) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    ran = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


@pytest.mark.parametrize("place", ["root", "elsewhere"])
def test_the_front_door_opens(installed: tuple[str, Path], clone: Path, tmp_path: Path, place: str) -> None:
    form, python = installed
    found = Path(run([str(python), "-c", PROGRAM], clone if place == "root" else tmp_path))
    is_of_the_clone = found.is_relative_to(clone)
    assert is_of_the_clone == (form == "editable"), found


def test_the_front_door_has_the_names_of_api() -> None:
    assert kvtrie.__all__ == kvtrie.api.__all__
    assert all(getattr(kvtrie, name) is getattr(kvtrie.api, name) for name in kvtrie.__all__)
    assert set(kvtrie.__all__) <= set(dir(kvtrie))


def test_a_name_that_is_none_is_refused_as_by_any_module() -> None:
    with pytest.raises(AttributeError, match="module 'kvtrie' has no attribute 'PrefixCachedModle'"):
        kvtrie.PrefixCachedModle  # noqa: B018

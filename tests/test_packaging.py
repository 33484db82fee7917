"""What is packaged is what there is, and importing the structure does not import torch."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

REPOSITORY = Path(__file__).resolve().parent.parent
FOLDERS = ("prefix_tree", "chunk_kernels", "store", "api")
MAPPED = {
    "kvtrie": "kvtrie",
    **{f"kvtrie.{folder}": folder for folder in FOLDERS},
    "kvtrie.testing": "api/testing",
}
"""Packages whose folders are not named like them, by their names."""


def found_packages() -> list[str]:
    """The front door, which is `kvtrie` itself, and the packages of the mapped folders."""
    package_of = {folder: package for package, folder in MAPPED.items()}
    found = ["kvtrie"]
    for folder in FOLDERS:
        for init in (REPOSITORY / folder).rglob("__init__.py"):
            path = init.parent.relative_to(REPOSITORY)
            found.append(package_of.get(str(path)) or ".".join(("kvtrie", *path.parts)))
    return sorted(found)


def setuptools_table() -> dict:
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]


DATA = {"kvtrie.api.demo.prompts", "kvtrie.chunk_kernels.tuned"}
"""Folders of files that are shipped and not imported; setuptools wants them named like packages."""


def test_every_package_is_declared_and_every_declared_package_exists() -> None:
    assert sorted(setuptools_table()["packages"]) == sorted({*found_packages(), *DATA})
    for name in DATA:
        assert any(REPOSITORY.joinpath(*name.split(".")[1:]).iterdir()), f"{name} is empty"
    assert {f"kvtrie.{folder}" for folder in FOLDERS} <= set(found_packages())


def test_every_folder_of_modules_is_a_package() -> None:
    for folder in ("kvtrie", *FOLDERS):
        for module in (REPOSITORY / folder).rglob("*.py"):
            assert (module.parent / "__init__.py").exists(), (
                f"{module} is in no package and would not be shipped"
            )


def test_every_top_folder_is_mapped_and_typed() -> None:
    assert setuptools_table()["package-dir"] == MAPPED
    for folder in ("kvtrie", *FOLDERS):
        assert (REPOSITORY / folder / "py.typed").exists(), folder


def test_mypy_and_import_linter_see_every_mapped_folder() -> None:
    for package, folder in MAPPED.items():
        link = REPOSITORY.joinpath(".ci", "typing", *package.split("."))
        assert package == "kvtrie" or link.resolve() == REPOSITORY / folder


def test_the_front_door_holds_one_module() -> None:
    """Whatever else lay there would hide the part of its name that is installed elsewhere."""
    found = {path.name for path in (REPOSITORY / "kvtrie").iterdir()} - {"__pycache__"}
    assert found == {"__init__.py", "py.typed"}


@pytest.mark.parametrize("package", found_packages())
def test_exported_names_are_sorted_and_resolve(package: str) -> None:
    module = importlib.import_module(package)
    exported = getattr(module, "__all__", None)
    if exported is None:
        pytest.skip("exports nothing")
    assert list(exported) == sorted(set(exported))
    assert [name for name in exported if not hasattr(module, name)] == []


def loaded_by(statement: str) -> set[str]:
    """Top-level modules that a fresh interpreter has after a statement."""
    code = f"{statement}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(ran.stdout.split())


def test_the_structure_needs_no_torch() -> None:
    loaded = loaded_by(
        "import pkgutil, importlib, kvtrie.prefix_tree as package\n"
        "for module in pkgutil.iter_modules(package.__path__):\n"
        "    importlib.import_module(f'kvtrie.prefix_tree.{module.name}')"
    )
    assert "kvtrie" in loaded
    assert not loaded & {"torch", "transformers", "triton"}


def test_the_contract_suites_need_no_test_runner() -> None:
    loaded = loaded_by("import kvtrie.testing")
    assert "kvtrie" in loaded
    assert not loaded & {"pytest", "hypothesis", "torch", "transformers", "httpx", "redis"}


def test_no_folder_is_importable_at_top_level() -> None:
    """`import api` or `import store` must not find ours in a user's environment."""
    code = f"import importlib.util as u; print([n for n in {FOLDERS} if u.find_spec(n)])"
    ran = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"

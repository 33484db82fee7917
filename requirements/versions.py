"""The versions that kvtrie is tested with, worked out from pyproject.toml and from an environment.

    python requirements/versions.py floors     prints every dependency at its floor, as constraints for pip
    python requirements/versions.py lock       writes locked.txt from the environment that runs this, and tested
    python requirements/versions.py tested     writes tested_versions.json from pyproject.toml and locked.txt

`make oldest` and `make lock` call it. It needs nothing but Python 3.11.
"""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

REPOSITORY = Path(__file__).resolve().parent.parent
LOCK = REPOSITORY / "requirements" / "locked.txt"
TESTED = REPOSITORY / "api" / "inspection" / "tested_versions.json"

_REQUIREMENT = re.compile(r"(?P<name>[A-Za-z0-9._-]+)>=(?P<floor>\d+(\.\d+)*)(; (?P<marker>.+))?\Z")
_TOOLS = {"dev", "build"}
"""Groups that only a contributor installs."""


@dataclass(frozen=True, slots=True)
class Dependency:
    """A line of pyproject.toml."""

    name: str
    floor: str
    """The oldest version admitted."""
    marker: str
    """Where it is needed, in the words of PEP 508; empty where it always is."""
    group: str
    """`core`, `build`, or the extra that lists it."""


def dependencies() -> list[Dependency]:
    """Every dependency of pyproject.toml: of the build, of the core, of every extra.

    Raises:
        ValueError: one that is not `name>=floor`, or that has different floors in two groups.
    """
    document = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    project = document["project"]
    groups = {
        "build": document["build-system"]["requires"],
        "core": project["dependencies"],
        **project["optional-dependencies"],
    }
    found = [_dependency(line, group) for group, lines in groups.items() for line in lines]
    for one in found:
        floors = {other.floor for other in found if other.name == one.name}
        if len(floors) > 1:
            raise ValueError(f"pyproject.toml has several floors of {one.name}: {', '.join(sorted(floors))}")
    return found


def floors() -> list[str]:
    """A constraint for each dependency, at its floor. torch is left out: every environment has the same one."""
    lines = {
        f"{one.name}=={one.floor}" + (f"; {one.marker}" if one.marker else "")
        for one in dependencies()
        if one.name != "torch"
    }
    return sorted(lines)


def locked() -> dict[str, str]:
    """Name and version of every line of locked.txt."""
    lines = LOCK.read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def tested() -> dict[str, dict[str, str]]:
    """Oldest and newest tested version of each dependency that the product itself uses.

    Raises:
        ValueError: locked.txt lacks one that is needed everywhere.
    """
    newest, found = locked(), {}
    for one in dependencies():
        if one.group in _TOOLS:
            continue
        if one.name in newest:
            found[one.name] = {"oldest": one.floor, "newest": newest[one.name]}
        elif not one.marker:
            raise ValueError(f"locked.txt lacks {one.name}: run `make lock`")
    return dict(sorted(found.items()))


def tested_text() -> str:
    """What api/inspection/tested_versions.json must hold."""
    return json.dumps(tested(), indent=2) + "\n"


def _dependency(line: str, group: str) -> Dependency:
    match = _REQUIREMENT.match(line)
    if match is None:
        raise ValueError(f"pyproject.toml: {line!r} in {group} is not of the form name>=floor")
    return Dependency(match["name"], match["floor"], match["marker"] or "", group)


def _installed() -> list[str]:
    """`name==version` of all that the running environment holds, but kvtrie; without a build's own suffix."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "list", "--format=json", "--exclude", "kvtrie"],
        capture_output=True,
        text=True,
        check=True,
    )
    packages = json.loads(listed.stdout)
    names = {re.sub(r"[-_.]+", "-", package["name"]).lower(): package["version"] for package in packages}
    return [f"{name}=={version.partition('+')[0]}" for name, version in sorted(names.items())]


def _write_lock() -> None:
    made_with = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    head = f"# Made by `make lock` ({made_with}): what .[all,dev] resolves to. Not edited by hand.\n"
    LOCK.write_text(head + "\n".join(_installed()) + "\n", encoding="utf-8")


def main() -> None:
    """Runs the command that the arguments name."""
    command = sys.argv[1] if len(sys.argv) == 2 else ""
    if command == "floors":
        print("\n".join(floors()))
    elif command in ("lock", "tested"):
        if command == "lock":
            _write_lock()
        TESTED.write_text(tested_text(), encoding="utf-8")
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()

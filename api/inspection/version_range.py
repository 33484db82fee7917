"""The versions of each dependency that kvtrie's tests were run with.

`tested_versions.json` is written by `make lock`: the oldest version is the floor in pyproject.toml, the newest the
one in requirements/locked.txt.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

_FILE = Path(__file__).parent / "tested_versions.json"


@dataclass(frozen=True, slots=True)
class VersionRange:
    """A dependency's range of tested versions, both ends included."""

    oldest: str
    newest: str

    def is_older(self, version: str) -> bool:
        """Whether `version` is below the range."""
        return _release(version) < _release(self.oldest)

    def is_newer(self, version: str) -> bool:
        """Whether `version` is above the range."""
        return _release(version) > _release(self.newest)

    def __str__(self) -> str:
        return f"{self.oldest} to {self.newest}"


def ranges_tested() -> dict[str, VersionRange]:
    """Range of tested versions of each package, by its name as pip spells it."""
    return {
        name: VersionRange(**ends) for name, ends in json.loads(_FILE.read_text(encoding="utf-8")).items()
    }


def _release(version: str) -> tuple[int, ...]:
    """The numbers a version begins with, without zeros at the end: 2.13 and 2.13.0+cpu are one release."""
    found = re.match(r"\d+(?:\.\d+)*", version)
    numbers = [int(number) for number in found[0].split(".")] if found else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)

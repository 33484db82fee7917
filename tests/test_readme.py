"""README's first program is the file it names, and prints what README says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
README = (REPOSITORY / "README.md").read_text()
QUICKSTART = REPOSITORY / "examples" / "quickstart.py"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_the_first_program_is_the_file() -> None:
    _, docstring, program = QUICKSTART.read_text().split('"""', 2)
    assert "python examples/quickstart.py" in docstring
    assert blocks("python")[0].strip() == program.strip()


def test_the_first_program_prints_what_is_shown() -> None:
    ran = subprocess.run([sys.executable, str(QUICKSTART)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == blocks("text")[0]

"""`docs/models.md` says what the tables say."""

from __future__ import annotations

from bench.models import PATH, page
from kvtrie.api.models.families import FAMILIES, NOT_SERVED


def test_page_is_up_to_date() -> None:
    assert PATH.read_text(encoding="utf-8") == page(), "run python -m bench.models"


def test_page_names_every_family_once() -> None:
    lines = page().splitlines()
    for model_type in (*FAMILIES, *NOT_SERVED):
        assert len([line for line in lines if line.startswith(f"| `{model_type}` |")]) == 1


def test_readme_says_how_many() -> None:
    readme = (PATH.parents[1] / "README.md").read_text(encoding="utf-8")
    assert f"[{len(FAMILIES)} model types](docs/models.md) are served" in readme

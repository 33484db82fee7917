"""Writes `docs/models.md` from the tables of families: `python -m bench.models`."""

from __future__ import annotations

from pathlib import Path

from kvtrie.api.models.families import FAMILIES, NOT_SERVED

PATH = Path(__file__).parents[1] / "docs" / "models.md"

_HEAD = """# Models

<!-- Written by `python -m bench.models` from api/models/families.py. -->

A model is served when three things hold; else it is refused in one sentence, at wrapping.

* Its model type is in the table below. Tiny models of each pass the same exactness tests: tokens and logits
  are those of `model.generate` cold, warm, partly warm, after evictions, with beams, sampling, assisted
  decoding, preemption and chunked prefill.
* Tried with seven tokens, each layer calls the attention function once, with a query, a key and a value a
  token and keys and values of one shape; and the logits from these are the model's own.
* A short `generate` through kvtrie has the logits of the model's own forward.

Hugging Face's own generation tests through kvtrie, by family: `bench/results/huggingface-tests-*.md`, made by
`python -m bench.huggingface_tests CHECKOUT`.

A *window* is a sliding window of some or all layers, *softcap* caps attention scores, *sinks* are attention
sinks, *experts* a mixture of experts. Families that take images or sound beside text are served for their
text.

## Served

"""

_NOT_SERVED = """
## Not served

| family (model type) | why |
| --- | --- |
"""

_TAIL = """
A family in neither table was not tested. To add one: a tiny config in `tests/api/tiny_models.py`, a line in
`api/models/families.py`, and `pytest tests/api/huggingface/test_exactness.py -k FAMILY`.
"""


def page() -> str:
    """The page as markdown."""
    rows = [
        "| model type | models | window | softcap | sinks | experts | tested as text of | notes |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for model_type, family in sorted(FAMILIES.items()):
        has = (family.has_window, family.has_softcap, family.has_sinks, family.has_experts)
        marks = " | ".join("yes" if feature else "" for feature in has)
        wrappers = ", ".join(f"`{wrapper}`" for wrapper in family.wrappers)
        rows.append(f"| `{model_type}` | {family.name} | {marks} | {wrappers} | {family.notes} |")
    refused = [f"| `{model_type}` | {why} |" for model_type, why in sorted(NOT_SERVED.items())]
    return _HEAD + "\n".join(rows) + "\n" + _NOT_SERVED + "\n".join(refused) + "\n" + _TAIL


def main() -> None:
    """Writes the page."""
    PATH.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()

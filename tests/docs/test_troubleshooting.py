"""Every message that `docs/troubleshooting.md` quotes is one of the product's."""

from __future__ import annotations

import ast
import re
import typing

import pytest

from kvtrie.api.inspection.explanation import VERDICTS
from kvtrie.prefix_tree.errors import RecordError
from tests.docs.markdown import code_in, page, rows, section, sources

PAGE = page("troubleshooting.md")
VARIES = "…"


def quotes() -> list[str]:
    """Messages in block quotes, and those in tables that are more than a name."""
    quoted = [line.removeprefix("> ") for line in PAGE.splitlines() if line.startswith("> ")]
    refusals = PAGE.partition("### The sidecar refuses requests")[2].partition("###")[0]
    return quoted + [code_in(cells[0])[0] for cells in rows(refusals)]


def messages() -> list[str]:
    """Every text in the product, with `…` for what is filled in when it is used."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in sources()]
    constants = {
        target.id: node.value.value
        for tree in trees
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name) and isinstance(node.value.value, str)
    }
    found = []
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(re.sub(r"%[-#0-9.]*[sdgrx]", VARIES, node.value))
            elif isinstance(node, ast.JoinedStr):
                found.append("".join(_part(part, constants) for part in node.values))
    return [re.sub(f"{VARIES}+", VARIES, text) for text in found]


def _part(part: ast.expr, constants: dict[str, str]) -> str:
    if isinstance(part, ast.Constant):
        return str(part.value)
    assert isinstance(part, ast.FormattedValue)
    return constants.get(ast.unparse(part.value), VARIES)


MESSAGES = messages()


def is_one_of_ours(quote: str) -> bool:
    """Whether a message has the quote's fixed parts, in a row; `…` at its ends may stand for more."""
    wanted = quote.removeprefix(VARIES).removesuffix(VARIES)
    return any(wanted in message for message in MESSAGES)


@pytest.mark.parametrize("quote", quotes())
def test_a_quoted_message_is_in_the_source(quote: str) -> None:
    fixed = max(quote.split(VARIES), key=len)
    assert len(fixed.split()) >= 3, f"{quote!r} quotes too little to be found by"
    assert is_one_of_ours(quote)


@pytest.mark.parametrize(
    "quote",
    ["the model is in training mode; call eval() first", "… records not written because …"],
)
def test_other_messages_are_not_found(quote: str) -> None:
    assert not is_one_of_ours(quote)


def test_the_page_quotes_enough() -> None:
    assert len(quotes()) >= 45


def test_each_entry_says_what_to_do() -> None:
    for entry in re.split(r"^### ", PAGE, flags=re.MULTILINE)[1:]:
        heading, _, text = entry.partition("\n")
        text = text.partition("\n## ")[0]
        assert "*Do:*" in text or "| do |" in text or "what to do" in text, heading


def test_verdicts_are_those_of_explain() -> None:
    named = [code_in(cells[0])[0] for cells in rows(section(PAGE, "Low hit rates"))]
    assert sorted(named) == sorted(VERDICTS)


def test_reasons_are_those_of_records() -> None:
    documented = set(code_in(typing.cast(str, RecordError.__doc__).partition("metric label:")[2]))
    raised = {
        node.args[0].value
        for path in sources()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) == "RecordError"
        and isinstance(node.args[0], ast.Constant)
    }
    assert raised <= documented
    told = rows(PAGE.partition("### Records\n")[2])
    named = [reason for cells in told for reason in code_in(cells[0])]
    assert sorted(named) == sorted([*documented, "full"])

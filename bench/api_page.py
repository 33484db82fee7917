"""Writes `docs/api.md` from docstrings: `python -m bench.api_page`.

The docstrings are read by griffelib. It parses the source and imports nothing, so the page is the same on a
machine without a GPU, Redis or transformers. It knows the docstring style of this repository (Google's `Args` and
`Raises`, a string below a field), has no dependencies, and runs under Python 3.10. Compared:

    griffelib        a tree of parsed docstrings, rendered here in one page                          chosen
    pdoc             HTML only, and it imports what it documents, torch included
    pydoc-markdown   Markdown, by modules and not by public names; thirteen dependencies, last released in 2023
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import griffe

REPOSITORY = Path(__file__).resolve().parent.parent
PATH = REPOSITORY / "docs" / "api.md"
WIDTH = 110

FRONT_DOOR = "kvtrie.api"
"""The module from which `kvtrie` takes its names."""

CONTRACTS = {
    "LowerTier": FRONT_DOOR,
    "Store": "kvtrie.store",
    "EvictionPolicy": "kvtrie.prefix_tree",
}
"""Protocols that a user may implement, and where they are imported from."""

GROUPS = {
    "A wrapped model": ("PrefixCachedModel", "Warmed"),
    "Requests": ("Engine", "EngineConfig", "Request", "Sampling", "Completion"),
    "Memory and sidecar": ("Eviction", "SidecarTier"),
    "Contracts": tuple(CONTRACTS),
}
"""The classes of the page, in order."""

_ERRORS = "kvtrie.prefix_tree.errors"
_SPECIAL = ("__contains__",)
"""Special methods that a protocol asks for."""

_HEAD = """# API

<!-- Written by `python -m bench.api_page` from the docstrings. -->

The names that `kvtrie` exports, and the protocols that a tier, a store or a policy of your own implements.
Names that begin with an underscore, and all that is not on this page, may change without notice. Shapes are
in brackets, times in seconds and sizes in bytes.

"""


def page() -> str:
    """The page as Markdown."""
    head = _HEAD
    for group, names in GROUPS.items():
        links = [f"[{name}](#{name.lower()})" for name in names]
        head += _wrap(f"* {group}: {', '.join(links)}", hang="  ") + "\n"
    head += "* [Errors](#errors)\n"
    parts = [head]
    parts += ["\n\n".join(_class(name)) for names in GROUPS.values() for name in names]
    parts.append(f"## Errors\n\n{_text(_module(_ERRORS).docstring)}")
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def _module(name: str) -> griffe.Module:
    path = REPOSITORY / name.removeprefix("kvtrie.").replace(".", "/")
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    found = griffe.visit(
        name, file, file.read_text(encoding="utf-8"), docstring_parser=griffe.Parser("google")
    )
    assert isinstance(found, griffe.Module)
    return found


def _find(name: str, module: str) -> griffe.Class:
    """A class by its name in a module, which may import it."""
    found = _module(module).members[name]
    if isinstance(found, griffe.Alias):
        return _find(name, found.target_path.rpartition(".")[0])
    assert isinstance(found, griffe.Class)
    return found


def _class(name: str) -> Iterator[str]:
    """A class: how to import it, its signature, its docstring, its fields, its methods."""
    found = _find(name, CONTRACTS.get(name, FRONT_DOOR))
    module = CONTRACTS.get(name, FRONT_DOOR)
    yield f"## {name}"
    yield f"    from {'kvtrie' if module == FRONT_DOOR else module} import {name}"
    made = found.members.get("__init__")
    is_dataclass = any(decorator.callable_path.endswith("dataclass") for decorator in found.decorators)
    if isinstance(made, griffe.Function):
        yield _signature(name, made)
    elif is_dataclass:
        yield _field_signature(name, found)
    yield from _docstring(found)
    bases = [_find(str(base), found.module.path) for base in found.bases if _is_own_class(found, str(base))]
    members = {key: member for one in (found, *bases) for key, member in one.members.items()}
    public = {key: member for key, member in members.items() if not key.startswith("_") or key in _SPECIAL}
    fields = [member for member in public.values() if _is_field(member)]
    if fields:
        listed = "\n".join(_item(*_field(member)) for member in fields)
        yield f"{'Fields' if is_dataclass else 'Attributes'}:\n\n{listed}"
    for key, member in public.items():
        if isinstance(member, griffe.Function):
            yield f"### {name}.{key}"
            yield _signature(key, member)
            yield from _docstring(member)


def _is_own_class(found: griffe.Class, base: str) -> bool:
    alias = found.module.members.get(base)
    return isinstance(alias, griffe.Alias) and alias.target_path.startswith("kvtrie.")


def _is_field(member: griffe.Object | griffe.Alias) -> bool:
    """Whether it is a field, a property, or another attribute that has a docstring."""
    return isinstance(member, griffe.Attribute) and (
        member.docstring is not None
        or (member.annotation is not None and "instance-attribute" not in member.labels)
    )


def _field(member: griffe.Object | griffe.Alias) -> tuple[str, str, str]:
    assert isinstance(member, griffe.Attribute)
    text = "" if member.docstring is None else member.docstring.value
    # A property that raises: what it raises is a sentence of its own.
    text = re.sub(r"\s*Raises:\s*(\w+): (.*)", r" Raises `\1`: \2", text)
    return member.name, str(member.annotation or ""), text


def _item(name: str, annotation: str, text: str) -> str:
    """An entry of a list, wrapped."""
    kind = f" (`{annotation}`)" if annotation else ""
    body = " ".join(text.split())
    return _wrap(f"* `{name}`{kind}" + (f": {body}" if body else ""), hang="  ")


def _docstring(of: griffe.Object) -> Iterator[str]:
    """The parts of a docstring."""
    for part in [] if of.docstring is None else of.docstring.parsed:
        kind = part.kind.value
        if kind == "text":
            yield _paragraphs(str(part.value))
        elif kind == "parameters":
            entries = [_item(one.name, str(one.annotation or ""), one.description) for one in part.value]
            yield "Arguments:\n\n" + "\n".join(entries)
        elif kind == "raises":
            yield "Raises:\n\n" + "\n".join(
                _item(str(one.annotation), "", one.description) for one in part.value
            )
        elif kind in ("returns", "yields"):
            yield _wrap(f"{kind.capitalize()}: " + " ".join(one.description for one in part.value))
        elif kind == "admonition":
            yield f"{part.title}:\n\n" + "\n".join(_raised(str(part.value.description)))
        else:
            raise ValueError(f"{of.path}: a part {kind!r} of a docstring, which the page has no form for")


def _raised(text: str) -> Iterator[str]:
    """`Name: when` of each line, where a class's docstring says what all its methods raise."""
    for line in text.splitlines():
        name, _, when = line.partition(": ")
        yield _item(name, "", when)


def _text(docstring: griffe.Docstring | None) -> str:
    assert docstring is not None
    return _paragraphs(docstring.value)


def _paragraphs(text: str) -> str:
    """Paragraphs wrapped, and what is indented or listed left as it is."""
    shown = []
    for paragraph in text.split("\n\n"):
        is_plain = not paragraph.startswith((" ", "* "))
        shown.append(_wrap(" ".join(paragraph.split())) if is_plain else paragraph)
    return "\n\n".join(shown)


def _wrap(text: str, hang: str = "") -> str:
    # What is in backticks stays on one line where it is short.
    kept = re.sub(r"`[^`]{1,60}`", lambda found: found[0].replace(" ", "\0"), text)
    lines = textwrap.wrap(kept, WIDTH, subsequent_indent=hang, break_long_words=False, break_on_hyphens=False)
    return "\n".join(lines).replace("\0", " ")


def _field_signature(name: str, found: griffe.Class) -> str:
    parts = []
    for member in found.members.values():
        if isinstance(member, griffe.Attribute) and "property" not in member.labels and member.annotation:
            made = re.search(r"default_factory=(\w+)", str(member.value or ""))
            default = f"{made[1]}()" if made else str(member.value or "")
            parts.append(f"{member.name}: {member.annotation}" + (f" = {default}" if default else ""))
    return _call(name, parts, "")


def _signature(name: str, function: griffe.Function) -> str:
    parts: list[str] = []
    starred = False
    for parameter in function.parameters:
        kind = parameter.kind.value if parameter.kind is not None else ""
        if parameter.name == "self":
            continue
        if kind == "keyword-only" and not starred:
            parts.append("*")
        starred = starred or kind in ("keyword-only", "variadic positional")
        stars = {"variadic positional": "*", "variadic keyword": "**"}.get(kind, "")
        text = stars + parameter.name + (f": {parameter.annotation}" if parameter.annotation else "")
        if parameter.default is not None and not stars:
            text += f" = {parameter.default}"
        parts.append(text)
    # Making an object returns it: no word about that.
    returns = f" -> {function.returns}" if function.name != "__init__" else ""
    return _call(name, parts, returns)


def _call(name: str, parts: list[str], returns: str) -> str:
    line = f"{name}({', '.join(parts)}){returns}"
    if len(line) > WIDTH:
        line = f"{name}(\n    " + ",\n    ".join(parts) + f",\n){returns}"
    return f"```python\n{line}\n```"


def main() -> None:
    """Writes the page."""
    PATH.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()

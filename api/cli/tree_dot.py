"""A snapshot as Graphviz DOT: `kvtrie dump FILE --format dot | dot -Tsvg -o tree.svg`."""

from __future__ import annotations

from kvtrie.api.cli.console import name_text
from kvtrie.api.cli.node_text import facts, namespace_facts, segment_text, span_text
from kvtrie.api.cli.tree_runs import Branch, Segment, branches
from kvtrie.api.tokenizer import Tokenizer
from kvtrie.prefix_tree.snapshot import Snapshot

_FILLS = ("#cfe8cf", "#cfdff2", "#f6e3c5", "#e4d7ef")
"""By the place of a chunk's fastest tier; pending chunks are white."""
_BORROWED = "#a0522d"
"""Edges along which a scope continues another scope's path."""


def tree_dot(snapshot: Snapshot, *, tokenizer: Tokenizer | None = None, expand: bool = False) -> str:
    """One box per line of the text tree; a solid edge for each parent, coloured where the scope changes."""
    lines = [
        "digraph kvtrie {",
        "  rankdir=LR; ranksep=0.4; nodesep=0.15;",
        '  node [shape=box style="filled,rounded" fillcolor=white fontname="Helvetica" fontsize=10];',
        "  edge [arrowsize=0.6 color=gray40];",
    ]
    for number, tops in branches(snapshot, expand):
        namespace = snapshot.namespaces[number]
        label = [name_text(namespace.scope), *namespace_facts(namespace)]
        lines.append(
            f"  namespace{number} [shape=folder style=filled fillcolor=gray92 label={_label(label)}];"
        )
        pending: list[tuple[Branch, str, int, int]] = [
            (top, f"namespace{number}", number, 0) for top in reversed(tops)
        ]
        while pending:
            branch, above, owner, shared = pending.pop()
            for segment in branch.segments:
                name = f"chunk{segment[0].id}"
                mine = segment[0].namespace
                text = segment_text(segment, tokenizer, shared, 36)
                lines.append(f"  {name} [{_attributes(snapshot, segment, text, mine != owner)}];")
                lines.append(f"  {above} -> {name}{_edge(segment, mine != owner)};")
                above, owner, shared = name, mine, 0
            pending.extend(
                (child, above, owner, branch.shared_tokens(i))
                for i, child in reversed(list(enumerate(branch.children)))
            )
    return "\n".join([*lines, "}"])


def _attributes(snapshot: Snapshot, segment: Segment, text: str, is_borrowed: bool) -> str:
    label = [span_text(snapshot, segment), text, *facts(snapshot, segment)]
    if is_borrowed:
        label.insert(0, name_text(snapshot.namespaces[segment[0].namespace].scope))
    first = segment[0]
    places = [i for i, tier in enumerate(snapshot.tiers) if tier.name in first.tiers]
    attributes = f"label={_label(label)}"
    if places:
        attributes += f' fillcolor="{_FILLS[places[0] % len(_FILLS)]}"'
    if first.pending:
        attributes += ' style="dashed,rounded"'
    if first.pin is not None:
        attributes += " penwidth=2.5"
    return attributes


def _edge(segment: Segment, is_borrowed: bool) -> str:
    if segment[0].parent is None and segment[0].depth > 1:
        return ' [style=dotted label="missing"]'
    return f' [color="{_BORROWED}" penwidth=1.5]' if is_borrowed else ""


def _label(rows: list[str]) -> str:
    """A quoted label, rows left-aligned. Graphviz reads backslashes, quotes and HTML entities in labels."""
    quoted = [row.replace("&", "&amp;").replace("\\", "\\\\").replace('"', '\\"') for row in rows]
    return '"' + "".join(row + "\\l" for row in quoted) + '"'

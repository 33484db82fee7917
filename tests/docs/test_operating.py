"""`docs/operating.md` names every metric of a sidecar and every figure of `stats()`, and no other."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from typing import Any

import pytest

from kvtrie.api.http.record_frames import frame
from kvtrie.api.tiers.scope_counters import ScopeCounters
from kvtrie.api.tiers.sidecar_tier import SidecarTier
from kvtrie.prefix_tree.tree import REMEMBERED_BYTES
from kvtrie.store.write_behind import WriteBehindStats
from tests.api.balance import complete, wrapped
from tests.api.lower_tiers import small_model
from tests.docs.markdown import REPOSITORY, code_in, page, rows, section

PAGE = page("operating.md")
METRICS = {
    code_in(cells[0])[0]: (cells[1], set(cells[2].split(", ")) - {""})
    for cells in rows(section(PAGE, "The sidecar's metrics"))
}
"""By name: type and labels."""
STATS = {code_in(cells[0])[0]: cells[2] for cells in rows(section(PAGE, "stats()"))}
"""By name: kind."""


def counted(folder: str, receiver: str, method: str | None = None) -> set[str]:
    """Names that the code below `folder` counts: `receiver["name"] += 1`, or `receiver.method("name")`.

    What a name is completed with at run time is shown as `<reason>`.
    """
    names = set()
    for path in (REPOSITORY / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if method is None:
                if not (isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Subscript)):
                    continue
                of, name = ast.unparse(node.target.value), node.target.slice
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
                if node.func.attr != method:
                    continue
                of, name = ast.unparse(node.func.value), node.args[0]
            else:
                continue
            if not of.endswith(receiver):
                continue
            if isinstance(name, ast.Constant):
                names.add(name.value)
            elif isinstance(name, ast.JoinedStr):
                assert isinstance(name.values[0], ast.Constant)
                names.add(name.values[0].value + "<reason>")
    return names


def flat(figures: dict[str, Any], before: str = "") -> set[str]:
    """Names of nested figures with dots; a scope is `<scope>`, and a percent `<percent>`."""
    names = set()
    for name, value in figures.items():
        place = "<scope>" if str(name).startswith("tenant:") else "<percent>" if type(name) is int else name
        if isinstance(value, dict) and value:
            names |= flat(value, f"{before}{place}.")
        else:
            names.add(f"{before}{place}")
    return names


def families(text: str) -> dict[str, str]:
    return dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))


@pytest.mark.parametrize("store", [None, "memory://"])
def test_the_metrics_are_those_of_the_page(
    start_sidecar: Callable[..., Any], chain: Callable[..., Any], store: str | None
) -> None:
    sidecar = start_sidecar(store=store)
    path = chain(list(range(12)))
    with sidecar.http() as http:
        digest = path.namespace.digest
        assert http.post("/v1/records/put", content=frame([*path.records, b"none"])).json()["stored"] == 3
        http.post("/v1/records/get", content=digest + b"".join(path.keys))
        http.post("/v1/match", content=digest + path.tokens)
        text = http.get("/metrics").text
    told = {
        name: kind for name, (kind, _) in METRICS.items() if store is not None or name not in _of_the_store()
    }
    assert families(text) == told
    # What has a sample by now has the labels that the page names.
    seen = re.findall(r"^(kvtrie_\w+?)(?:\{(.*)\})? \S+$", text, re.MULTILINE)
    assert {"kvtrie_sidecar_rejected_total", "kvtrie_sidecar_used_bytes"} <= {name for name, _ in seen}
    for name, labels in seen:
        assert set(re.findall(r'(\w+)="', labels)) == METRICS[name][1], name


def _of_the_store() -> set[str]:
    """Metrics of the queue to the store, which is there only if there is a store."""
    queue = {f"kvtrie_sidecar_store_{name}" for name in WriteBehindStats.__dataclass_fields__}
    return {name for name in METRICS if name.removesuffix("_total") in queue}


def test_labels_without_a_sample_are_named_right() -> None:
    for name in ("evictions_total", "rejected_total", "store_rejected_total"):
        assert METRICS[f"kvtrie_sidecar_{name}"] == ("counter", {"scope", "reason"})
    assert METRICS["kvtrie_sidecar_what_if_hit_ratio"] == ("gauge", {"scope", "memory_percent"})
    assert METRICS["kvtrie_sidecar_connections_closed_total"] == ("counter", {"reason"})


def test_the_figures_are_those_of_the_page() -> None:
    with wrapped(small_model(), store="memory://") as cached:
        for _ in range(2):
            complete(cached, list(range(3, 60)))
        assert cached.flush()
        real = flat(cached.stats())
    by_the_way = counted("api/engine", ".counters") | counted("api/tiers", "._counters")
    assert by_the_way >= {"loaded_chunks", "records_rejected.<reason>"}, "the search itself works"
    of_a_sidecar = {name for name in STATS if name.startswith("lower.")} - real
    # `lower` itself is a row: what is below it depends on the tier.
    assert set(STATS) - of_a_sidecar - {"lower"} == real | by_the_way
    assert {name for name, kind in STATS.items() if "once counted" in kind} == by_the_way - real


def test_a_wrapper_without_a_lower_tier_has_no_figures_of_one() -> None:
    with wrapped(small_model()) as cached:
        assert cached.stats()["lower"] == {}


def test_the_figures_of_a_sidecar_are_those_of_the_page(start_sidecar: Callable[..., Any]) -> None:
    tier = SidecarTier(start_sidecar().url)
    try:
        of_any = {f"lower.{name}" for name in tier.stats()}
    finally:
        tier.close()
    assert of_any == {f"lower.{name}" for name in WriteBehindStats.__dataclass_fields__}
    by_the_way = {
        f"lower.{name}"
        for name in counted("api/tiers", "self", "_count") | counted("api/tiers", "self", "_count_failed")
    }
    assert "lower.rejected.<reason>" in by_the_way, "the search itself works"
    assert {name for name in STATS if name.startswith("lower.")} == of_any | by_the_way


def test_numbers_that_the_page_gives() -> None:
    assert f"at most {REMEMBERED_BYTES // 2 >> 20} MiB" in PAGE
    scopes = ScopeCounters()._most_scopes
    assert f"beyond {scopes:,} scopes" in " ".join(PAGE.split())

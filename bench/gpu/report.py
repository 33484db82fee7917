"""What a run found, as one JSON document and as a table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench.gpu import gate

Entries = dict[str, dict[str, Any]]


def assemble(
    machine: dict[str, Any], settings: dict[str, Any], sections: dict[str, Entries]
) -> dict[str, Any]:
    """The document. Ratios are a peer's time over ours: above 1, ours is faster."""
    document: dict[str, Any] = {"machine": machine, "settings": settings}
    if "gate" in sections:
        colour, why = gate.verdict(sections["gate"])
        document["gate"] = {"verdict": colour, "why": why, "checks": sections["gate"]}
    if "ceilings" in sections:
        document["ceilings"] = sections["ceilings"]
    if "grid" in sections:
        document["grid"] = _rows(sections["grid"])
    if "serve" in sections:
        document["serve"] = _serving(sections["serve"])
    return document


def _rows(entries: Entries) -> list[dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    for name, entry in entries.items():
        result = entry.get("result")
        if result is not None and "outcome" in result:
            row = rows.get(result["row"], {})
            row.setdefault("peers", {})[result["peer"]] = result["outcome"]
        elif " / " in name and name.split(" / ")[0] in rows:
            shape, peer = name.split(" / ", 1)
            rows[shape].setdefault("peers", {})[peer] = {entry["state"]: entry.get("reason")}
        else:
            rows[name] = {"name": name, **(result or {entry["state"]: entry.get("reason")})}
    for row in rows.values():
        for peer in row.get("peers", {}).values():
            if "seconds" in peer and "seconds" in row:
                peer["ratio"] = peer["seconds"] / row["seconds"]
    return list(rows.values())


def _serving(entries: Entries) -> dict[str, Any]:
    ways = {
        name: entry.get("result") or {entry["state"]: entry.get("reason")} for name, entry in entries.items()
    }
    found: dict[str, Any] = {"ways": ways}
    ours = ways.get("reuse on", {}).get("tokens_per_second")
    if ours:
        found["ratios"] = {
            name: ours / way["tokens_per_second"]
            for name, way in ways.items()
            if "tokens_per_second" in way and name != "reuse on"
        }
    return found


def errors(sections: dict[str, Entries]) -> list[tuple[str, str]]:
    """Name and reason of every task, and every peer of a row, that failed."""
    found = []
    for entries in sections.values():
        for name, entry in entries.items():
            result = entry.get("result") or {}
            if entry["state"] == "error":
                found.append((name, entry["reason"]))
            peers = {**result.get("peers", {}), result.get("peer", ""): result.get("outcome", {})}
            found += [(f"{name} / {peer}", said["error"]) for peer, said in peers.items() if "error" in said]
    return found


def write(path: Path, document: dict[str, Any]) -> None:
    """All or nothing: a run that is cut off leaves the last whole document."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def table(document: dict[str, Any]) -> str:
    """For people."""
    lines: list[str] = []
    if "gate" in document:
        lines.append(f"correctness gate: {document['gate']['verdict']}")
        lines += [f"  {why}" for why in document["gate"]["why"]]
    else:
        lines.append("correctness gate: not run in this call; the figures stand without it")
    for name, entry in document.get("ceilings", {}).items():
        figure = entry.get("result", {}).get(f"{'bytes' if name == 'bandwidth' else 'flops'}_per_second")
        lines.append(
            f"{name}: {figure / 1e12:.2f} T{'B' if name == 'bandwidth' else 'FLOP'}/s"
            if figure
            else f"{name}: {entry.get('reason')}"
        )
    rows = document.get("grid", [])
    peers = list(dict.fromkeys(peer for row in rows for peer in row.get("peers", {})))
    if rows:
        width = max(len(row["name"]) for row in rows)
        lines.append("")
        lines.append(
            f"{'shape':{width}} {'KV MB':>8} {'floor us':>9} {'ours us':>9} {'% floor':>8} {'plan us':>8}   "
            "peer time / ours: " + ", ".join(f"[{place}] {peer}" for place, peer in enumerate(peers, 1))
        )
        lines += [_line(row, peers, width) for row in rows]
    ways = document.get("serve", {}).get("ways", {})
    if ways:
        lines.append("")
        lines.append(f"{'serving':42} {'tok/s':>10} {'TTFT ms':>9} {'max ms':>9}  ours / it")
    for name, way in ways.items():
        if "tokens_per_second" not in way:
            lines.append(f"{name:42} {_why(way)}")
            continue
        ratio = document["serve"].get("ratios", {}).get(name)
        lines.append(
            f"{name:42} {way['tokens_per_second']:10.1f} {_ms(way['ttft_median_seconds'])} "
            + _ms(way["ttft_max_seconds"])
            + (f"  {ratio:8.2f}" if ratio else "")
            + (f"  {way['gate']}" if "gate" in way else "")
        )
    return "\n".join(lines)


def _line(row: dict[str, Any], peers: list[str], width: int) -> str:
    if "seconds" not in row:
        return f"{row['name']:{width}} {_why(row)}"
    ratios = []
    for peer in peers:
        found = row["peers"].get(peer, {})
        ratios.append(
            f"{found['ratio']:6.2f}" if "ratio" in found else "     !" if "error" in found else "     -"
        )
    return (
        f"{row['name']:{width}} {row['kv_bytes'] / 1e6:8.1f} {row['floor_seconds'] * 1e6:9.1f} "
        f"{row['seconds'] * 1e6:9.1f} {row['percent_of_floor']:8.1f} {row['plan_seconds'] * 1e6:8.0f}   "
        + " ".join(ratios)
    )


def _ms(seconds: float | None) -> str:
    return f"{'-':>9}" if seconds is None else f"{seconds * 1e3:9.1f}"


def _why(entry: dict[str, Any]) -> str:
    for state in ("error", "skipped", "begun"):
        if state in entry:
            return f"{state}: {entry[state]}"
    return "nothing found"

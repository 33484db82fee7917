"""Why a prompt missed the cache, or how much of it hit: compares a prompt with a snapshot, and gives evidence.

A question with a scope sees only that scope's namespaces and the shared scopes it may read; if the snapshot has no
such scope, the answer also has names that are like it. A question without a scope is an operator's and sees the
whole snapshot.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from kvtrie.api.inspection.advice import advise
from kvtrie.api.inspection.divergence import find_divergence, with_change
from kvtrie.api.inspection.explanation import (
    Computing,
    Divergence,
    Elsewhere,
    EvictionEvidence,
    Explanation,
    FieldDifference,
    FieldValue,
    Gap,
    Question,
    UnknownScope,
)
from kvtrie.api.inspection.snapshot_match import SnapshotIndex, StoredMatch, reach
from kvtrie.api.inspection.unknown_scope import unknown_scope
from kvtrie.prefix_tree.keys import as_tokens, chunk_keys
from kvtrie.prefix_tree.snapshot import NamespaceView, NodeView, Snapshot, TombstoneView

_DIGEST_FIELDS = ("model_config", "weights", "adapter")
_SHORTEST_DIGEST = 8
"""Fewest hex digits of an abbreviated digest."""


def explain(snapshot: Snapshot, tokens: Sequence[int], question: Question) -> Explanation:
    """Compares a prompt with a snapshot.

    Raises:
        InputError: a token id is negative or beyond int32.
    """
    return _Inquiry(snapshot, as_tokens(tokens).tolist(), question).answer()


class _Inquiry:
    """One question about one prompt and one snapshot."""

    def __init__(self, snapshot: Snapshot, tokens: list[int], question: Question) -> None:
        self._snapshot = snapshot
        self._tokens = tokens
        self._question = question
        self._index = SnapshotIndex(snapshot)
        by_id = {node.id: node for node in snapshot.nodes}
        self._borrowed: dict[str, set[str]] = {}
        """For each scope, other scopes whose paths it continues in the snapshot: it may read these."""
        for node in snapshot.nodes:
            if node.parent is not None:
                mine, above = self._scope(node.namespace), self._scope(by_id[node.parent].namespace)
                if mine != above:
                    self._borrowed.setdefault(mine, set()).add(above)

    def answer(self) -> Explanation:
        """The explanation."""
        # 1. The prompt matched in every visible namespace, and in the one that the request computes in.
        matches = {i: self._match(i) for i in self._visible()}
        request = self._request_namespace(matches)
        best = None if request is None else matches[request]
        namespace = None if request is None else self._snapshot.namespaces[request]
        matched = 0 if best is None else best.tokens
        path = () if best is None else best.path
        # 2. Evidence for what comes after the match.
        elsewhere = self._elsewhere(matches, request)
        eviction = None if best is None else self._eviction(best)
        gap = None if best is None else self._gap(best)
        computing = None if best is None or not best.awaits else self._computing(best)
        divergence = None
        if best is not None:
            divergence = find_divergence(self._index, best, self._tokens, self._question.context_tokens)
        # 3. The verdict, which is the first that the evidence supports.
        verdict = self._verdict(matches, best, eviction, gap, elsewhere, divergence)
        # 4. What was lost by a divergence, if anything.
        if matched >= len(self._tokens) - 1 or (verdict == "tail" and divergence and not divergence.stored):
            divergence = None
        if verdict == "diverged" and best is not None and divergence is not None:
            divergence = with_change(divergence, self._index, best, self._tokens)
        # 5. The answer, and what to do.
        cached = self._cached(matched)
        computed, rate = len(self._tokens) - cached, self._question.prefill_tokens_per_second
        found = Explanation(
            verdict=verdict,
            scope=self._question.scope,
            namespace=namespace,
            prompt_tokens=len(self._tokens),
            chunk_tokens=self._chunk_tokens(best),
            cached_tokens=cached,
            computed_tokens=computed,
            computed_seconds=None if rate is None else computed / rate,
            whole_chunks=len(path),
            partial_tokens=0 if best is None else best.partial_tokens,
            tiers=self._by_tier(path),
            through=list(dict.fromkeys(self._scope(node.namespace) for node in path)),
            divergence=divergence,
            elsewhere=elsewhere,
            eviction=eviction,
            computing=computing,
            gap=gap,
            scopes=self._scopes() if self._question.scope is None and not matched else [],
            unknown_scopes=list(self._unknown_scopes()),
            advice=[],
        )
        return replace(found, advice=advise(found))

    def _verdict(
        self,
        matches: Mapping[int, StoredMatch],
        best: StoredMatch | None,
        eviction: EvictionEvidence | None,
        gap: Gap | None,
        elsewhere: list[Elsewhere],
        divergence: Divergence | None,
    ) -> str:
        matched = 0 if best is None else best.tokens
        length, chunk_tokens = len(self._tokens), self._chunk_tokens(best)
        holds_something = {node.namespace for node in self._snapshot.nodes} & set(matches)
        for verdict, holds in (
            ("short", length < chunk_tokens),
            ("hit", length > 1 and matched >= length - 1),
            ("tail", best is not None and len(best.path) == length // chunk_tokens),
            ("computing", best is not None and bool(best.awaits)),
            ("evicted", eviction is not None),
            ("gap", gap is not None),
            ("namespace", bool(elsewhere) and (best is None or elsewhere[0].matched_tokens > matched)),
            ("empty", not holds_something),
            ("diverged", divergence is not None and bool(divergence.stored)),
        ):
            if holds:
                return verdict
        return "ends"

    # ---- whose tokens count

    def _scope(self, namespace: int) -> str:
        return self._snapshot.namespaces[namespace].scope

    def _scopes(self) -> list[str]:
        return sorted({namespace.scope for namespace in self._snapshot.namespaces})

    def _readable_scopes(self, scope: str) -> set[str]:
        return {scope, *self._question.shared_scopes, *self._borrowed.get(scope, ())}

    def _visible(self) -> list[int]:
        asked = self._question.scope
        scopes = set(self._scopes()) if asked is None else self._readable_scopes(asked)
        return [i for i, namespace in enumerate(self._snapshot.namespaces) if namespace.scope in scopes]

    def _match(self, namespace: int) -> StoredMatch:
        scopes = self._readable_scopes(self._scope(namespace))
        fields = self._snapshot.namespaces[namespace].fields
        readable = [
            i
            for i, other in enumerate(self._snapshot.namespaces)
            if i != namespace and other.scope in scopes and not _model_differences(fields, other.fields)
        ]
        return self._index.match(self._tokens, namespace, readable)

    def _request_namespace(self, matches: Mapping[int, StoredMatch]) -> int | None:
        """The namespace the request computes in: one of its scope with the expected fields, the best match among
        several.

        If its scope has none, a namespace of a shared scope with the expected model.
        """
        asked, expected = self._question.scope, self._question.expected
        # 1. Of the scope itself.
        own = [i for i in matches if asked is None or self._scope(i) == asked]
        found = [i for i in own if self._is_expected(i, expected)]
        # 2. If there is none yet, of a shared scope.
        if not found and asked is not None:
            model = {name: value for name, value in expected.items() if name not in ("scope", "salt")}
            found = [i for i in matches if i not in own and self._is_expected(i, model)]
        # 3. The one with the best match; the first of equals.
        return max(found, key=lambda i: (reach(matches[i]), -i), default=None)

    def _is_expected(self, namespace: int, expected: Mapping[str, FieldValue]) -> bool:
        fields = self._snapshot.namespaces[namespace].fields
        return all(_is_same(name, value, fields[name]) for name, value in expected.items())

    def _unknown_scopes(self) -> Iterator[UnknownScope]:
        asked = [] if self._question.scope is None else [self._question.scope]
        for scope in dict.fromkeys([*asked, *self._question.shared_scopes]):
            unknown = unknown_scope(self._snapshot, scope)
            if unknown is not None:
                yield unknown

    # ---- evidence

    def _cached(self, matched: int) -> int:
        """Cached tokens of a match: the prompt's last token is always computed."""
        return max(0, min(len(self._tokens) - 1, matched))

    def _chunk_tokens(self, best: StoredMatch | None) -> int:
        if best is not None:
            return best.chunk_tokens
        return int(self._question.expected.get("chunk_tokens", self._snapshot.chunk_tokens))

    def _by_tier(self, path: Iterable[NodeView]) -> dict[str, int]:
        order = [tier.name for tier in self._snapshot.tiers]
        counts: dict[str, int] = {}
        for node in path:
            fastest = next((name for name in order if name in node.tiers), next(iter(node.tiers)))
            counts[fastest] = counts.get(fastest, 0) + 1
        return counts

    def _elsewhere(self, matches: Mapping[int, StoredMatch], request: int | None) -> list[Elsewhere]:
        found = []
        matched = 0 if request is None else matches[request].tokens
        for i, match in matches.items():
            if i == request:
                continue
            differences = self._differences(request, self._snapshot.namespaces[i])
            # A match of less than a chunk, and no longer than the request's own, is no evidence: many prompts start
            # alike.
            if differences and (match.path or match.tokens > matched):
                other = self._snapshot.namespaces[i]
                served = self._cached(match.tokens)
                found.append(Elsewhere(other.digest, other.scope, served, differences))
        return sorted(found, key=lambda other: (-other.matched_tokens, other.digest))

    def _differences(self, request: int | None, other: NamespaceView) -> list[FieldDifference]:
        """Fields in which the request's namespace differs. Scope and salt count only if the other scope is not
        readable."""
        if request is None:
            wanted: Mapping[str, FieldValue] = self._question.expected
            scope = self._question.scope
        else:
            wanted = self._snapshot.namespaces[request].fields
            scope = self._scope(request)
        names = [name for name in other.fields if name in wanted]
        if scope is not None and other.scope != scope and other.scope in self._readable_scopes(scope):
            names = [name for name in names if name not in ("scope", "salt")]
        return [
            FieldDifference(name, wanted[name], other.fields[name])
            for name in names
            if not _is_same(name, wanted[name], other.fields[name])
        ]

    def _keys(self, best: StoredMatch, namespace: int) -> list[str]:
        """Chunk keys of the whole prompt in a namespace, hex."""
        digest = bytes.fromhex(self._snapshot.namespaces[namespace].digest)
        packed = as_tokens(self._tokens).tobytes()
        return [key.hex() for key in chunk_keys(digest, packed, best.chunk_tokens)]

    def _key_namespaces(self, best: StoredMatch) -> list[int]:
        """Namespaces whose chunks may continue the match: the request's own, and readable ones of the same
        model."""
        scopes = self._readable_scopes(self._scope(best.namespace))
        fields = self._snapshot.namespaces[best.namespace].fields
        return [
            i
            for i, other in enumerate(self._snapshot.namespaces)
            if other.scope in scopes and not _model_differences(fields, other.fields)
        ]

    def _eviction(self, best: StoredMatch) -> EvictionEvidence | None:
        first = len(best.path) + len(best.awaits)
        stones = {(stone.scope, stone.key): stone for stone in self._snapshot.tombstones}
        found: dict[int, TombstoneView] = {}
        for namespace in self._key_namespaces(best) if stones else ():
            scope = self._scope(namespace)
            for i, key in enumerate(self._keys(best, namespace)[first:], first + 1):
                stone = stones.get((scope, key))
                if stone is not None and stone.depth == i:
                    found.setdefault(i, stone)
        if not found:
            return None
        chunk = min(found)
        stone = found[chunk]
        return EvictionEvidence(
            chunk=chunk,
            key=stone.key,
            tier=stone.tier,
            reason=stone.reason,
            evicted_at=stone.evicted_at,
            seconds_ago=self._snapshot.taken_at - stone.evicted_at,
            chunks=len(found),
        )

    def _computing(self, best: StoredMatch) -> Computing:
        return Computing(
            chunk=len(best.path) + 1,
            chunks=len(best.awaits),
            tokens=len(best.awaits) * best.chunk_tokens,
            seconds=self._snapshot.taken_at - best.awaits[0].created_at,
        )

    def _gap(self, best: StoredMatch) -> Gap | None:
        first = len(best.path) + len(best.awaits)
        beyond: set[int] = set()
        for namespace in self._key_namespaces(best):
            held = {
                (node.depth, node.key): node for node in self._snapshot.nodes if node.namespace == namespace
            }
            for i, key in enumerate(self._keys(best, namespace)[first + 1 :], first + 2):
                node = held.get((i, key))
                chunk = self._tokens[(i - 1) * best.chunk_tokens : i * best.chunk_tokens]
                if node is not None and node.tiers and node.tokens == chunk:
                    beyond.add(i)
        return Gap(first + 1, sorted(beyond)) if beyond else None


def _model_differences(one: Mapping[str, FieldValue], other: Mapping[str, FieldValue]) -> list[str]:
    """Fields besides scope and salt in which two namespaces differ."""
    return [name for name in one if name not in ("scope", "salt") and one[name] != other[name]]


def _is_same(name: str, expected: FieldValue, found: FieldValue) -> bool:
    if expected == found:
        return True
    abbreviated = isinstance(expected, str) and len(expected) >= _SHORTEST_DIGEST and name in _DIGEST_FIELDS
    return abbreviated and str(found).startswith(str(expected))

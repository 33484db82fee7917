"""Finding the longest cached prefix: by chunk key, believed only after the tokens were compared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from kvtrie.prefix_tree.keys import TOKEN_BYTES, Digest, chain_key
from kvtrie.prefix_tree.match import Match
from kvtrie.prefix_tree.node import Node, Root


@dataclass(frozen=True, slots=True)
class Matching:
    """A read-only look at a tree."""

    index: Mapping[bytes, Node]
    """Nodes by chunk key; where keys collide, one of them."""
    digest: Digest
    chunk_tokens: int

    def longest(self, root: Root, tokens: bytes, readable: Iterable[Root]) -> Match:
        """The longest match in `root`'s namespace, in `readable` ones, and through those into `root`'s grafts."""
        # 1. In the namespace itself.
        best = self._onwards(root, root, [], root.key, tokens)
        awaits = best.awaits
        # 2. In each shared scope it may read, and from there into the grafts of its own namespace.
        for shared in readable:
            if shared is root:
                continue
            through = self._onwards(shared, shared, [], shared.key, tokens)
            candidates = [through]
            key = root.key
            for depth, node in enumerate(through.path, 1):
                key = self.digest(key + node.tokens)
                if node.grafts is not None and root in node.grafts:
                    candidates.append(self._onwards(root, node, through.path[:depth], key, tokens))
            for found in candidates:
                if found.cached_tokens > best.cached_tokens:
                    best = found
                if found.awaits is not None and (awaits is None or found.awaits.depth > awaits.depth):
                    awaits = found.awaits
        # 3. The chunk key in the own namespace, from which the next chunk's key is computed.
        if best.node.root is not root:
            best.chain_key = chain_key(root.key, tokens, len(best.path), self.chunk_tokens, self.digest)
        best.root = root
        # Also where another way has more cached now: what is being computed must not be claimed again.
        best.awaits = awaits if awaits is not None and awaits.depth > len(best.path) else None
        return best

    def _onwards(self, root: Root, node: Node, above: list[Node], key: bytes, tokens: bytes) -> Match:
        """Matches on from `node`, at the end of the path `above`, into children of `root`'s namespace only."""
        digest, index = self.digest, self.index
        token_bytes_per_chunk = self.chunk_tokens * TOKEN_BYTES
        path = above.copy()
        start = len(path) * token_bytes_per_chunk
        last_key, awaits = key, None
        for end in range(start + token_bytes_per_chunk, len(tokens) + 1, token_bytes_per_chunk):
            chunk = tokens[start:end]
            key = digest(key + chunk)
            child = index.get(key)
            if child is None or child.tokens != chunk or child.parent is not node or child.root is not root:
                # Only a digest collision hides a child from the index; the ordered children know.
                child = node.find(root, chunk)
                if child is None:
                    break
            if awaits is not None or child.claim is not None:
                awaits = child
            else:
                path.append(child)
                last_key = key
            node = child
            start = end
        whole = len(path) * token_bytes_per_chunk
        deepest = path[-1] if path else root
        partial, partial_tokens = deepest.closest(root, tokens[whole : whole + token_bytes_per_chunk])
        return Match(root, path, last_key, whole // TOKEN_BYTES, partial, partial_tokens, awaits)

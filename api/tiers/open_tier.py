"""From the URL of `store=` to a lower tier: a sidecar's, or a store that `store/open_store.py` knows."""

from __future__ import annotations

from collections.abc import Collection

from kvtrie.api.tiers.lower_tier import LowerTier
from kvtrie.api.tiers.store_tier import StoreTier
from kvtrie.prefix_tree.errors import InputError
from kvtrie.store import open_store


def open_lower(url: str, api_key: str | None = None, shared_scopes: Collection[str] = ()) -> LowerTier:
    """Opens a sidecar (`http://...`, `https://...`, `unix:///...`) or a store (all other URLs) as a lower tier.

    Args:
        url: address of the tier.
        api_key: names the tenant to a sidecar; default KVTRIE_API_KEY.
        shared_scopes: names of shared scopes that a sidecar may keep apart from the tenant's own.

    Raises:
        InputError: a URL that does not parse, or httpx is not installed and the URL is a sidecar's.
        AccessDenied: the sidecar does not know the API key.
    """
    if url.startswith(("http://", "https://", "unix://")):
        try:
            from kvtrie.api.tiers.sidecar_tier import SidecarTier
        except ModuleNotFoundError as error:
            if error.name != "httpx":
                raise
            raise InputError("the sidecar's client needs httpx: pip install 'kvtrie[all]'") from error
        return SidecarTier(url, api_key=api_key, shared_scopes=shared_scopes)
    return StoreTier(open_store(url))

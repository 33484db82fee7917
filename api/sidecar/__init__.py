"""The sidecar: a cache process beside the model servers of one host, and the client that engines use.

Here is what a client needs; the server's side (`serving`, `app`, `sidecar`) is imported by `kvtrie sidecar`.
"""

from kvtrie.api.sidecar.client import SidecarTier
from kvtrie.api.sidecar.remote_snapshot import fetch_snapshot

__all__ = ["SidecarTier", "fetch_snapshot"]

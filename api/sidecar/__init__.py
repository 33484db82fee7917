"""The sidecar: a cache process beside the model servers of one host. Its client is `kvtrie.api.tiers.sidecar_tier`.

Nothing is imported here: `run_sidecar` needs FastAPI and uvicorn, the tree of records does not.
"""

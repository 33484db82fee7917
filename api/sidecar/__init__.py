"""The sidecar: a cache process beside the model servers of one host. Its client is `api/tiers/sidecar_tier.py`.

Nothing is imported here: `app` and `run_sidecar` need FastAPI and uvicorn, `sidecar` does not.
"""

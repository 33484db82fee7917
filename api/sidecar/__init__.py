"""The sidecar: a cache process beside the model servers of one host, and the client that engines use.

Nothing is imported here: `client` needs httpx, `serving` needs FastAPI and uvicorn, `address` neither.
"""

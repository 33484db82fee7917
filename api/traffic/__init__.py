"""Notes on requests while serving: the request log, and what-if curves."""

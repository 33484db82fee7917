"""What is noted of requests while serving: the log, and what-if curves."""

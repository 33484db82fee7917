"""The load generator: the same requests, at the same times, to any server that speaks OpenAI's API.

arrivals + workload -> LoadPlan -> run_load(client) -> Outcome ... -> measure() -> Measures -> table, JSON, plots
"""

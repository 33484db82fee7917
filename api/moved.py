"""Where modules are now that were elsewhere before `api` had rooms. An import by a former name raises, and says it.

Names of `kvtrie` and of its packages (`from kvtrie import Engine`, `from kvtrie.store import Record`) never moved.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

_ROOMS = {
    "kvtrie.api": {
        "engine": "decode_graphs handed_over held_interrupts kv_memory prompt request sampler scopes sequence_kv "
        "step_runner text_stream",
        "huggingface": "cached_model generate_arguments generate_check model_attributes tree_handle try_generate",
        "inspection": "explain explanation machine snapshot_check snapshot_filter snapshot_match snapshot_stats "
        "store_snapshot version_range",
        "models": "adapters compiled_model families layer_attention model_facts model_identity model_probe "
        "model_runner model_state model_view rope tensor_digest",
        "tiers": "chunk_records lower_tier store_tier",
    },
    "kvtrie.api.cli": {"http": "http_get"},
    "kvtrie.api.sidecar": {
        "http": "address byte_budget connection_table http_loop listeners tenants watched_protocol wrong_keys",
        "tiers": "homes scope_counters",
    },
    "kvtrie.api.trace": {"traffic": "recorder sampled_paths shards what_if"},
}
"""Modules that kept their own name: by the package they were in, then by the room of `kvtrie.api` they are in."""

MOVED: Mapping[str, str] = MappingProxyType(
    {
        **{
            f"{package}.{module}": f"kvtrie.api.{room}.{module}"
            for package, rooms in _ROOMS.items()
            for room, modules in rooms.items()
            for module in modules.split()
        },
        "kvtrie.api.attention_switch": "kvtrie.api.models.layer_attention",
        "kvtrie.api.cli.token_text": "kvtrie.api.tokenizer",
        "kvtrie.api.hf_cache": "kvtrie.api.huggingface.pool_cache",
        "kvtrie.api.hf_loop": "kvtrie.api.huggingface.generate_loop",
        "kvtrie.api.loading": "kvtrie.api.engine.load_missing",
        "kvtrie.api.open_lower": "kvtrie.api.tiers.open_tier",
        "kvtrie.api.sidecar.byte_size": "kvtrie.api.byte_size",
        "kvtrie.api.sidecar.chain": "kvtrie.api.tiers.record_link",
        "kvtrie.api.sidecar.client": "kvtrie.api.tiers.sidecar_tier",
        "kvtrie.api.sidecar.connection": "kvtrie.api.tiers.sidecar_connection",
        "kvtrie.api.sidecar.fall_through": "kvtrie.api.sidecar.read_through",
        "kvtrie.api.sidecar.guard": "kvtrie.api.http.request_guard",
        "kvtrie.api.sidecar.picture": "kvtrie.api.sidecar.host_snapshot",
        "kvtrie.api.sidecar.record_tree": "kvtrie.api.tiers.host_tier",
        "kvtrie.api.sidecar.serving": "kvtrie.api.sidecar.run_sidecar",
        "kvtrie.api.sidecar.wire": "kvtrie.api.http.record_frames",
        "kvtrie.api.trace.lines": "kvtrie.api.trace.json_lines",
        "kvtrie.api.trace.watch": "kvtrie.api.traffic.traffic_watch",
        "kvtrie.chunk_kernels.cutting": "kvtrie.chunk_kernels.work_split",
        "kvtrie.chunk_kernels.slots": "kvtrie.chunk_kernels.slot_allocator",
        "kvtrie.chunk_kernels.torch_work": "kvtrie.chunk_kernels.torch_items",
        "kvtrie.chunk_kernels.varied_work": "kvtrie.chunk_kernels.variant_items",
        "kvtrie.prefix_tree.claims": "kvtrie.prefix_tree.node",
    }
)
"""Former name of each module, and its name now."""

RENAMED: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "kvtrie.api.explanation": {"Eviction": "EvictionEvidence"},
        "kvtrie.api.sidecar.byte_size": {"parse_byte_size": "parse_bytes"},
        "kvtrie.api.sidecar.chain": {"Link": "RecordLink"},
        "kvtrie.api.sidecar.connection": {"Question": "SidecarRequest"},
        "kvtrie.api.sidecar.fall_through": {"FallThrough": "ReadThrough"},
        "kvtrie.api.sidecar.guard": {"Guard": "RequestGuard"},
        "kvtrie.api.sidecar.picture": {"take_picture": "take_host_snapshot"},
        "kvtrie.api.sidecar.record_tree": {"RecordTree": "HostTier"},
        "kvtrie.chunk_kernels.cutting": {"Cutting": "WorkSplit", "Span": "SharedSpan", "cut": "split_work"},
    }
)
"""By a module's former name: names in it that have changed too."""


def refuse_former_name(module: str) -> None:
    """Raises ModuleNotFoundError if `module` is a former name; the error says the present one."""
    if module not in MOVED:
        return
    names = "".join(f"; {old} is {new}" for old, new in RENAMED.get(module, {}).items())
    raise ModuleNotFoundError(f"the module {module} is {MOVED[module]} now{names}", name=module)

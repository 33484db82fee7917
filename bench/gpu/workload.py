"""What serving is measured on: a Llama-3-8B shape with random weights and its requests; a tiny one to go dry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class Workload:
    """Who asks for what, of which model."""

    layers: int = 32
    hidden: int = 4096
    q_heads: int = 32
    kv_heads: int = 8
    intermediate: int = 14336
    vocabulary: int = 128256
    dtype: str = "bfloat16"
    requests: int = 64
    system_prompts: int = 8
    system_tokens: int = 2048
    own_tokens: int = 64
    new_tokens: int = 128
    memory: str = "32GiB"
    step_tokens: int = 4096
    """Most prompt tokens per forward pass, ours and `generate_batch`'s alike."""

    @property
    def prompt_tokens(self) -> int:
        """Of one request."""
        return self.system_tokens + self.own_tokens


LLAMA_8B = Workload()
TINY = Workload(
    layers=2,
    hidden=64,
    q_heads=4,
    kv_heads=2,
    intermediate=128,
    vocabulary=512,
    dtype="float32",
    requests=4,
    system_prompts=2,
    system_tokens=64,
    own_tokens=8,
    new_tokens=4,
    memory="64MiB",
    step_tokens=128,
)
"""For the dry run, on the CPU."""


def batch_configurations(workload: Workload) -> dict[str, dict[str, Any]]:
    """Continuous batching with explicit sizes and shared pages; flash attention is taken where there is one."""
    page = 256 if workload.system_tokens >= 256 else 16
    per_request = -(-(workload.prompt_tokens + workload.new_tokens) // page) + 1
    sizes = {
        "page_size": page,
        "num_blocks": workload.requests * per_request + 64,
        "max_requests_per_batch": workload.requests,
        "max_blocks_per_request": per_request + per_request % 2,
        "allow_block_sharing": True,
        "max_batch_tokens": max(workload.step_tokens, workload.requests),
    }
    return {
        "graphs as it chooses": sizes,
        "graphs on": {**sizes, "use_cuda_graph": True},
        "large batches": {**sizes, "max_batch_tokens": 4 * sizes["max_batch_tokens"]},
    }


def random_tokens(workload: Workload, count: int, generator: torch.Generator) -> list[int]:
    """Token ids, none of them special."""
    found: list[int] = torch.randint(3, workload.vocabulary, (count,), generator=generator).tolist()
    return found


def build_model(workload: Workload, device: torch.device) -> Any:
    """The model, made on its device: weights drawn there, nothing passes through the host."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        hidden_size=workload.hidden,
        intermediate_size=workload.intermediate,
        num_hidden_layers=workload.layers,
        num_attention_heads=workload.q_heads,
        num_key_value_heads=workload.kv_heads,
        vocab_size=workload.vocabulary,
        max_position_embeddings=8192,
        rope_theta=500000.0,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(
            config, dtype=getattr(torch, workload.dtype), attn_implementation="sdpa"
        ).eval()
    # The two best of so many random logits tie in bf16 in 6 rows of 100, and noise decides. Uneven rows make
    # that 2 (both drawn 300 times), at no cost in time.
    with torch.no_grad():
        spread = torch.randn(workload.vocabulary, 1, device=device).exp()
        model.lm_head.weight.mul_(spread.to(model.lm_head.weight.dtype))
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model

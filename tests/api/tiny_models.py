"""Tiny random models of every family kvtrie serves, with weights large enough that logits differ."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf
from transformers import PreTrainedModel

VOCABULARY = 211
POSITIONS = 512
WINDOW = 20
"""Of every family that has one: most prompts of the tests are longer, and no chunk size divides it."""

_COMMON = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_LLAMA_LIKE = {
    **_COMMON,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": POSITIONS,
}
_GQA = {**_LLAMA_LIKE, "num_key_value_heads": 2}
_MOE = {**_GQA, "num_experts_per_tok": 2}
_WINDOW = {"sliding_window": WINDOW}
_WIDE_HEADS = {"head_dim": 32}
_MIXED = {**_WINDOW, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
_GPT2_LIKE = {**_COMMON, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": POSITIONS}

_OPT = {
    **_COMMON,
    "hidden_size": 64,
    "ffn_dim": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": POSITIONS,
}
_DEEPSEEK_MOE = {
    **_LLAMA_LIKE,
    "num_experts_per_tok": 2,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
    "n_group": 2,
    "topk_group": 1,
}
_DEEPSEEK = {
    **_DEEPSEEK_MOE,
    "num_key_value_heads": 4,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 20,
}
"""Keys of 24 numbers, values of 20: as the attention function gets them, expanded from one latent."""

CONFIGS = {
    "apertus": lambda: hf.ApertusConfig(**_GQA),
    "arcee": lambda: hf.ArceeConfig(**_GQA),
    "cohere": lambda: hf.CohereConfig(**_GQA),
    "cohere2-window": lambda: hf.Cohere2Config(**_GQA, **_MIXED),
    "deepseek_v2": lambda: hf.DeepseekV2Config(**{**_DEEPSEEK, "q_lora_rank": None}),
    "deepseek_v3": lambda: hf.DeepseekV3Config(**_DEEPSEEK),
    "dots1-window": lambda: hf.Dots1Config(**_DEEPSEEK_MOE, **_MIXED, num_key_value_heads=2),
    "ernie4_5": lambda: hf.Ernie4_5Config(**_GQA, **_WIDE_HEADS),
    "exaone4-window": lambda: hf.Exaone4Config(**_GQA, **_MIXED),
    "gemma": lambda: hf.GemmaConfig(**_GQA, **_WIDE_HEADS),
    "gemma2-window": lambda: hf.Gemma2Config(
        **_GQA,
        **_WIDE_HEADS,
        **_WINDOW,
        query_pre_attn_scalar=24,
        attn_logit_softcapping=5.0,
        # Older versions of transformers choose sdpa, which leaves the softcap out.
        attn_implementation="eager",
    ),
    "gemma3-window": lambda: hf.Gemma3TextConfig(**_GQA, **_WIDE_HEADS, **_MIXED, query_pre_attn_scalar=24),
    "gemma3n-window": lambda: hf.Gemma3nTextConfig(
        **{**_GQA, "num_hidden_layers": 5},
        **_WIDE_HEADS,
        **_WINDOW,
        layer_types=[*_MIXED["layer_types"][:2] * 2, "sliding_attention"],
        # Layers 3 and 4 attend to the keys and values of layers 1 and 2.
        num_kv_shared_layers=2,
        vocab_size_per_layer_input=VOCABULARY,
        hidden_size_per_layer_input=16,
        laurel_rank=8,
        activation_sparsity_pattern=[0.9, 0.0, 0.0, 0.0, 0.0],
    ),
    "glm": lambda: hf.GlmConfig(**_GQA, **_WIDE_HEADS),
    "glm4": lambda: hf.Glm4Config(**_GQA, **_WIDE_HEADS),
    "glm4_moe": lambda: hf.Glm4MoeConfig(
        **_DEEPSEEK_MOE, num_key_value_heads=2, head_dim=32, use_qk_norm=True, attention_bias=True
    ),
    "gpt2": lambda: hf.GPT2Config(**_GPT2_LIKE),
    "gpt_bigcode-mha": lambda: hf.GPTBigCodeConfig(**_GPT2_LIKE, multi_query=False),
    "gpt_bigcode-mqa": lambda: hf.GPTBigCodeConfig(**_GPT2_LIKE, multi_query=True),
    "gpt_neox": lambda: hf.GPTNeoXConfig(**_LLAMA_LIKE),
    "gpt_oss-window": lambda: hf.GptOssConfig(**_MOE, **_WIDE_HEADS, **_WINDOW, num_local_experts=4),
    "granite": lambda: hf.GraniteConfig(**_GQA, attention_multiplier=0.3),
    "granitemoe": lambda: hf.GraniteMoeConfig(**_MOE, num_local_experts=4),
    "helium": lambda: hf.HeliumConfig(**_GQA, head_dim=16),
    "hunyuan_v1_dense": lambda: hf.HunYuanDenseV1Config(**_GQA, **_WIDE_HEADS),
    "llama-gqa": lambda: hf.LlamaConfig(**_GQA),
    "llama-mha": lambda: hf.LlamaConfig(**_LLAMA_LIKE),
    "ministral-window": lambda: hf.MinistralConfig(**_GQA, **_WIDE_HEADS, **_MIXED),
    "minimax_m2": lambda: hf.MiniMaxM2Config(**_MOE, **_WIDE_HEADS, num_local_experts=4),
    "ministral3-window": lambda: hf.Ministral3Config(
        **_GQA,
        **_WIDE_HEADS,
        **_WINDOW,
        # Queries are stretched from position 64 on.
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 10_000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 64,
            "llama_4_scaling_beta": 0.3,
        },
    ),
    "mistral-window": lambda: hf.MistralConfig(**_GQA, **_WINDOW),
    "mixtral-window": lambda: hf.MixtralConfig(**_MOE, **_WINDOW, num_local_experts=4),
    "olmo": lambda: hf.OlmoConfig(**_GQA),
    "olmo2": lambda: hf.Olmo2Config(**_GQA),
    "olmo3-window": lambda: hf.Olmo3Config(**_GQA, **_MIXED),
    "olmoe": lambda: hf.OlmoeConfig(**_MOE, num_experts=4),
    "opt": lambda: hf.OPTConfig(**_OPT),
    "opt-narrow-embedding": lambda: hf.OPTConfig(**_OPT, do_layer_norm_before=False, word_embed_proj_dim=32),
    "persimmon": lambda: hf.PersimmonConfig(**_LLAMA_LIKE),
    "phi": lambda: hf.PhiConfig(**_GQA),
    "phi3": lambda: hf.Phi3Config(**_GQA, original_max_position_embeddings=POSITIONS),
    "phi3-window": lambda: hf.Phi3Config(**_GQA, **_WINDOW, original_max_position_embeddings=POSITIONS),
    # Phi 3.5 MoE's own window is as long as its positions.
    "phimoe": lambda: hf.PhimoeConfig(**_MOE, num_local_experts=4, sliding_window=POSITIONS),
    "qwen2": lambda: hf.Qwen2Config(**_GQA),
    "qwen2-window": lambda: hf.Qwen2Config(**_GQA, **_WINDOW, use_sliding_window=True, max_window_layers=1),
    "qwen2_moe": lambda: hf.Qwen2MoeConfig(
        **_MOE, moe_intermediate_size=32, shared_expert_intermediate_size=32, num_experts=4
    ),
    "qwen3": lambda: hf.Qwen3Config(**_GQA, **_WIDE_HEADS),
    "qwen3-window": lambda: hf.Qwen3Config(
        **_GQA, **_WIDE_HEADS, **_WINDOW, use_sliding_window=True, max_window_layers=1
    ),
    "qwen3_moe-window": lambda: hf.Qwen3MoeConfig(
        **_MOE, **_WIDE_HEADS, **_WINDOW, use_sliding_window=True, moe_intermediate_size=32, num_experts=4
    ),
    "seed_oss": lambda: hf.SeedOssConfig(**_GQA, **_WIDE_HEADS),
    "smollm3-window": lambda: hf.SmolLM3Config(
        **_GQA, **_WINDOW, use_sliding_window=True, no_rope_layers=[1, 0, 1]
    ),
    "starcoder2-window": lambda: hf.Starcoder2Config(**_GQA, **_WINDOW),
}


def config_of(family: str) -> Any:
    """The config of a family; skips the test where the installed transformers does not have it."""
    try:
        return CONFIGS[family]()
    except AttributeError as missing:
        pytest.skip(f"transformers {hf.__version__} does not have it: {missing}")


def tiny_model(family: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> PreTrainedModel:
    """A random model of `family`; the same seed gives the same weights."""
    torch.manual_seed(seed)
    model = hf.AutoModelForCausalLM.from_config(config_of(family))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Freshly initialised weights are so small that attention hardly moves the logits.
            if parameter.ndim >= 2:
                parameter.mul_(6 if "emb" in name or "wte" in name else 3)
    return model.to(dtype).eval()


def prompts(lengths: list[int], shared: int = 0, seed: int = 1) -> list[list[int]]:
    """Random prompts of these lengths that agree on their first `shared` tokens."""
    generator = torch.Generator().manual_seed(seed)
    prefix = torch.randint(3, VOCABULARY, (shared,), generator=generator).tolist()
    return [
        (prefix + torch.randint(3, VOCABULARY, (length,), generator=generator).tolist())[:length]
        for length in lengths
    ]


def left_padded(rows: list[list[int]]) -> dict[str, torch.Tensor]:
    """`input_ids` and `attention_mask` as a tokenizer with left padding gives them."""
    columns = max(map(len, rows))
    ids = torch.zeros(len(rows), columns, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, tokens in enumerate(rows):
        ids[row, columns - len(tokens) :] = torch.tensor(tokens)
        mask[row, columns - len(tokens) :] = 1
    return {"input_ids": ids, "attention_mask": mask}

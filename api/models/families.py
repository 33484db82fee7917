"""The model families that kvtrie serves, and the well-known ones that it does not serve, each with its reason.

A family is a `model_type` of a transformers config; the installed version need not have it. A family is added
here when it passes `tests/api/huggingface/test_exactness.py`, and `docs/models.md` is made from here.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Family:
    """One family that is served."""

    name: str
    """Name that its makers use."""
    has_window: bool = False
    """Some or all of its layers may have a sliding window."""
    has_softcap: bool = False
    """Its layers cap their attention scores."""
    has_sinks: bool = False
    """Its layers have attention sinks."""
    has_experts: bool = False
    """Its feed-forward layers are mixtures of experts."""
    wrappers: tuple[str, ...] = ()
    """Model types that add images or sound, whose text is tested."""
    notes: str = ""
    """Remark for users."""


FAMILIES = {
    "apertus": Family("Apertus"),
    "arcee": Family("Arcee"),
    "cohere": Family("Command R"),
    "cohere2": Family("Command R7B, Command A", has_window=True),
    "deepseek_v2": Family(
        "DeepSeek V2",
        has_experts=True,
        notes="keys and values are held as attention gets them, expanded: many times the latent's memory",
    ),
    "deepseek_v3": Family(
        "DeepSeek V3, R1",
        has_experts=True,
        notes="keys and values are held as attention gets them, expanded: many times the latent's memory",
    ),
    "dots1": Family("dots.llm1", has_window=True, has_experts=True),
    "ernie4_5": Family("ERNIE 4.5"),
    "exaone4": Family("EXAONE 4", has_window=True),
    "gemma": Family("Gemma"),
    "gemma2": Family(
        "Gemma 2", has_window=True, has_softcap=True, notes="on eager attention where sdpa is older"
    ),
    "gemma3_text": Family("Gemma 3", has_window=True, wrappers=("gemma3",)),
    "gemma3n_text": Family(
        "Gemma 3n",
        has_window=True,
        notes="layers that share another one's keys and values hold a copy of their own",
    ),
    "glm": Family("GLM 4"),
    "glm4": Family("GLM 4 0414"),
    "glm4_moe": Family("GLM 4.5 to 4.7", has_experts=True),
    "gpt2": Family("GPT-2"),
    "gpt_bigcode": Family("GPT BigCode, SantaCoder"),
    "gpt_neox": Family("GPT-NeoX, Pythia"),
    "gpt_oss": Family("GPT-OSS", has_window=True, has_sinks=True, has_experts=True),
    "granite": Family("Granite"),
    "granitemoe": Family("Granite MoE", has_experts=True),
    "helium": Family("Helium"),
    "hunyuan_v1_dense": Family("Hunyuan dense"),
    "llama": Family("Llama 1 to 3", wrappers=("llava",)),
    "minimax_m2": Family("MiniMax M2", has_experts=True),
    "ministral": Family("Ministral 8B", has_window=True),
    "ministral3": Family("Ministral 3", has_window=True, wrappers=("mistral3",)),
    "mistral": Family("Mistral", has_window=True, wrappers=("mistral3",)),
    "mixtral": Family("Mixtral", has_window=True, has_experts=True),
    "olmo": Family("OLMo"),
    "olmo2": Family("OLMo 2"),
    "olmo3": Family("OLMo 3", has_window=True),
    "olmoe": Family("OLMoE", has_experts=True),
    "opt": Family("OPT"),
    "persimmon": Family("Persimmon"),
    "phi": Family("Phi 1, 1.5 and 2"),
    "phi3": Family("Phi 3 and 4", has_window=True),
    "phimoe": Family(
        "Phi 3.5 MoE", has_experts=True, notes="without a window that is shorter than its positions"
    ),
    "qwen2": Family("Qwen 2 and 2.5", has_window=True, wrappers=("llava_onevision",)),
    "qwen2_moe": Family("Qwen 1.5 and 2 MoE", has_experts=True, notes="without a window"),
    "qwen3": Family("Qwen 3", has_window=True),
    "qwen3_moe": Family("Qwen 3 MoE", has_window=True, has_experts=True),
    "seed_oss": Family("Seed-OSS"),
    "smollm3": Family("SmolLM3", has_window=True),
    "starcoder2": Family("StarCoder2", has_window=True),
}
"""By model type."""

NOT_SERVED = {
    "bloom": "its layers compute attention themselves, with ALiBi",
    "diffllama": "a layer attends twice, over the two halves of its values",
    "falcon": "its layers compute attention themselves, some models with ALiBi",
    "gemma4_text": "its full-attention layers have keys and values of another width than the layers with a window",
    "gptj": "its layers compute attention themselves",
    "llama4_text": "its layers attend within chunks of 8,192 positions",
    "mamba": "it keeps a recurrent state in place of keys and values",
    "mpt": "its layers compute attention themselves, with ALiBi",
    "nemotron": "its layers do not hand keywords on to their attention",
    "qwen3_next": "most of its layers keep a recurrent state in place of keys and values",
    "stablelm": "its layers do not hand keywords on to their attention",
}
"""Reason why a family is refused, by model type. A family in neither table is refused because it was not tested."""

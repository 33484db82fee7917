"""Tiny random models of every family kvtrie serves, with weights large enough that logits differ."""

from __future__ import annotations

import torch
import transformers as hf
from transformers import PreTrainedModel

VOCABULARY = 211
POSITIONS = 512

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
_GPT2_LIKE = {**_COMMON, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": POSITIONS}

CONFIGS = {
    "llama-mha": lambda: hf.LlamaConfig(**_LLAMA_LIKE),
    "llama-gqa": lambda: hf.LlamaConfig(**_GQA),
    "qwen2": lambda: hf.Qwen2Config(**_GQA),
    "qwen3": lambda: hf.Qwen3Config(**_GQA, head_dim=32),
    "phi3": lambda: hf.Phi3Config(**_GQA, original_max_position_embeddings=POSITIONS),
    "mistral": lambda: hf.MistralConfig(**_GQA, sliding_window=400),
    "gpt2": lambda: hf.GPT2Config(**_GPT2_LIKE),
    "gpt_bigcode-mqa": lambda: hf.GPTBigCodeConfig(**_GPT2_LIKE, multi_query=True),
    "gpt_bigcode-mha": lambda: hf.GPTBigCodeConfig(**_GPT2_LIKE, multi_query=False),
    "gpt_neox": lambda: hf.GPTNeoXConfig(**_LLAMA_LIKE),
    "gemma": lambda: hf.GemmaConfig(**_GQA, head_dim=32),
    "granite": lambda: hf.GraniteConfig(**_GQA, attention_multiplier=0.3),
    "olmo2": lambda: hf.Olmo2Config(**_GQA),
    "starcoder2": lambda: hf.Starcoder2Config(**_GQA),
    "phi": lambda: hf.PhiConfig(**_GQA),
    "cohere": lambda: hf.CohereConfig(**_GQA),
    "smollm3": lambda: hf.SmolLM3Config(**_GQA),
}


def tiny_model(family: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> PreTrainedModel:
    """A random model of `family`; the same seed gives the same weights."""
    torch.manual_seed(seed)
    model = hf.AutoModelForCausalLM.from_config(CONFIGS[family]())
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

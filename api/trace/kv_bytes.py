"""Bytes of keys and values that one token takes, from a Hugging Face `config.json`. No transformers, no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kvtrie.prefix_tree.errors import InputError
from kvtrie.prefix_tree.read_json import read_json
from kvtrie.prefix_tree.shape import DTYPE_BYTES

_LAYERS = ("num_hidden_layers", "n_layer", "num_layers")
_HEADS = ("num_attention_heads", "n_head", "num_heads")
_KV_HEADS = ("num_key_value_heads", "num_kv_heads", "n_head_kv")
_WIDTH = ("hidden_size", "n_embd", "d_model")


def kv_bytes_per_token(path: Path) -> int:
    """Bytes of keys and values of one token in all layers.

    Raises:
        InputError: the file cannot be read, or does not say how large its keys and values are.
    """
    try:
        config = read_json(path.read_bytes())
    except OSError as error:
        raise InputError(f"model config {path} cannot be read: {error.strerror}") from None
    except InputError as error:
        raise InputError(f"model config {path} {error}; pass a model's config.json") from None
    if not isinstance(config, dict):
        raise InputError(f"model config {path} is not a JSON object: pass a model's config.json")
    # What sees and hears has its language model's fields one level down.
    text = config.get("text_config")
    dtype = config.get("dtype") or config.get("torch_dtype")
    if isinstance(text, dict):
        config, dtype = text, text.get("dtype") or text.get("torch_dtype") or dtype
    dtype = str(dtype or "bfloat16").removeprefix("torch.")
    if dtype not in DTYPE_BYTES:
        raise InputError(f"model config {path} has dtype {dtype!a}, not one of {sorted(DTYPE_BYTES)}")
    return _elements(config, path) * DTYPE_BYTES[dtype]


def _elements(config: Mapping[str, Any], path: Path) -> int:
    layers = _size(config, _LAYERS, path)
    latent = config.get("kv_lora_rank")
    if latent is not None:
        # Multi-head latent attention keeps one latent and one rotary key for all heads (DeepSeek-V2, §2.1).
        return layers * (_size(config, ("kv_lora_rank",), path) + _size(config, ("qk_rope_head_dim",), path))
    heads = _size(config, _HEADS, path)
    kv_heads = heads
    if config.get("multi_query") is True:
        kv_heads = 1
    elif any(config.get(name) is not None for name in _KV_HEADS):
        kv_heads = _size(config, _KV_HEADS, path)
    if config.get("head_dim") is not None:
        head_dim = _size(config, ("head_dim",), path)
    else:
        head_dim = _size(config, _WIDTH, path) // heads
    return layers * kv_heads * 2 * head_dim


def _size(config: Mapping[str, Any], names: tuple[str, ...], path: Path) -> int:
    value = next((config[name] for name in names if config.get(name) is not None), None)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(
            f"model config {path} needs {names[0]!r}, a number of at least 1: pass a model's config.json"
        )
    return value

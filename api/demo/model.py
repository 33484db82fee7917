"""The demo's model: a small random-weight Llama with a real tokenizer, or one the user names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kvtrie.api.hub_names import is_held_here_alone
from kvtrie.api.tokenizer import Tokenizer, open_tokenizer
from kvtrie.prefix_tree.errors import InputError


@dataclass(frozen=True, slots=True)
class DemoModel:
    """A causal LM in eval mode, and its tokenizer."""

    model: Any
    tokenizer: Tokenizer
    description: str


def random_llama() -> DemoModel:
    """A random model, the same every time: its text is noise, its work is that of a real model."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=131072,
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=16384,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config).eval()
    model.generation_config.eos_token_id = None
    return DemoModel(
        model, open_tokenizer("tekken"), "random-weight Llama: 6 layers, hidden 384, 6/2 heads, fp32"
    )


def load_model(name: str) -> DemoModel:
    """A model and tokenizer from a directory or a hub id. Code that comes with either is not run.

    Raises:
        InputError: there is no such model, or it cannot be loaded.
    """
    # Before transformers is imported, which takes seconds.
    here_alone = Path(name).is_dir() or is_held_here_alone(name, "model")
    from transformers import AutoModelForCausalLM

    try:
        model = AutoModelForCausalLM.from_pretrained(
            name, trust_remote_code=False, dtype="auto", local_files_only=here_alone
        ).eval()
    except (OSError, ValueError) as error:
        raise InputError(f"cannot load model {name!r}: {str(error).splitlines()[0]}") from None
    has_tokenizer = not Path(name).is_dir() or any(Path(name).glob("tok*"))
    tokenizer = open_tokenizer(name if has_tokenizer else "tekken")
    return DemoModel(model, tokenizer, f"{name}: {type(model).__name__}")

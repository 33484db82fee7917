"""The demo's model: a small random-weight Llama with a real tokenizer, or one the user names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kvtrie.api.demo.requests import DemoRequest
from kvtrie.api.hub_names import is_held_here_alone
from kvtrie.api.huggingface.chat_prompt import first_prompt
from kvtrie.api.huggingface.load_model import LoadedModel, load_model
from kvtrie.api.smollm2 import is_smollm2
from kvtrie.api.tokenizer import Tokenizer, open_tokenizer, tokenizer_of_transformers
from kvtrie.prefix_tree.errors import InputError


@dataclass(frozen=True, slots=True)
class DemoModel:
    """A causal LM in eval mode, and its tokenizer."""

    model: Any
    tokenizer: Tokenizer
    description: str
    chat_tokenizer: Any = None
    """transformers' tokenizer, where it has a chat template; None for a model whose answers nobody would read."""

    def prompt(self, request: DemoRequest) -> list[int]:
        """Tokens of a request: by the chat template where there is one, else as plain text.

        Raises:
            InputError: the chat template cannot render a system prompt and a message.
        """
        if self.chat_tokenizer is None:
            return self.tokenizer.encode(request.text(), special_tokens=False)
        messages = [{"role": "system", "content": request.system}, {"role": "user", "content": request.user}]
        return first_prompt(self.chat_tokenizer, messages).tokens

    def answer(self, tokens: list[int]) -> str:
        """Text of an answer, without special tokens; empty where nobody would read it."""
        if self.chat_tokenizer is None:
            return ""
        return str(self.chat_tokenizer.decode(tokens, skip_special_tokens=True))


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


def demo_model(name: str) -> DemoModel:
    """`smollm2`, or a model and tokenizer from a directory, a .gguf file or a hub id.

    Code that comes with either is not run.

    Raises:
        InputError: there is no such model, or it cannot be loaded.
        PackageMissing: a package that the model needs is not installed.
    """
    loaded = load_model(name) if is_smollm2(name) or Path(name).exists() else _of_hub(name)
    if loaded.tokenizer is None:
        return DemoModel(loaded.model, open_tokenizer("tekken"), loaded.description)
    has_template = bool(getattr(loaded.tokenizer, "chat_template", None))
    return DemoModel(
        loaded.model,
        tokenizer_of_transformers(loaded.tokenizer),
        loaded.description,
        loaded.tokenizer if has_template else None,
    )


def _of_hub(name: str) -> LoadedModel:
    # Before transformers is imported, which takes seconds.
    here_alone = is_held_here_alone(name, "model")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options: dict[str, Any] = {"trust_remote_code": False, "local_files_only": here_alone}
    try:
        model = AutoModelForCausalLM.from_pretrained(name, dtype="auto", **options).eval()
        tokenizer = AutoTokenizer.from_pretrained(name, **options)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot load model {name!r}: {str(error).splitlines()[0]}") from None
    return LoadedModel(model, tokenizer, f"{name}: {type(model).__name__}")

"""A tiny random model on disk, with a real tokenizer and a chat template, whose answers are plain text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.api.tokenizers_of_each_kind import ASSISTANT, BOS, USER, byte_level

POSITIONS = 4096
SYSTEM = "You answer questions about foxes and dogs. " * 12 + "Be brief."


class ChatModel:
    """The model, its tokenizer, and prompts worked out by hand."""

    def __init__(self, directory: Path, eos: list[int] | None = None) -> None:
        self.directory = directory
        self.tokenizer = byte_level()
        torch.manual_seed(3)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(self.tokenizer),
                hidden_size=64,
                intermediate_size=96,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=POSITIONS,
                bos_token_id=1,
                eos_token_id=2,
                pad_token_id=0,
            )
        )
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim >= 2:
                    parameter.mul_(6 if "emb" in name else 3)
            # Tokens that are not printable ASCII have the logit 0, and are never the likeliest.
            for token in range(len(self.tokenizer)):
                text = self.tokenizer.decode([token], skip_special_tokens=True)
                if not text or not text.isascii() or not text.isprintable():
                    model.lm_head.weight[token] = 0
        if eos is not None:
            model.generation_config.eos_token_id = eos
        self.model: Any = model.eval()
        model.save_pretrained(directory)
        self.tokenizer.save_pretrained(directory)

    def text_tokens(self, text: str) -> list[int]:
        """Tokens of ordinary text."""
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def first_prompt(self, question: str, system: str = SYSTEM) -> list[int]:
        """As the template of `tokenizers_of_each_kind` writes it: any role but the user's is <assistant>."""
        bos, assistant = self.tokenizer.convert_tokens_to_ids([BOS, ASSISTANT])
        return [bos, assistant, *self.text_tokens(system), *self._asked(question)]

    def next_prompt(self, before: list[int], answer: list[int], question: str) -> list[int]:
        """The tokens before, those of the answer as the model chose them, and the next question."""
        return [*before, *answer, *self._asked(question)]

    def _asked(self, question: str) -> list[int]:
        user, assistant = self.tokenizer.convert_tokens_to_ids([USER, ASSISTANT])
        return [user, *self.text_tokens(question), assistant]

    def greedy(self, prompt: list[int], new_tokens: int) -> list[int]:
        """New tokens of the model's own `generate`."""
        ids = torch.tensor([prompt])
        with torch.no_grad():
            output = self.model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens, do_sample=False
            )
        return list(output[0, len(prompt) :].tolist())

    def text(self, tokens: list[int]) -> str:
        """Text of an answer."""
        return str(self.tokenizer.decode(tokens))

"""The model, the prompts, and what the plain model says to each, computed before anything is wrapped."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import torch
import transformers as hf

from kvtrie.api import Sampling
from kvtrie.api.engine.sampler import Sampler
from kvtrie.api.engine.sampling.choose import next_token

VOCABULARY = 211
MOST_NEW = 24
BEAMS = (2, 3)
BEAM_NEW = 10
_FAMILIES, _IN_FAMILY = 6, 7
_SAMPLED = 24


@dataclass(frozen=True, slots=True)
class Sampled:
    """A prompt, settings with a seed, and the tokens that they draw from the plain model's logits."""

    prompt: int
    sampling: Sampling
    tokens: list[int]


class Plain:
    """Answers of the plain model. Prompts of a family begin alike.

    Args:
        seed: of the model's weights and the prompts.
    """

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        chance = random.Random(seed)
        self.model: Any = _model()
        self.prompts: list[list[int]] = []
        for _ in range(_FAMILIES):
            shared = [chance.randrange(3, VOCABULARY) for _ in range(chance.randrange(6, 40))]
            for _ in range(_IN_FAMILY):
                own = [chance.randrange(3, VOCABULARY) for _ in range(chance.randrange(1, 24))]
                self.prompts.append(shared[: chance.randrange(1, len(shared) + 1)] + own)
        self.greedy = [self._generate(prompt, MOST_NEW) for prompt in self.prompts]
        self.beams = {
            (place, beams): self._generate(prompt, BEAM_NEW, num_beams=beams)
            for place, prompt in enumerate(self.prompts)
            for beams in BEAMS
        }
        self.sampled = [found for _ in range(_SAMPLED) if (found := self._draw(chance)) is not None]

    def _generate(self, prompt: list[int], new: int, **options: Any) -> list[int]:
        with torch.no_grad():
            output = self.model.generate(
                torch.tensor([prompt]), max_new_tokens=new, do_sample=False, eos_token_id=None, **options
            )
        tokens: list[int] = output[0, len(prompt) :].tolist()
        return tokens

    def _draw(self, chance: random.Random) -> Sampled | None:
        """A sampled answer; None where another rounding of the logits could draw another token."""
        place = chance.randrange(len(self.prompts))
        sampling = Sampling(
            temperature=chance.choice((0.5, 1.0, 3.0)),
            top_k=chance.choice((0, 5)),
            top_p=chance.choice((1.0, 0.9)),
            seed=chance.randrange(1 << 40),
        )
        answers = {
            tuple(self._sample(self.prompts[place], sampling, noise)) for noise in (0, 1e-3, -1e-3, 1e-4)
        }
        return Sampled(place, sampling, list(answers.pop())) if len(answers) == 1 else None

    def _sample(self, prompt: list[int], sampling: Sampling, noise: float) -> list[int]:
        sampler, tokens = Sampler(sampling, prompt), list(prompt)
        wave = noise * torch.sin(torch.arange(VOCABULARY, dtype=torch.float32))
        while len(tokens) < len(prompt) + BEAM_NEW:
            with torch.no_grad():
                logits = self.model(torch.tensor([tokens])).logits[0, -1].float()
            tokens.append(next_token(sampler, logits + wave))
        return tokens[len(prompt) :]


def _model() -> Any:
    config = hf.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    model = hf.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                # Freshly initialised weights are so small that all logits are nearly equal.
                parameter.mul_(20)
    return model

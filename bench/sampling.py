"""Time to choose the next tokens of 32 rows of 128,000 logits, in units of `torch.argmax` of the same tensor.

    python -m bench.sampling [--threads 2] [--rows 32] [--vocabulary 128000]

Each setting and argmax are timed in turn, several times, and the ratio is of the medians. Before, tokens are drawn
and compared with those that Hugging Face's warpers keep; one that they do not keep ends the run.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from bench.measure import provenance
from kvtrie.api import Sampling
from kvtrie.api.engine.sampler import Sampler
from kvtrie.api.engine.sampling.choose import Chooser, ChosenToken
from kvtrie.api.engine.sampling.constraint import JsonSchema
from kvtrie.api.engine.sampling.grammar import Grammars
from kvtrie.api.engine.step_runner import _read

TARGETS = {"greedy": 1.1, "temperature, top-p": 4.0}
"""Most that a ratio should be."""

SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "temperature": {"temperature": 0.8},
    "temperature, top-p": {"temperature": 0.8, "top_p": 0.9},
    "temperature, top-p 0.5": {"temperature": 0.8, "top_p": 0.5},
    "temperature, min-p": {"temperature": 0.8, "min_p": 0.05},
    "temperature, top-k 50, top-p": {"temperature": 0.8, "top_k": 50, "top_p": 0.95},
    "temperature, top-k 1000": {"temperature": 0.8, "top_k": 1000},
    "penalties, 2,000 tokens": {"repetition_penalty": 1.1, "frequency_penalty": 0.2},
    "greedy, 20 logprobs": {"logprobs": 20},
}

LOGITS: dict[str, Callable[[Tensor], Tensor]] = {
    "flat": lambda logits: logits,
    "peaked": lambda logits: logits * 4,
    "bfloat16": lambda logits: (logits * 4).bfloat16().float(),
}
"""Random normal logits: nearly all tokens are in a nucleus of 0.9; a few hundred are; and many of those tie."""


def main() -> None:
    """Prints ratios, and what part of the draws had to sort the vocabulary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--vocabulary", type=int, default=128_000)
    parser.add_argument("--times", type=int, default=15)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    made = provenance()
    print(f"{made['machine']}, {args.threads} threads, commit {made['commit']}")
    noise = torch.randn(args.rows, args.vocabulary, generator=torch.Generator().manual_seed(0))
    for kind, shape in LOGITS.items():
        logits = shape(noise)
        _gate(logits)
        for name, setting in SETTINGS.items():
            ratio, base, share = _ratio(logits, setting, args.times)
            aim = f"   (<= {TARGETS[name]})" if name in TARGETS else ""
            print(f"{kind:9} {name:30} {ratio:6.2f} x argmax ({base * 1e3:.2f} ms), sorted {share:.4%}{aim}")
    base, step = _alternate([lambda: logits.argmax(-1), lambda: _read(logits)], args.times)
    print(f"a step's likeliest tokens and check for NaN: {step / base:.2f} x argmax")
    _masks()


def _ratio(logits: Tensor, setting: dict[str, Any], times: int) -> tuple[float, float, float]:
    chooser, rows = Chooser(), range(len(logits))
    likeliest = logits.argmax(-1).tolist()
    prompt = list(range(2000))
    samplers = [Sampler(Sampling(**setting, seed=row), prompt) for row in rows]

    def choose() -> None:
        for sampler in samplers:
            # Another token of the completion each time: other random numbers.
            sampler.drawn += 1
        if setting:
            chooser.choose(samplers, logits, rows, likeliest)
        else:
            # What a greedy step takes, the search of the likeliest tokens included.
            chooser.choose(samplers, logits, rows, logits.max(-1).indices.tolist())

    base, own = _alternate([lambda: logits.argmax(-1), choose], times)
    counters = chooser.counters
    return own / base, base, counters["sorted_draws"] / max(counters["draws"], 1)


def _alternate(calls: list[Callable[[], object]], times: int) -> list[float]:
    """Median seconds of each call, each timed in turn."""
    found: list[list[float]] = [[] for _ in calls]
    for turn in range(times + 2):
        for place, call in enumerate(calls):
            start = time.perf_counter()
            call()
            if turn >= 2:
                found[place].append(time.perf_counter() - start)
    return [median(seconds) for seconds in found]


def _gate(logits: Tensor) -> None:
    """Every token drawn is one that Hugging Face keeps."""
    few = logits[:4]
    for name, setting in SETTINGS.items():
        sampling = Sampling(**setting)
        if not sampling.temperature:
            continue
        warpers = LogitsProcessorList([TemperatureLogitsWarper(sampling.temperature)])
        if sampling.top_k:
            warpers.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            warpers.append(TopPLogitsWarper(sampling.top_p))
        if sampling.min_p:
            warpers.append(MinPLogitsWarper(sampling.min_p))
        lowest = warpers(torch.zeros(4, 1, dtype=torch.long), few)
        lowest = lowest.masked_fill(lowest.isinf(), 1e9).amin(-1)
        for seed in range(20):
            samplers = [Sampler(Sampling(**setting, seed=seed + 1000 * row)) for row in range(4)]
            for row, choice in enumerate(Chooser().choose(samplers, few, range(4), [0] * 4)):
                assert isinstance(choice, ChosenToken)
                score = few[row, choice.token] / sampling.temperature
                assert score >= lowest[row] - 1e-4, f"{name}: token {choice.token} is not kept"


def _masks() -> None:
    """Time of a constraint's masks over a byte-level vocabulary made for this: words of a random language."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    chance = random.Random(0)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"</s>": 0, **{letter: 1 + i for i, letter in enumerate(letters)}}
    while len(vocabulary) < 128_000:
        word = "".join(
            chance.choices('abcdefghijklmnopqrstuvwxyz"{}:,[]0123456789', k=chance.randrange(2, 9))
        )
        vocabulary.setdefault(word, len(vocabulary))
    inner = Tokenizer(models.BPE(vocabulary, []))
    inner.pre_tokenizer, inner.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>")
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "age": {"type": "integer"}, "tags": {"enum": ["a", "b"]}},
        "required": ["name", "age", "tags"],
    }
    grammars, times = Grammars(), []
    constraint = JsonSchema(json.dumps(schema))
    grammars.open(constraint, tokenizer, len(vocabulary), {0})
    start = time.perf_counter()
    grammars.open(constraint, tokenizer, len(vocabulary), {0})
    opened = time.perf_counter() - start
    for seed in range(20):
        sampler = Sampler(
            Sampling(temperature=1.0, seed=seed),
            grammar=grammars.open(constraint, tokenizer, len(vocabulary), {0}),
        )
        for _ in range(40):
            assert sampler.grammar is not None
            start = time.perf_counter()
            sampler.grammar.mask()
            times.append(time.perf_counter() - start)
            (choice,) = Chooser().choose([sampler], torch.zeros(1, len(vocabulary)), [0], [0])
            assert isinstance(choice, ChosenToken)
            sampler.accept(choice.token)
            if sampler.is_complete:
                break
    times.sort()
    print(
        f"a JSON schema over 128,000 tokens: opened in {opened * 1e3:.1f} ms; a mask takes "
        f"{median(times) * 1e6:.0f} us (median), {times[int(len(times) * 0.99)] * 1e6:.0f} us (99 %)"
    )


if __name__ == "__main__":
    main()

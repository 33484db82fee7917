"""Fairness and latency of the engine's scheduling, without a model: `python -m bench.fairness`.

Counts are in steps, so that they say the same on every machine; times are of this one.
"""

from __future__ import annotations

import gc
import json
import os
import threading
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
import transformers as hf

from bench.faked_engine import CHUNK, Faked
from bench.measure import provenance
from kvtrie.api import EngineConfig, PrefixCachedModel
from kvtrie.api.engine.loop import EngineLoop
from kvtrie.api.engine.waiting_queue import FifoQueue

STEP_SECONDS = 0.5


def another_tenant(flood: int, requests: int = 15, **options: Any) -> list[int]:
    """Steps to the first token of requests of tenant b, one after the other, beside so many of tenant a."""
    faked = Faked(20_000, check=False, config=EngineConfig(max_running=64), **options)
    for _ in range(flood):
        faked.submit(200, 128)
    faked.step(20 if flood else 0)
    steps = []
    for _ in range(requests):
        completion = faked.submit(200, 8, tenant="b")
        steps.append(faked.steps_until(lambda c=completion: c.tokens))
        faked.step(5)
    return steps


def beside_a_long_prompt(prompts: int) -> int:
    """Steps to the first token of a 100-token prompt, beside so many of 131,072 tokens in prefill."""
    faked = Faked(40_000, check=False)
    for _ in range(prompts):
        faked.submit(131_072, 8)
    faked.step(2)
    short = faked.submit(100, 8)
    return faked.steps_until(lambda: short.tokens)


def thrash(slots: int, requests: int) -> tuple[int, float, int]:
    """Preemptions, rows computed over rows needed, and steps: prompts of 160 tokens, answers of 64."""
    faked = Faked(slots, check=False, config=EngineConfig(step_tokens=512))
    for _ in range(requests):
        faked.submit(160, 64)
    steps = faked.run()
    rows = sum(sum(step.values()) for step in faked.steps.rows)
    return faked.preemptions, rows / (requests * (160 + 63)), steps


def first_step(waiting: int) -> tuple[float, float]:
    """Milliseconds of the first step, and of the longest of the next 50, of requests that wait for one prompt."""
    faked = Faked(40_000, check=False, config=EngineConfig(step_tokens=CHUNK))
    shared = faked.prompt(100 * CHUNK)
    for place in range(waiting):
        faked.submit([*shared, place], 1)
    gc.collect()
    took = [_milliseconds(faked.step) for _ in range(51)]
    return took[0], max(took[1:])


def submit_under_a_step(seconds: float, busy: bool) -> tuple[float, float, int]:
    """Milliseconds (p50, p99) of `PrefixCachedModel.submit` of 500 token ids beside steps of so many seconds.

    Args:
        seconds: of each step.
        busy: the pass multiplies matrices meanwhile; else it sleeps.
    """
    config = hf.LlamaConfig(
        vocab_size=1000,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=32,
        num_attention_heads=4,
        max_position_embeddings=4096,
    )
    model = hf.AutoModelForCausalLM.from_config(config).eval()
    factor = torch.randn(512, 512)

    def hold_up(*_: object) -> None:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            if busy:
                torch.mm(factor, factor)
            else:
                time.sleep(seconds)

    took = []
    model.model.norm.register_forward_pre_hook(hold_up)
    with PrefixCachedModel(model, memory="64MiB") as cached:
        loop = EngineLoop(cached.engine)
        loop.start()
        running = cached.submit([5] * 100, max_new_tokens=1000, eos=())
        end = time.perf_counter() + 8 * seconds
        row = list(range(3, 503))
        while time.perf_counter() < end:
            took.append(_milliseconds(lambda: cached.submit(row, max_new_tokens=1, eos=())))
            time.sleep(0.005)
        running.cancel()
        loop.stop(drain=False)
    took.sort()
    return median(took), took[int(0.99 * len(took))], len(took)


def submit_beside_submits() -> tuple[float, float]:
    """Microseconds (p50, p99) of `Engine.submit`, four threads at once and nobody stepping."""
    faked = Faked(check=False)
    took: list[float] = []

    def work() -> None:
        prompt = faked.prompt(200)
        took.extend(1e3 * _milliseconds(lambda: faked.submit(prompt)) for _ in range(2000))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took.sort()
    return median(took), took[int(0.99 * len(took))]


def _milliseconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - began)


def main() -> None:
    """Entry point of `python -m bench.fairness`."""
    figures: dict[str, object] = {
        "steps to b's first token, alone (median, most)": _spread(another_tenant(0)),
        "beside 1,000 of tenant a": _spread(another_tenant(1000)),
        "beside 1,000 of tenant a, first in first out": another_tenant(1000, 1, queue=FifoQueue())[0],
        "steps to a 100-token prompt's first token, alone": beside_a_long_prompt(0),
        "beside a 131,072-token prompt": beside_a_long_prompt(1),
        "beside four of them": beside_a_long_prompt(4),
        "200 requests on 100 slots: preemptions, rows over needed, steps": thrash(100, 200),
        "400 requests on 400 slots: preemptions, rows over needed, steps": thrash(400, 400),
        "10,000 waiting on one prompt: first step, longest of 50 more (ms)": first_step(10_000),
        "submit beside 500 ms steps that sleep: p50, p99 (ms), calls": submit_under_a_step(
            STEP_SECONDS, False
        ),
        "submit beside 500 ms steps that compute: p50, p99 (ms), calls": submit_under_a_step(
            STEP_SECONDS, True
        ),
        "submit, four threads at once: p50, p99 (us)": submit_beside_submits(),
    }
    for name, figure in figures.items():
        print(f"{name:70} {_shown(figure)}")
    print(json.dumps({**provenance(), "load": os.getloadavg()}))


def _spread(steps: list[int]) -> tuple[float, int]:
    return median(steps), max(steps)


def _shown(figure: object) -> str:
    if isinstance(figure, tuple):
        return "  ".join(map(_shown, figure))
    return f"{figure:.2f}" if isinstance(figure, float) else str(figure)


if __name__ == "__main__":
    main()

"""End to end: a Llama-3-8B shape with random weights serves prompts that share system prompts, four ways.

Requests arrive at once. Tokens per second count new tokens, prefill included in the time. The first tokens with
and without reuse are compared; in bf16 two ways to batch the same sum may break a tie differently, so the gate
asks for nine of ten.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, fields
from statistics import median
from typing import Any

import torch
from torch import Tensor

from bench.gpu.task import Context, Task
from bench.gpu.workload import (
    LLAMA_8B,
    TINY,
    Workload,
    batch_configurations,
    build_model,
    random_tokens,
)

LEAST_EQUAL = 0.9
"""Of first tokens, with and without reuse."""


def tasks(context: Context) -> Iterator[Task]:
    """Ours first, both ways on one wrapper; then Hugging Face's, with the wrapper closed."""
    serving = Serving(TINY if context.dry else LLAMA_8B, context.device)
    # What each needs includes building the model, for a process that starts in the middle.
    seconds = (lambda wanted: 0.0) if context.dry else float
    yield Task("reuse on", serving.reuse_on, seconds(40))
    yield Task("reuse on, prompts cached", serving.reuse_warm, seconds(15))
    yield Task("reuse off", serving.reuse_off, seconds(25))
    yield Task("HF generate", serving.hf_generate, seconds(25))
    for name, options in batch_configurations(serving.workload).items():
        yield Task(
            f"HF generate_batch, {name}",
            lambda options=options: serving.hf_generate_batch(options),
            seconds(30),
        )


class Serving:
    """The model, built when first needed, and the outputs the gate compares."""

    def __init__(self, workload: Workload, device: torch.device) -> None:
        self.workload = workload
        self.device = device
        self._model: Any = None
        self._cached: Any = None
        self._reused: list[list[int]] | None = None
        generator = torch.Generator().manual_seed(1)
        self._systems = [
            random_tokens(workload, workload.system_tokens, generator) for _ in range(workload.system_prompts)
        ]
        self._prompts, self._others = (
            [
                self._systems[request * workload.system_prompts // workload.requests]
                + random_tokens(workload, workload.own_tokens, generator)
                for request in range(workload.requests)
            ]
            for _ in range(2)
        )

    # ---- ours

    def reuse_on(self) -> dict[str, Any]:
        """Everything from an empty cache: each system prompt is computed once."""
        cached = self._wrapper()
        found, self._reused = self._ours(cached, self._prompts, lambda request: "all")
        return found

    def reuse_warm(self) -> dict[str, Any]:
        """The same system prompts again, other own tokens."""
        return self._ours(self._wrapper(), self._others, lambda request: "all")[0]

    def reuse_off(self) -> dict[str, Any]:
        """The same engine with a tenant per request: nothing is shared. Compared with `reuse_on`."""
        found, tokens = self._ours(self._wrapper(), self._prompts, lambda request: f"tenant-{request}")
        if self._reused is None:
            return {**found, "gate": "not compared: reuse on has not run in this process"}
        pairs = list(zip(self._reused, tokens))
        first = sum(a[:1] == b[:1] for a, b in pairs) / len(pairs)
        found["first_tokens_equal"] = first
        found["completions_equal"] = sum(a == b for a, b in pairs) / len(pairs)
        found["ok"] = first >= LEAST_EQUAL
        found["gate"] = f"{first:.0%} of first tokens as with reuse, at least {LEAST_EQUAL:.0%} wanted"
        return found

    def _ours(
        self, cached: Any, prompts: list[list[int]], tenant: Callable[[int], str]
    ) -> tuple[dict[str, Any], list[list[int]]]:
        before = cached.stats()
        self._wait()
        begun = time.perf_counter()
        completions = [
            cached.submit(prompt, tenant=tenant(request), max_new_tokens=self.workload.new_tokens, eos=())
            for request, prompt in enumerate(prompts)
        ]
        cached.engine.run()
        self._wait()
        seconds = time.perf_counter() - begun
        for completion in completions:
            if completion.error is not None:
                raise completion.error
        after = cached.stats()
        tokens = [list(completion.tokens) for completion in completions]
        found = self._figures(seconds, tokens, [completion.ttft_seconds for completion in completions])
        for name in ("cached_tokens", "prompt_tokens", "preemptions"):
            found[name] = after.get(name, 0) - before.get(name, 0)
        return found, tokens

    def _wrapper(self) -> Any:
        """Open and warmed up on a tenant of its own, so that kernels are compiled and graphs captured."""
        if self._cached is None:
            from kvtrie.api import EngineConfig, PrefixCachedModel

            self._cached = PrefixCachedModel(
                self._built(),
                memory=self.workload.memory,
                engine=EngineConfig(step_tokens=self.workload.step_tokens),
            )
            generator = torch.Generator().manual_seed(2)
            shared = [random_tokens(self.workload, self.workload.system_tokens, generator) for _ in range(2)]
            for request in range(self.workload.requests):
                own = random_tokens(self.workload, self.workload.own_tokens, generator)
                self._cached.submit(shared[request % 2] + own, tenant="warm-up", max_new_tokens=4, eos=())
            self._cached.engine.run()
        return self._cached

    # ---- Hugging Face

    def hf_generate(self) -> dict[str, Any]:
        """`generate` over the whole batch at once, no reuse."""
        from transformers import StoppingCriteria, StoppingCriteriaList

        model = self._unwrapped()
        ids = torch.tensor(self._prompts, device=self.device)

        class FirstToken(StoppingCriteria):  # type: ignore[misc]
            """Asked after every token; notes when the first one came."""

            at: float | None = None

            def __call__(_self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:  # noqa: N805
                if _self.at is None:
                    self._wait()
                    _self.at = time.perf_counter()
                return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)

        def run(new_tokens: int) -> tuple[float, float, Tensor]:
            first = FirstToken()
            self._wait()
            begun = time.perf_counter()
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=new_tokens,
                do_sample=False,
                stopping_criteria=StoppingCriteriaList([first]),
            )
            self._wait()
            return time.perf_counter() - begun, (first.at or begun) - begun, out[:, ids.shape[1] :]

        with torch.no_grad():
            run(2)
            seconds, first_seconds, out = run(self.workload.new_tokens)
        found = self._figures(seconds, out.tolist(), [first_seconds] * len(out))
        return self._beside_ours(found, out.tolist())

    def hf_generate_batch(self, options: dict[str, Any]) -> dict[str, Any]:
        """Continuous batching; its warm-up is a run of its own and untimed."""
        from transformers import GenerationConfig
        from transformers.generation.configuration_utils import ContinuousBatchingConfig

        model = self._unwrapped()
        implementation = model.config._attn_implementation
        known = {field.name for field in fields(ContinuousBatchingConfig)}
        if "page_size" not in known and "block_size" in known:
            options = {**options, "block_size": options["page_size"]}
        accepted = {name: value for name, value in options.items() if name in known}
        generation = GenerationConfig(
            max_new_tokens=self.workload.new_tokens, do_sample=False, eos_token_id=-1, pad_token_id=0
        )
        used: list[str] = []

        def run(prompts: list[list[int]], new_tokens: int) -> tuple[float, list[Any]]:
            self._wait()
            begun = time.perf_counter()
            outputs = model.generate_batch(
                inputs=prompts,
                generation_config=generation,
                continuous_batching_config=ContinuousBatchingConfig(**accepted),
                record_timestamps=True,
                progress_bar=False,
                persistent_manager=True,
                max_new_tokens=new_tokens,
            )
            self._wait()
            seconds = time.perf_counter() - begun
            used.append(str(model.config._attn_implementation))
            return seconds, list(outputs.values())

        try:
            # The manager, its pages and graphs stay for the timed run; other prompts, so that no page is reused.
            generator = torch.Generator().manual_seed(3)
            warm = [
                random_tokens(self.workload, self.workload.prompt_tokens, generator)
                for _ in range(max(2, self.workload.requests // 4))
            ]
            run(warm, 4)
            call_seconds, outputs = run(self._prompts, self.workload.new_tokens)
        finally:
            if hasattr(model, "destroy_cached_continuous_batching_manager"):
                model.destroy_cached_continuous_batching_manager()
            if model.config._attn_implementation != implementation:
                model.set_attn_implementation(implementation)
            self._free()
        tokens = [list(output.generated_tokens) for output in outputs]
        short = sum(len(row) != self.workload.new_tokens for row in tokens)
        if len(tokens) != self.workload.requests or short:
            raise RuntimeError(
                f"generate_batch gave {len(tokens)} of {self.workload.requests} completions, {short} of them short"
            )
        stamped = all(output.timestamps for output in outputs)
        firsts = [output.timestamps[0] - output.created_time for output in outputs] if stamped else []
        # From the first request to the last token, where that is told: starting and stopping its thread costs
        # half a second that a server pays once.
        seconds = call_seconds
        if stamped:
            ended = max(output.timestamps[-1] for output in outputs)
            seconds = ended - min(output.created_time for output in outputs)
        found = self._figures(seconds, tokens, firsts)
        found["call_seconds"] = call_seconds
        found["options"] = accepted
        found["attention"] = used[-1]
        return self._beside_ours(found, tokens)

    def _unwrapped(self) -> Any:
        if self._cached is not None:
            self._cached.close()
            self._cached = None
            self._free()
        return self._built()

    # ---- both

    def _built(self) -> Any:
        if self._model is None:
            self._model = build_model(self.workload, self.device)
        return self._model

    def _figures(self, seconds: float, tokens: list[list[int]], firsts: list[float]) -> dict[str, Any]:
        total = sum(map(len, tokens))
        return {
            "seconds": seconds,
            "new_tokens": total,
            "tokens_per_second": total / seconds,
            "ttft_median_seconds": median(firsts) if firsts else None,
            "ttft_max_seconds": max(firsts) if firsts else None,
            "workload": asdict(self.workload),
        }

    def _beside_ours(self, found: dict[str, Any], tokens: list[list[int]]) -> dict[str, Any]:
        if self._reused is not None:
            pairs = list(zip(self._reused, tokens))
            found["first_tokens_as_ours"] = sum(a[:1] == b[:1] for a, b in pairs) / len(pairs)
        return found

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _free(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

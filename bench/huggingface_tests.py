"""Hugging Face's own generation tests, with `generate` through kvtrie.

    python -m bench.huggingface_tests CHECKOUT [FAMILY ...]

CHECKOUT is a copy of the transformers repository at the installed version, or a near one; nothing of it is kept
here. The tests need `parameterized`. Every test of its `GenerationTesterMixin` that a family's own test class has
runs three times, on prompts padded at the left: plain, with each `generate` through a new wrapper (cold), and with
each `generate` made twice by one wrapper (warm). Each result must also equal what plain `generate` returns for the
same call and random numbers. A test counts if it passes plain and calls `generate`. It is

    passed        with both
    passed less   with both, once attention weights and hidden states are not asked for, which kvtrie refuses
    refused       when kvtrie refuses the model or an argument, in one sentence
    failed        otherwise
"""

from __future__ import annotations

import argparse
import copy
import inspect
import json
import os
import random
import signal
import sys
import traceback
import unittest
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("KVTRIE_CHECK", "1")

import numpy as np
import torch
import transformers
from torch import Tensor, nn

from bench.huggingface_checkout import Checkout
from bench.measure import provenance
from kvtrie.api import PrefixCachedModel
from kvtrie.api.families import FAMILIES
from kvtrie.prefix_tree.errors import InputError

MEMORY, CHUNK_TOKENS = "16MiB", 2
"""Prompts of these tests have about seven tokens."""

TOLERANCE = 1e-4
"""Largest difference of scores, relative to the largest."""

TEST_SECONDS = 180

NEVER_FORMED = ("output_attentions", "output_hidden_states")
"""Arguments that ask for what kvtrie does not have."""

NOT_RUN = (
    "test_generate_compile_model_forward_fullgraph",
    "test_generate_compilation_all_outputs",
    "test_static_cache_no_recompile_with_smaller_length",
)
"""Tests of another cache than kvtrie's, which take a minute each only to be refused."""

RESULTS = Path("bench/results")


@dataclass(slots=True)
class Run:
    """One test, once."""

    passed: bool = False
    skipped: bool = False
    error: str = ""
    calls: int = 0
    """Of `generate`, by the test itself."""
    cached_tokens: int = 0
    refused: str = ""


@dataclass(slots=True)
class Report:
    """One family."""

    family: str
    passed: list[str] = field(default_factory=list)
    passed_less: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    not_counted: dict[str, str] = field(default_factory=dict)
    cached_tokens: int = 0
    """Over all warm runs."""
    error: str = ""
    """Why the family could not be tried."""


class Through:
    """`GenerationMixin.generate` while it goes through kvtrie."""

    def __init__(self, run: Run, is_warm: bool, asks_less: bool) -> None:
        self._run = run
        self._is_warm = is_warm
        self._asks_less = asks_less
        self._plain = transformers.GenerationMixin.generate
        self._is_inside = False
        self._wrappers: list[PrefixCachedModel] = []

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Until the end of one test."""

        def generate(model: Any, *args: Any, **keywords: Any) -> Any:
            return self._generate(model, args, keywords)

        # Tests ask for its signature.
        generate.__signature__ = inspect.signature(self._plain)  # type: ignore[attr-defined]
        transformers.GenerationMixin.generate = generate
        try:
            yield
        finally:
            transformers.GenerationMixin.generate = self._plain
            for wrapper in self._wrappers:
                wrapper.check()
                wrapper.close()

    def _generate(self, model: Any, args: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        if self._is_inside:
            return self._plain(model, *args, **keywords)
        if self._asks_less:
            keywords = {name: value for name, value in keywords.items() if name not in NEVER_FORMED}
        self._is_inside = True
        try:
            return self._compared(model, args, keywords)
        except InputError as refused:
            self._run.refused = str(refused)
            raise
        finally:
            self._is_inside = False

    def _compared(self, model: Any, args: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        self._run.calls += 1
        before = torch.get_rng_state()
        is_continuation = any(keywords.get(name) is not None for name in ("cache", "past_key_values"))
        expected = None
        if not is_continuation:
            try:
                expected = self._plain(model, *_fresh(args), **_fresh(keywords))
            except Exception:
                # A test of errors: kvtrie's own comes from the same call, below.
                expected = None
            torch.set_rng_state(before)
        if not (is_continuation and self._wrappers):
            self._wrappers.append(PrefixCachedModel(model, memory=MEMORY, chunk_tokens=CHUNK_TOKENS))
        wrapper = self._wrappers[-1]
        if self._is_warm and not is_continuation:
            wrapper.generate(*_fresh(args), **_fresh(keywords))
            torch.set_rng_state(before)
        held = wrapper.stats().get("cached_tokens", 0)
        output = wrapper.generate(*args, **keywords)
        self._run.cached_tokens += wrapper.stats().get("cached_tokens", 0) - held
        if expected is not None:
            _assert_same(expected, output)
        return output


def _fresh(value: Any) -> Any:
    """A copy of arguments that a call may change; models stay themselves."""
    if isinstance(value, nn.Module):
        return value
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, tuple | list) and type(value) in (tuple, list):
        return type(value)(map(_fresh, value))
    if type(value) is dict:
        return {name: _fresh(part) for name, part in value.items()}
    return copy.deepcopy(value)


def _assert_same(expected: Any, found: Any) -> None:
    """Tokens exactly, scores and logits within rounding."""
    assert type(found) is type(expected), f"{type(found).__name__} for {type(expected).__name__}"
    if isinstance(expected, Tensor):
        assert torch.equal(expected, found), f"tokens {found.tolist()} for {expected.tolist()}"
        return
    assert torch.equal(expected.sequences, found.sequences), "other tokens"
    for name in ("scores", "logits"):
        steps, ours = getattr(expected, name, None), getattr(found, name, None)
        assert (steps is None) == (ours is None), f"{name}: {ours} for {steps}"
        for step, (theirs, our) in enumerate(zip(steps or (), ours or (), strict=True)):
            finite = torch.isfinite(theirs)
            assert torch.equal(finite, torch.isfinite(our)), f"{name} of step {step}: other infinities"
            if finite.any():
                scale = max(1.0, float(theirs[finite].abs().max()))
                off = float((theirs[finite] - our[finite]).abs().max()) / scale
                assert off <= TOLERANCE, f"{name} of step {step}: off by {off:.2g}"


class OutOfTime(Exception):
    """A test ran longer than `TEST_SECONDS`."""


def _out_of_time(*_: Any) -> None:
    raise OutOfTime(f"over {TEST_SECONDS} s")


def run_test(cases: type[unittest.TestCase], name: str, how: str, asks_less: bool = False) -> Run:
    """Runs one test; `how` is `plain`, `cold` or `warm`."""
    run = Run()
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    result = unittest.TestResult()
    old = signal.signal(signal.SIGALRM, _out_of_time)
    signal.alarm(TEST_SECONDS)
    try:
        if how == "plain":
            with _counted(run):
                cases(name).run(result)
        else:
            with Through(run, how == "warm", asks_less).installed():
                cases(name).run(result)
    except (OutOfTime, AssertionError) as error:
        result.failures.append((cases(name), traceback.format_exc()))
        run.error = str(error)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)
    wrong = [text for _, text in (*result.failures, *result.errors)]
    run.skipped = bool(result.skipped)
    run.passed = not wrong and not run.skipped
    if wrong:
        lines = wrong[0].strip().splitlines()
        places = [line.strip() for line in lines if line.strip().startswith("File ")][-3:]
        run.error = f"{lines[-1][:400]} ({' <- '.join(reversed(places))})"
    return run


@contextmanager
def _counted(run: Run) -> Iterator[None]:
    plain = transformers.GenerationMixin.generate
    depth = 0

    def generate(model: Any, *args: Any, **keywords: Any) -> Any:
        nonlocal depth
        run.calls += depth == 0
        depth += 1
        try:
            return plain(model, *args, **keywords)
        finally:
            depth -= 1

    generate.__signature__ = inspect.signature(plain)  # type: ignore[attr-defined]
    transformers.GenerationMixin.generate = generate
    try:
        yield
    finally:
        transformers.GenerationMixin.generate = plain


class _LeftPadded:
    """Turns the inputs of most tests, masked at their right ends, around: no prompt of `generate` ends so."""

    def prepare_config_and_inputs_for_generate(self, *args: Any, **keywords: Any) -> Any:
        """As the test class has it."""
        config, inputs = super().prepare_config_and_inputs_for_generate(*args, **keywords)  # type: ignore[misc]
        mask = inputs.get("attention_mask")
        if isinstance(mask, Tensor) and mask.dim() == 2 and not mask[:, -1].all():
            inputs = {**inputs, "attention_mask": mask.flip(-1)}
        return config, inputs


def cases_of(checkout: Checkout, family: str) -> type[unittest.TestCase]:
    """The test class whose models are of `family`.

    Raises:
        LookupError: the checkout has none.
    """
    mixin = checkout.module("tests.generation.test_utils").GenerationTesterMixin
    folder = family.removesuffix("_text")
    module = checkout.module(f"tests.models.{folder}.test_modeling_{folder}")
    for cases in vars(module).values():
        if not (
            isinstance(cases, type) and issubclass(cases, unittest.TestCase) and issubclass(cases, mixin)
        ):
            continue
        if cases.__module__ != module.__name__:
            continue
        case = cases("test_greedy_generate")
        case.setUp()
        config, _ = case.prepare_config_and_inputs_for_generate()  # type: ignore[attr-defined]
        if config.get_text_config(decoder=True).model_type == family:
            return type(cases.__name__, (_LeftPadded, cases), {"__module__": cases.__module__})
    raise LookupError(f"{module.__name__} has no generation tests of {family}")


def _through(cases: type[unittest.TestCase], name: str, asks_less: bool = False) -> dict[str, Run]:
    return {how: run_test(cases, name, how, asks_less) for how in ("cold", "warm")}


def _without_what_is_never_formed(cases: type[unittest.TestCase]) -> type[unittest.TestCase]:
    """The same tests, which do not look at attention weights, hidden states and the layers of a cache."""
    looks = (
        "_check_attentions_for_generate",
        "_check_hidden_states_for_generate",
        "_check_past_key_values_for_generate",
    )
    return type(cases.__name__, (cases,), {name: lambda *_, **__: None for name in looks})


def try_family(checkout: Checkout, family: str) -> Report:
    """Every test of one family."""
    report = Report(family)
    try:
        cases = cases_of(checkout, family)
    except (ImportError, LookupError, AttributeError) as error:
        report.error = f"{type(error).__name__}: {error}"
        return report
    mixin = checkout.module("tests.generation.test_utils").GenerationTesterMixin
    for name in unittest.TestLoader().getTestCaseNames(cases):
        if not hasattr(mixin, name):
            continue
        if name in NOT_RUN:
            report.not_counted[name] = "compiled, with cache_implementation='static'"
            continue
        print(f"{family}: {name}", file=sys.stderr, flush=True)
        plain = run_test(cases, name, "plain")
        if not plain.passed or not plain.calls:
            report.not_counted[name] = (
                "skipped" if plain.skipped else plain.error if not plain.passed else "does not call generate"
            )
            continue
        runs = _through(cases, name)
        reasons = [run.refused for run in runs.values() if not run.passed]
        asks_less = any(argument in reason for argument in NEVER_FORMED for reason in reasons)
        if asks_less:
            runs = _through(_without_what_is_never_formed(cases), name, asks_less=True)
        report.cached_tokens += runs["warm"].cached_tokens
        wrong = {how: run for how, run in runs.items() if not run.passed}
        if not wrong:
            (report.passed_less if asks_less else report.passed).append(name)
        elif all(run.refused for run in wrong.values()):
            report.refused[name] = next(iter(wrong.values())).refused
        else:
            report.failed[name] = "; ".join(f"{how}: {run.error}" for how, run in wrong.items())
    return report


def table(reports: list[Report]) -> str:
    """Markdown: counts by family, what was refused, what failed."""
    lines = [
        "| family | passed | passed less | refused | failed | tokens reused when warm |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for report in reports:
        counts = (
            f"not tried: {report.error} | | | | |"
            if report.error
            else f"{len(report.passed)} | {len(report.passed_less)} | {len(report.refused)} | "
            f"{len(report.failed)} | {report.cached_tokens} |"
        )
        lines.append(f"| {report.family} | {counts}")
    tried = [report for report in reports if not report.error]
    sums = [
        sum(len(getattr(r, part)) for r in tried) for part in ("passed", "passed_less", "refused", "failed")
    ]
    lines.append(f"| **{len(tried)} families** | {' | '.join(map(str, sums))} | |")
    refusals = Counter(why for report in tried for why in report.refused.values())
    lines += ["", "| refused | tests |", "| --- | --- |"]
    lines += [f"| {why.replace('|', '/')} | {count} |" for why, count in refusals.most_common()]
    failures = [(report.family, name, why) for report in tried for name, why in report.failed.items()]
    if failures:
        lines += ["", "| failed | why |", "| --- | --- |"]
        lines += [f"| {family}: {name} | {why.replace('|', '/')} |" for family, name, why in failures]
    return "\n".join(lines) + "\n"


def write(name: str, reports: list[Report], checkout: Checkout) -> None:
    """The table as markdown, and all of it as JSON."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text(table(reports))
    found = {"provenance": provenance(), "missing": checkout.missing, "families": list(map(asdict, reports))}
    (RESULTS / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")


def main() -> int:
    """Prints the table, and writes it under `bench/results/`. 1 where a test failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("checkout", type=Path, help="a copy of the transformers repository")
    parser.add_argument("families", nargs="*", help="model types; default all that are served")
    parser.add_argument(
        "--name", default=f"huggingface-tests-{transformers.__version__}", help="of the results"
    )
    options = parser.parse_args()
    # The models are so small that threads cost more than they give.
    torch.set_num_threads(1)
    checkout = Checkout(options.checkout.resolve())
    reports = []
    for family in options.families or sorted(FAMILIES):
        reports.append(try_family(checkout, family))
        print(table(reports[-1:]).splitlines()[2], flush=True)
        # After each family, so that a run that is stopped leaves what it found.
        write(options.name, reports, checkout)
    print(table(reports))
    return int(any(report.failed or report.error for report in reports))


if __name__ == "__main__":
    sys.exit(main())

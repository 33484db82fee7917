"""Hugging Face's own generation tests, with `generate` through kvtrie.

    python -m bench.huggingface_tests CHECKOUT [FAMILY ...]

CHECKOUT is a copy of the transformers repository at the installed version, or a near one; nothing of it is kept
here. The tests need `parameterized`. Results of families that are not named stay as they are.

Every test of its `GenerationTesterMixin` that a family's own test class has runs three times, on prompts padded at
the left: plain, with each `generate` through a new wrapper (cold), and with each `generate` made twice by one
wrapper (warm). Each result must also equal what plain `generate` returns for the same call and random numbers. A
test counts if it passes plain and calls `generate`. It is

    passed        with both
    passed less   with both, once `generate` is not passed `NOT_SERVED`, which kvtrie refuses by name
    refused       when kvtrie refuses the model or an argument, in one sentence
    failed        otherwise
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import sys
import traceback
import unittest
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("KVTRIE_CHECK", "1")

import numpy as np
import torch
import transformers
from torch import Tensor

from bench.huggingface_checkout import Checkout
from bench.huggingface_generate import NOT_SERVED, Run, Through, counted
from bench.measure import provenance
from kvtrie.api.models.families import FAMILIES

TEST_SECONDS = 180

NOT_RUN = (
    "test_generate_compile_model_forward_fullgraph",
    "test_generate_compilation_all_outputs",
    "test_static_cache_no_recompile_with_smaller_length",
)
"""Tests of another cache than kvtrie's, which take a minute each only to be refused."""

RESULTS = Path("bench/results")

_PLACE = re.compile(r'File ".*?(?P<file>[^/]+)", line (?P<line>\d+)')


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
            with counted(run):
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
        # Without folders: these are of the machine.
        found = (_PLACE.search(line) for line in lines)
        places = [f"{place['file']}:{place['line']}" for place in found if place][-3:]
        run.error = f"{lines[-1][:400]} ({' <- '.join(reversed(places))})"
    return run


class _LeftPadded:
    """Moves what the inputs' masks hide to the left: most hide the right end, some hide tokens at random."""

    def prepare_config_and_inputs_for_generate(self, *args: Any, **keywords: Any) -> Any:
        """As the test class has it."""
        config, inputs = super().prepare_config_and_inputs_for_generate(*args, **keywords)  # type: ignore[misc]
        mask = inputs.get("attention_mask")
        if isinstance(mask, Tensor) and mask.dim() == 2:
            inputs = {**inputs, "attention_mask": mask.sort(-1).values}
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


def _looking_less(cases: type[unittest.TestCase]) -> type[unittest.TestCase]:
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
        asks_less = any(argument in reason for argument in NOT_SERVED for reason in reasons)
        if asks_less:
            runs = _through(_looking_less(cases), name, asks_less=True)
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


def write(name: str, reports: list[Report], tests_from: str, missing: list[str]) -> None:
    """The table as markdown, and all of it as JSON, with the families that are there already."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    known = (
        {}
        if not path.exists()
        else {r["family"]: Report(**r) for r in json.loads(path.read_text())["families"]}
    )
    known.update({report.family: report for report in reports})
    families = [known[family] for family in sorted(known)]
    made_on = provenance()
    head = (
        f"Hugging Face's generation tests through kvtrie {made_on['commit']}, {made_on['versions']}, with "
        f"{tests_from or 'tests of the same version'}; `bench/huggingface_tests.py` says what counts.\n\n"
    )
    path.with_suffix(".md").write_text(head + table(families))
    found = {
        "provenance": made_on,
        "tests_from": tests_from,
        "missing": missing,
        "families": list(map(asdict, families)),
    }
    path.write_text(json.dumps(found, indent=1) + "\n")


def main() -> int:
    """Prints the table, and writes it under `bench/results/`. 1 where a test failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("checkout", type=Path, help="a copy of the transformers repository")
    parser.add_argument("--tests-from", default="", help="what the checkout is: a tag, or commits")
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
        write(options.name, reports, options.tests_from, checkout.missing)
    print(table(reports))
    return int(any(report.failed or report.error for report in reports))


if __name__ == "__main__":
    sys.exit(main())

"""The harness of Hugging Face's generation tests, over a repository of three tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")

ROOT = Path(__file__).parents[2]
MIXIN = """
import torch
from tests.nowhere import a_decorator
from tests.test_pipeline_mixin import Mixin
from transformers import DynamicCache

class GenerationTesterMixin(Mixin):
    def generated(self, **arguments):
        config, inputs = self.prepare_config_and_inputs_for_generate()
        model = self.all_generative_model_classes[0](config).eval()
        return model.generate(**inputs, max_new_tokens=3, return_dict_in_generate=True, **arguments)

    @a_decorator
    def test_greedy_generate(self):
        self.assertEqual(self.generated(do_sample=False).sequences.shape, (2, 10))

    def test_sample(self):
        self.assertEqual(self.generated(do_sample=True, output_logits=True).sequences.shape, (2, 10))

    def test_attentions(self):
        self.assertEqual(self.generated(output_attentions=True, output_logits=True).logits[0].shape, (2, 50))

    def test_static_cache(self):
        self.generated(cache_implementation="static")

    def test_class_of_the_cache(self):
        caches = [value for value in self.generated().values() if hasattr(value, "get_seq_length")]
        self.assertIsInstance(caches[0], DynamicCache)

    def test_fails_plain(self):
        self.assertTrue(self.generated().sequences.sum() < 0)

    def test_of_something_else(self):
        pass
"""
LLAMA = """
import unittest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from ...generation.test_utils import GenerationTesterMixin

class LlamaModelTest(GenerationTesterMixin, unittest.TestCase):
    all_generative_model_classes = (LlamaForCausalLM,)

    def prepare_config_and_inputs_for_generate(self):
        config = LlamaConfig(vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=2,
                             num_attention_heads=2, pad_token_id=0, eos_token_id=None)
        ids = torch.randint(3, 50, (2, 7))
        mask = torch.tensor([[1] * 4 + [0] * 3, [1] * 7])
        return config, {"input_ids": ids, "attention_mask": mask}
"""


def test_passed_refused_and_failed_are_told_apart(tmp_path: Path) -> None:
    for name, text in {
        "tests/__init__.py": "",
        "tests/generation/__init__.py": "",
        "tests/generation/test_utils.py": MIXIN,
        "tests/models/__init__.py": "",
        "tests/models/llama/__init__.py": "",
        "tests/models/llama/test_modeling_llama.py": LLAMA,
    }.items():
        path = tmp_path / "checkout" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    results = tmp_path / "bench" / "results"
    results.mkdir(parents=True)
    done = subprocess.run(
        [sys.executable, "-m", "bench.huggingface_tests", str(tmp_path / "checkout"), "llama", "--name", "x"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    found = json.loads((results / "x.json").read_text())
    (llama,) = found["families"]
    assert found["missing"] == ["tests.nowhere"]
    assert llama["passed"] == ["test_greedy_generate", "test_sample"]
    assert llama["passed_less"] == ["test_attentions"]
    assert list(llama["refused"]) == ["test_static_cache"]
    assert "cache_implementation='static'" in llama["refused"]["test_static_cache"]
    assert list(llama["failed"]) == ["test_class_of_the_cache"]
    assert "not an instance of" in llama["failed"]["test_class_of_the_cache"]
    assert list(llama["not_counted"]) == ["test_fails_plain", "test_of_something_else"]
    assert llama["cached_tokens"] > 0
    assert "| llama | 2 | 1 | 1 | 1 | " in (results / "x.md").read_text()

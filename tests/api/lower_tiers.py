"""A store that outlives its wrappers, and a second process that reads what this one wrote.

Run as a program: `python -m tests.api.lower_tiers URL...` asks the small model for `ROW` through each of these
lower tiers, and prints what came of it as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import transformers as hf

from kvtrie.store import MemoryStore
from tests.api.balance import CHUNK, complete, wrapped
from tests.api.tiny_models import prompts

ROW = prompts([4 * CHUNK + 3])[0]
NEW = 4


class KeptStore(MemoryStore):
    """Closing a wrapper closes its store; this one stays as it is."""

    def close(self) -> None:
        """Forgets nothing."""


def small_model(seed: int = 0, dtype: torch.dtype = torch.float32) -> hf.PreTrainedModel:
    """One layer, so that hundreds of requests take seconds."""
    torch.manual_seed(seed)
    config = hf.LlamaConfig(
        vocab_size=211,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        pad_token_id=0,
    )
    model = hf.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(20)
    return model.to(dtype).eval()


def ask_in_another_process(*urls: str) -> list[dict[str, Any]]:
    """What a fresh process gets for `ROW` through each of `urls`."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.api.lower_tiers", *urls],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "TOKENIZERS_PARALLELISM": "false"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answers: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return answers


def main() -> None:
    torch.set_num_threads(1)
    model, answers = small_model(), []
    for url in sys.argv[1:]:
        with wrapped(model, store=url) as cached:
            (completion,) = complete(cached, ROW, new=NEW)
            assert completion.error is None
            counters = {name: n for name, n in cached.stats().items() if isinstance(n, int)}
            answers.append(
                {"tokens": completion.tokens, "cached_tokens": completion.cached_tokens, "counters": counters}
            )
    print(json.dumps(answers))


if __name__ == "__main__":
    main()

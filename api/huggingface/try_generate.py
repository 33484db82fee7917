"""One real `PrefixCachedModel.generate` on a tiny random model, to see whether it works with what is installed.

A new release of transformers can change what `generate` does with a cache. Only running it shows that.
"""

from __future__ import annotations

from typing import Any

from kvtrie.api.inspection.machine import Finding, installed_version
from kvtrie.api.inspection.version_range import ranges_tested

NAME = "generate"
PROMPTS = ([5], list(range(2, 42)))
"""A prompt of one token, of which nothing is cached, and one that spans several chunks."""
NEW_TOKENS = 6
_CHUNK_TOKENS = 8


def try_generate() -> Finding:
    """Compares cold and warm outputs with the model's own. Takes a second, and as long as importing torch does.

    Errors become the finding, and none is raised: any part of an installed library may have changed.
    """
    missing = [name for name in ("torch", "transformers") if installed_version(name) is None]
    if missing:
        return Finding(
            NAME, "not tried", False, False, f"pip install 'kvtrie[all]'   # {missing[0]} is missing"
        )
    try:
        problem = _problem()
    except Exception as error:
        first_line = (str(error).splitlines() or [""])[0]
        problem = f"it raises {type(error).__name__}: {first_line}"
    if problem is None:
        return Finding(NAME, "gives the model's own tokens, cold and warm", True, True, "")
    version, tested = installed_version("transformers"), ranges_tested()["transformers"]
    remedy = f"pip install 'transformers>={tested.oldest},<={tested.newest}', the versions that were tested"
    return Finding(NAME, f"wrong with transformers {version}: {problem}", False, True, remedy)


def _problem() -> str | None:
    """A sentence about what is wrong with `generate`; None if it works."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from kvtrie.api.huggingface.cached_model import PrefixCachedModel

    # Whoever calls this keeps their own random numbers.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            # Far from the default of 0.02, at which the logits of a random model nearly tie.
            initializer_range=0.5,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=0,
        )
        model = LlamaForCausalLM(config).eval()
    settings: dict[str, Any] = {"max_new_tokens": NEW_TOKENS, "do_sample": False}
    prompts = [torch.tensor([prompt]) for prompt in PROMPTS]
    with torch.inference_mode():
        expected = [
            model.generate(prompt, attention_mask=torch.ones_like(prompt), **settings).tolist()
            for prompt in prompts
        ]
    with PrefixCachedModel(model, memory="1MiB", chunk_tokens=_CHUNK_TOKENS) as cached:
        for state in ("cold", "warm"):
            for prompt, tokens in zip(prompts, expected):
                output = cached.generate(prompt, attention_mask=torch.ones_like(prompt), **settings)
                if output.tolist() != tokens:
                    return f"a {state} prompt of length {prompt.shape[1]} gives other tokens than the model's own"
        if not cached.stats().get("cached_tokens"):
            return "a repeated prompt reuses nothing"
    return None

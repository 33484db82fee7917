"""Two requests with one system prompt: the second one computes only its own question.

    python examples/quickstart.py

The model is a small random Llama, so that the example needs no download; any model that docs/models.md lists works
the same way.
"""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from kvtrie import PrefixCachedModel

torch.manual_seed(0)
model = LlamaForCausalLM(LlamaConfig(hidden_size=128, intermediate_size=256, num_hidden_layers=2)).eval()
system_prompt = torch.randint(3, 32_000, (1, 512))
questions = [torch.randint(3, 32_000, (1, 20)) for _ in range(2)]

with PrefixCachedModel(model, memory="64MiB") as cached:
    for question in questions:
        prompt = torch.cat([system_prompt, question], dim=1)
        before = cached.stats()["cached_tokens"]
        output = cached.generate(prompt, max_new_tokens=8, do_sample=False)
        assert torch.equal(output, model.generate(prompt, max_new_tokens=8, do_sample=False))
        reused = cached.stats()["cached_tokens"] - before
        print(f"{prompt.shape[1]} prompt tokens, {reused} of them cached; output equals model.generate's")

"""Two requests with one system prompt: the second one computes only its own question.

    python examples/quickstart.py

The model is a small random Llama, so nothing is downloaded; the models of docs/models.md are used the same way.
"""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from kvtrie import PrefixCachedModel

torch.manual_seed(0)
model = LlamaForCausalLM(LlamaConfig(hidden_size=128, intermediate_size=256, num_hidden_layers=2)).eval()
system_prompt = torch.randint(3, 32_000, (1, 512))

with PrefixCachedModel(model, memory="64MiB") as cached:
    for _ in range(2):
        question = torch.randint(3, 32_000, (1, 20))
        prompt = torch.cat([system_prompt, question], dim=1)
        output = cached.generate(prompt, max_new_tokens=8, do_sample=False)
        assert torch.equal(output, model.generate(prompt, max_new_tokens=8, do_sample=False))
        print(
            f"{prompt.shape[1]} prompt tokens; taken from the cache so far: {cached.stats()['cached_tokens']}"
        )

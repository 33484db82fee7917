"""Shared prefixes are held once: bytes against those of the unique chunks."""

from __future__ import annotations

import torch
import transformers as hf

from kvtrie.api import PrefixCachedModel
from tests.api.balance import assert_same, wrapped
from tests.api.tiny_models import prompts

CHUNK = 64
SHARED = 2048
OWN = 64
ROWS = 32


def long_model() -> hf.PreTrainedModel:
    torch.manual_seed(0)
    config = hf.LlamaConfig(
        vocab_size=211,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        max_position_embeddings=4096,
        pad_token_id=0,
    )
    return hf.AutoModelForCausalLM.from_config(config).eval()


def held_bytes(cached: PrefixCachedModel) -> int:
    """Bytes in the tree and of requests under way, by the tier's books and by the pool's slots."""
    device, memory = cached.stats()["device"], cached.engine.memory
    by_books = device["used_bytes"] + device["pending_bytes"]
    assert by_books == (memory.pool.slots - memory.pool.free_slots.free) * memory.shape.chunk_bytes
    assert isinstance(by_books, int)
    return by_books


def test_32_sequences_that_share_2048_tokens() -> None:
    model = long_model()
    new = CHUNK - 1
    rows = prompts([SHARED + OWN] * ROWS, shared=SHARED)
    with wrapped(model, chunks=2 * ROWS + SHARED // CHUNK + 64, chunk_tokens=CHUNK) as cached:
        completions = [cached.submit(row, max_new_tokens=new, eos=()) for row in rows]
        peak = 0
        while not cached.engine.idle:
            cached.engine.step()
            peak = max(peak, held_bytes(cached))
        # The chunks of all prompts and completions, each counted once; the last ones are not full.
        texts = [[*row, *completion.tokens] for row, completion in zip(rows, completions)]
        unique = {tuple(text[:end]) for text in texts for end in range(CHUNK, len(text) + CHUNK, CHUNK)}
        assert len(unique) == SHARED // CHUNK + 2 * ROWS
        assert peak <= 1.05 * len(unique) * cached.engine.memory.shape.chunk_bytes
        # The bound means something: unshared, the same sequences take fourteen times as much.
        assert 10 * len(unique) < ROWS * (SHARED + OWN) // CHUNK
        for completion in completions[0], completions[-1]:
            assert_same(model, completion)


def test_a_batch_of_generate_holds_the_shared_part_once() -> None:
    model = long_model()
    rows = torch.tensor(prompts([512 + 16] * 8, shared=512))
    peaks: list[int] = []
    with wrapped(model, chunks=64, chunk_tokens=CHUNK) as cached:

        def look(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            peaks.append(held_bytes(cached))
            return scores

        cached.generate(rows, max_new_tokens=20, logits_processor=[look], do_sample=False)
        unique = 512 // CHUNK + 8
        assert max(peaks) <= 1.05 * unique * cached.engine.memory.shape.chunk_bytes
        peaks.clear()
        cached.generate(rows, max_new_tokens=4, num_beams=4, logits_processor=[look], do_sample=False)
        # A beam copies the chunk it writes to, and shares all before it.
        assert max(peaks) <= (512 // CHUNK + 2 * 8 * 4) * cached.engine.memory.shape.chunk_bytes

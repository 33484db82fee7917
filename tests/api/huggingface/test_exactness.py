"""Outputs equal the uncached model's, family by family: tokens by HF's own generate, logits within 1e-5."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import transformers as hf
from transformers import PreTrainedModel

from kvtrie.api import PrefixCachedModel, Sampling
from kvtrie.prefix_tree import InputError
from tests.api.tiny_models import (
    CONFIGS,
    POSITIONS,
    VOCABULARY,
    WINDOW,
    config_of,
    left_padded,
    prompts,
    tiny_model,
)

CHUNK = 16
NEW = 12
LOGITS = {"return_dict_in_generate": True, "output_logits": True}


@pytest.fixture(scope="module", params=sorted(CONFIGS))
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return tiny_model(request.param)


@pytest.fixture
def cached(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> Iterator[PrefixCachedModel]:
    monkeypatch.setenv("KVTRIE_CHECK", "1")
    with PrefixCachedModel(model, memory=200 * chunk_bytes(model), chunk_tokens=CHUNK) as wrapper:
        yield wrapper
        wrapper.check()
        assert wrapper.stats()["device"]["pending_bytes"] == 0
        assert not wrapper.engine.memory.tree.leases


def chunk_bytes(model: PreTrainedModel) -> int:
    from kvtrie.api.models.model_facts import model_facts

    return model_facts(model).chunk_shape(CHUNK).chunk_bytes


def same_as_uncached(
    cached: PrefixCachedModel,
    rows: list[list[int]],
    tolerance: float = 1e-5,
    new: int = NEW,
    **arguments: Any,
) -> Any:
    """Runs both; compares tokens, and each step's logits where rows still agree on what was generated."""
    batch = left_padded(rows)
    torch.manual_seed(11)
    expected = cached.model.generate(**batch, max_new_tokens=new, **LOGITS, **arguments)
    torch.manual_seed(11)
    found = cached.generate(**batch, max_new_tokens=new, **LOGITS, **arguments)
    assert torch.equal(found.sequences, expected.sequences)
    assert len(found.logits) == len(expected.logits)
    for ours, theirs in zip(found.logits, expected.logits):
        scale = max(1.0, float(theirs.abs().max()))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance * scale)
    return found


def test_uneven_batches_cold_partially_warm_and_warm(cached: PrefixCachedModel) -> None:
    rows = prompts([5, 70, 33, 1, CHUNK, CHUNK + 1], shared=24)
    same_as_uncached(cached, rows)
    before = cached.stats()["cached_tokens"]
    same_as_uncached(cached, [[*row, 7, 8, 9] for row in rows])
    assert cached.stats()["cached_tokens"] > before
    same_as_uncached(cached, rows)


def test_after_eviction(cached: PrefixCachedModel) -> None:
    rows = prompts([90, 60], shared=40)
    same_as_uncached(cached, rows)
    memory = cached.engine.memory
    with cached.engine.lock:
        held = memory.take("tenant:default", memory.pool.slots - 2)
        assert held is not None, "everything unheld can be evicted"
        memory.give("tenant:default", held)
    assert cached.stats()["evictions"] > 0
    same_as_uncached(cached, rows)


def test_beams(cached: PrefixCachedModel) -> None:
    rows = prompts([41, 19, 70], shared=17)
    for _ in range(2):
        same_as_uncached(cached, rows, num_beams=4, num_return_sequences=2)


def test_seeded_sampling(cached: PrefixCachedModel) -> None:
    rows = prompts([41, 19, 70], shared=17)
    for _ in range(2):
        same_as_uncached(cached, rows, do_sample=True, temperature=1.3, top_k=30, num_return_sequences=3)


def test_assisted_decoding(cached: PrefixCachedModel) -> None:
    row = prompts([8])[0] * 4
    for _ in range(2):
        same_as_uncached(cached, [row], prompt_lookup_num_tokens=4)


def test_continuous_batching_and_preemption(cached: PrefixCachedModel) -> None:
    """The serving loop, in a pool that holds about two of the five sequences at once."""
    rows = prompts([90, 75, 130, 60, 33], shared=20)
    with PrefixCachedModel(cached.model, memory=16 * chunk_bytes(cached.model), chunk_tokens=CHUNK) as small:
        completions = [small.submit(row, max_new_tokens=NEW, eos=()) for row in rows]
        small.engine.run()
        for row, completion in zip(rows, completions):
            assert completion.error is None
            assert completion.tokens == greedy_tokens(cached.model, row, NEW)
        assert small.stats()["preemptions"] > 0
        small.check()
        assert not small.engine.memory.tree.leases


def test_prompts_in_pieces_and_requests_that_join_later(cached: PrefixCachedModel) -> None:
    from kvtrie.api import EngineConfig

    rows = prompts([90, 75, 90, 60], shared=50)
    with PrefixCachedModel(
        cached.model,
        memory=200 * chunk_bytes(cached.model),
        chunk_tokens=CHUNK,
        engine=EngineConfig(step_tokens=23),
    ) as wrapper:
        completions = []
        for row in rows:
            completions.append(wrapper.submit(row, max_new_tokens=NEW, eos=()))
            wrapper.engine.step()
            wrapper.engine.step()
        wrapper.engine.run()
        for row, completion in zip(rows, completions):
            assert completion.tokens == greedy_tokens(cached.model, row, NEW)


@pytest.mark.parametrize("family", [name for name in CONFIGS if name.endswith("-window")])
def test_generating_far_beyond_the_window(family: str) -> None:
    """From prompts within it, on both loops, and once more from what the first time left in the cache."""
    model = tiny_model(family, seed=4)
    rows = prompts([9, 2 * CHUNK, WINDOW - 1, WINDOW + 1], shared=7)
    with PrefixCachedModel(model, memory="8MiB", chunk_tokens=CHUNK) as cached:
        for _ in range(2):
            same_as_uncached(cached, rows, new=3 * WINDOW)
            completions = [cached.submit(row, max_new_tokens=3 * WINDOW, eos=()) for row in rows]
            cached.engine.run()
            for row, completion in zip(rows, completions):
                assert completion.tokens == greedy_tokens(model, row, 3 * WINDOW)
        assert cached.stats()["cached_tokens"] > 0


_VISION = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
WITH_IMAGES: dict[str, Callable[[], PreTrainedModel]] = {
    "gemma3": lambda: hf.Gemma3ForConditionalGeneration(
        hf.Gemma3Config(
            text_config=config_of("gemma3-window").to_dict(),
            vision_config={**_VISION, "image_size": 28, "patch_size": 14},
            mm_tokens_per_image=4,
            image_token_index=VOCABULARY - 1,
        )
    ),
    "llava": lambda: hf.LlavaForConditionalGeneration(
        hf.LlavaConfig(
            text_config=config_of("llama-gqa").to_dict(),
            vision_config={"model_type": "clip_vision_model", **_VISION, "image_size": 28, "patch_size": 14},
            image_token_index=VOCABULARY - 1,
        )
    ),
    # Its head hands `logits_to_keep` on to the attention layers.
    "llava_onevision": lambda: hf.LlavaOnevisionForConditionalGeneration(
        hf.LlavaOnevisionConfig(
            text_config=config_of("qwen2").to_dict(),
            vision_config={
                "model_type": "siglip_vision_model",
                **_VISION,
                "image_size": 28,
                "patch_size": 14,
            },
            image_token_index=VOCABULARY - 1,
            video_token_index=VOCABULARY - 2,
        )
    ),
    **{
        f"mistral3 over {text}": lambda text=text: hf.Mistral3ForConditionalGeneration(  # type: ignore[misc]
            hf.Mistral3Config(
                text_config=config_of(text).to_dict(),
                vision_config={"model_type": "pixtral", **_VISION, "image_size": 28, "patch_size": 14},
                image_token_index=VOCABULARY - 1,
            )
        )
        for text in ("mistral-window", "ministral3-window")
    },
}


@pytest.mark.parametrize("wrapper", WITH_IMAGES)
def test_text_of_a_model_that_takes_images(wrapper: str) -> None:
    torch.manual_seed(0)
    model = WITH_IMAGES[wrapper]().eval()
    with PrefixCachedModel(model, memory="8MiB", chunk_tokens=CHUNK) as cached:
        for _ in range(2):
            same_as_uncached(cached, prompts([70, 9, 33], shared=24))
        assert cached.stats()["cached_tokens"] > 0


def test_rotary_frequencies_of_each_kind_of_layer_tell_namespaces_apart() -> None:
    """Gemma 3 keeps them per kind; GPT-OSS stretches them (YaRN) whatever the length, so no limit follows."""
    from kvtrie.api.models.model_facts import model_facts

    gemma = tiny_model("gemma3-window")
    layouts = set()
    for theta in (10_000.0, 20_000.0):
        gemma.config.rope_parameters["sliding_attention"]["rope_theta"] = theta
        layouts.add(model_facts(gemma).layout())
    assert len(layouts) == 2
    gemma.config.rope_parameters["full_attention"]["rope_type"] = "dynamic"
    assert model_facts(gemma).max_positions == POSITIONS - 1
    gpt_oss = model_facts(tiny_model("gpt_oss-window"))
    assert '"rope_type":"yarn"' in gpt_oss.layout()
    assert (gpt_oss.max_positions, gpt_oss.limited_by) == (POSITIONS, "max_position_embeddings")


def greedy_tokens(model: PreTrainedModel, row: list[int], count: int) -> list[int]:
    output = model.generate(torch.tensor([row]), max_new_tokens=count, do_sample=False, eos_token_id=None)
    found: list[int] = output[0, len(row) :].tolist()
    return found


def test_one_wrong_cached_token_is_seen_by_the_logits(cached: PrefixCachedModel) -> None:
    """The negative control: swap one cached token's KV for another's, and the check above must fail."""
    rows = prompts([60])
    same_as_uncached(cached, rows)
    pool = cached.engine.memory.pool
    # The deepest chunk, which the rest of the prompt sees through any window.
    *_, wrong = cached.engine.memory.tree.walk()
    residence = wrong.at[0]
    assert residence is not None
    assert isinstance(residence.handle, int)
    for tensor in (pool.k, pool.v):
        tensor[:, :, residence.handle, 9] = tensor[:, :, residence.handle, 5]
    with pytest.raises(AssertionError):
        same_as_uncached(cached, rows)


def test_engine_sampling_is_repeatable_whatever_is_in_the_batch(cached: PrefixCachedModel) -> None:
    row, *others = prompts([50, 20, 64])
    sampling = Sampling(temperature=0.9, top_k=40, top_p=0.95, seed=3)
    alone = cached.submit(row, max_new_tokens=NEW, sampling=sampling, eos=())
    cached.engine.run()
    together = [cached.submit(r, max_new_tokens=NEW, sampling=sampling, eos=()) for r in (*others, row)]
    cached.engine.run()
    assert together[-1].tokens == alone.tokens


@pytest.mark.parametrize(
    "family",
    [
        "llama-gqa",
        "gpt2",
        "gpt_bigcode-mqa",
        "gpt_neox",
        "qwen3",
        "mistral-window",
        "gemma2-window",
        "gemma3-window",
        "gpt_oss-window",
    ],
)
def test_bf16_logits_are_within_its_rounding(family: str) -> None:
    """Both are compared with the same weights in fp32: ours may be no further off than 1.5x the uncached model."""
    model = tiny_model(family, torch.bfloat16)
    exact = tiny_model(family, torch.bfloat16).float()
    batch = left_padded(prompts([40, 77, 23], shared=20))
    truth = exact.generate(**batch, max_new_tokens=1, **LOGITS).logits[0]
    theirs = model.generate(**batch, max_new_tokens=1, **LOGITS).logits[0].float()
    with PrefixCachedModel(model, memory="8MiB", chunk_tokens=CHUNK) as cached:
        for _ in range(2):
            ours = cached.generate(**batch, max_new_tokens=1, **LOGITS).logits[0].float()
            error, reference = (ours - truth).abs().max(), (theirs - truth).abs().max()
            assert error <= 1.5 * reference + 2**-8 * truth.abs().max()


def test_wrapped_model_is_left_as_it_was(model: PreTrainedModel) -> None:
    ids = torch.tensor(prompts([30]))
    before, name = model(ids).logits, model.config._attn_implementation
    with PrefixCachedModel(model, memory=100 * chunk_bytes(model), chunk_tokens=CHUNK) as cached:
        cached.generate(ids, max_new_tokens=4)
        assert torch.equal(model(ids).logits, before), "direct calls keep their own attention"
        assert model.config._attn_implementation == name
    assert torch.equal(model(ids).logits, before)
    assert not model._forward_hooks
    assert not model._forward_pre_hooks
    with pytest.raises(InputError, match="closed"):
        cached.generate(ids)

"""What cannot work is one clear error, and leaves nothing held behind."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from transformers import PreTrainedModel

from kvtrie.api import EngineConfig, PrefixCachedModel, Sampling
from kvtrie.prefix_tree import InputError
from kvtrie.prefix_tree.errors import AccessDenied, KvtrieError, ModelOutputError, PoolExhausted
from tests.api.balance import CHUNK, assert_balanced, assert_same, chunk_bytes, complete, poisoned, wrapped
from tests.api.tiny_models import POSITIONS, VOCABULARY, left_padded, prompts, tiny_model

ROW = prompts([30])[0]
_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


@pytest.fixture(scope="module")
def shared_model() -> PreTrainedModel:
    return tiny_model("llama-gqa")


@pytest.fixture
def model() -> PreTrainedModel:
    """One that the test may spoil."""
    return tiny_model("llama-gqa")


@pytest.fixture
def cached(shared_model: PreTrainedModel) -> Iterator[PrefixCachedModel]:
    with wrapped(shared_model) as wrapper:
        yield wrapper
        # Whatever was refused, the next request is served.
        assert_same(shared_model, *complete(wrapper, ROW))


Call = Callable[[PrefixCachedModel, Any], Any]

EVERY_WAY_IN: dict[str, Call] = {
    "generate": lambda cached, row: cached.generate(torch.tensor([row]).long(), max_new_tokens=4),
    "submit": lambda cached, row: cached.submit(row, max_new_tokens=4),
    "stream": lambda cached, row: cached.stream(row, max_new_tokens=4),
    "warm": lambda cached, row: cached.warm(row),
}


@pytest.mark.parametrize("way", EVERY_WAY_IN)
@pytest.mark.parametrize(
    ("row", "says"),
    [
        ([], "empty"),
        (
            [5, VOCABULARY, 6],
            f"token id {VOCABULARY} at position 1 is outside the vocabulary of {VOCABULARY}",
        ),
        ([5, -1], "token id -1"),
        ([5, 2**40], f"token id {2**40}"),
        ([5] * (POSITIONS + 1), f"{POSITIONS} positions"),
    ],
    ids=["empty", "outside the vocabulary", "negative", "beyond int32", "beyond the positions"],
)
def test_prompts_that_cannot_be_run(cached: PrefixCachedModel, way: str, row: list[int], says: str) -> None:
    with pytest.raises(InputError, match=says):
        EVERY_WAY_IN[way](cached, row)
    assert_balanced(cached)
    assert cached.stats()["device"]["used_bytes"] == 0


@pytest.mark.parametrize("way", ["generate", "submit", "stream", "warm"])
def test_a_prompt_larger_than_the_pool(shared_model: PreTrainedModel, way: str) -> None:
    with wrapped(shared_model, chunks=4) as cached:
        with pytest.raises(PoolExhausted, match=rf"{5 * chunk_bytes(shared_model)} bytes"):
            EVERY_WAY_IN[way](cached, prompts([4 * CHUNK + 1])[0])
        assert_balanced(cached)
        # The largest that fits is served.
        assert_same(shared_model, *complete(cached, prompts([4 * CHUNK - 4])[0], new=4))


def test_a_batch_larger_than_the_pool_through_generate(shared_model: PreTrainedModel) -> None:
    with wrapped(shared_model, chunks=8) as cached:
        with pytest.raises(PoolExhausted, match="memory="):
            cached.generate(**left_padded(prompts([30, 31, 32])), max_new_tokens=4)
        assert_balanced(cached)
        with pytest.raises(PoolExhausted, match="more memory"):
            cached.generate(torch.tensor([ROW]), max_new_tokens=20, num_beams=6)
        assert_balanced(cached)
        assert_same(shared_model, *complete(cached, ROW))


def test_an_unknown_keyword(cached: PrefixCachedModel) -> None:
    with pytest.raises(ValueError, match="frobnicate"):
        cached.generate(torch.tensor([ROW]), max_new_tokens=4, frobnicate=1)
    assert_balanced(cached)
    with pytest.raises(TypeError, match="frobnicate"):
        cached.submit(ROW, frobnicate=1)
    with pytest.raises(TypeError, match="frobnicate"):
        cached.stream(ROW, frobnicate=1)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"attention_mask": torch.tensor([[1, 1, 1, 0]])}, "padded on the left"),
        ({"attention_mask": torch.tensor([[1, 0, 1, 1]])}, "padded on the left"),
        ({"attention_mask": torch.zeros(1, 4, dtype=torch.long)}, "row 0 is empty"),
        ({"attention_mask": torch.ones(1, 5, dtype=torch.long)}, r"\(1, 5\)"),
        ({"attention_mask": torch.ones(1, 4, dtype=torch.long, device="meta")}, "attention_mask is on meta"),
        ({"input_ids": torch.ones(1, 4)}, "integer tensor"),
        ({"input_ids": torch.ones(4, dtype=torch.long)}, "integer tensor"),
        ({"input_ids": [[5, 6, 7]]}, "integer tensor"),
        ({"input_ids": torch.ones(0, 4, dtype=torch.long)}, "empty"),
        ({"input_ids": torch.zeros(1, 4, dtype=torch.long, device="meta")}, "input_ids is on meta"),
        ({"inputs": torch.tensor([[5]])}, "both inputs and input_ids"),
    ],
    ids=str,
)
def test_tensors_that_are_no_prompt(cached: PrefixCachedModel, arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        cached.generate(**{"input_ids": torch.tensor([[5, 6, 7, 8]]), **arguments}, max_new_tokens=2)
    assert_balanced(cached)


@pytest.mark.parametrize("row", [[1.5, 2.0], [[1, 2], [3, 4]], torch.ones(2, 3, dtype=torch.long)], ids=str)
def test_token_lists_that_are_no_prompt(cached: PrefixCachedModel, row: Any) -> None:
    with pytest.raises(InputError, match=r"integers|holds 2 rows"):
        cached.submit(row)
    assert_balanced(cached)


def test_padding_is_inferred_as_transformers_does(shared_model: PreTrainedModel) -> None:
    """A row that ends in the pad token is right padding, mask or no mask."""
    with wrapped(shared_model) as cached, pytest.raises(InputError, match="padded on the left"):
        cached.generate(torch.tensor([[5, 6, 7, 0]]), max_new_tokens=2)


# ---- positions for which attention is reproduced exactly


def limited_models() -> dict[str, Callable[[], Any]]:
    factors = {"short_factor": [1.0] * 8, "long_factor": [4.0] * 8}
    return {
        "max_position_embeddings": lambda: hf.LlamaConfig(**_SIZES, max_position_embeddings=64),
        "longrope": lambda: hf.Phi3Config(
            **_SIZES,
            max_position_embeddings=128,
            original_max_position_embeddings=65,
            rope_parameters={"rope_type": "longrope", "rope_theta": 10000.0, **factors},
        ),
        "dynamic": lambda: hf.LlamaConfig(
            **_SIZES,
            max_position_embeddings=65,
            rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0},
        ),
    }


@pytest.mark.parametrize("limit", limited_models())
def test_the_last_position_is_exact_and_the_next_one_refused(limit: str) -> None:
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(limited_models()[limit]()).eval()
    with wrapped(model) as cached:
        for _ in range(2):
            for completion in complete(cached, prompts([56])[0], prompts([56], seed=2)[0], new=8):
                assert_same(model, completion)
        for length, new in ((64, 1), (57, 8), (1, 64)):
            row = prompts([length])[0]
            with pytest.raises(InputError, match="beyond the 64"):
                cached.submit(row, max_new_tokens=new)
            with pytest.raises(InputError, match="beyond the 64"):
                cached.generate(torch.tensor([row]), max_new_tokens=new)
            with pytest.raises(InputError, match="beyond the 64"):
                cached.generate(torch.tensor([row]), max_length=length + new)


def test_the_default_number_of_new_tokens_counts_too() -> None:
    """Transformers generates 20 new tokens by default: beyond the limit those would be wrong, not refused."""
    model = hf.AutoModelForCausalLM.from_config(limited_models()["longrope"]()).eval()
    with wrapped(model) as cached:
        row = prompts([45])[0]
        with pytest.raises(InputError, match="45 prompt \\+ 20 new tokens are 65, beyond the 64"):
            cached.generate(torch.tensor([row]), do_sample=False)
        ids = torch.tensor([row[:44]])
        assert torch.equal(cached.generate(ids, do_sample=False), model.generate(ids, do_sample=False))


def test_the_default_number_of_new_tokens_ends_at_the_last_position() -> None:
    """As in transformers, which lowers it there and does not refuse."""
    model = hf.AutoModelForCausalLM.from_config(limited_models()["max_position_embeddings"]()).eval()
    with wrapped(model) as cached:
        ids = torch.tensor(prompts([60]))
        expected = model.generate(ids, do_sample=False, eos_token_id=None)
        assert torch.equal(cached.generate(ids, do_sample=False, eos_token_id=None), expected)


# ---- the model itself


def test_a_model_in_training_mode(model: PreTrainedModel) -> None:
    model.train()
    with pytest.raises(InputError, match=r"training mode; call model.eval\(\)"):
        PrefixCachedModel(model)
    model.eval()
    with wrapped(model) as cached:
        begun = cached.submit(ROW, max_new_tokens=4)
        model.train()
        for call in EVERY_WAY_IN.values():
            with pytest.raises(InputError, match="training mode"):
                call(cached, ROW)
        cached.engine.run()
        with pytest.raises(InputError, match="training mode"):
            raise begun.error or AssertionError("served")
        assert_balanced(cached)
        model.eval()
        assert_same(model, *complete(cached, ROW))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_dtype_changed_after_wrapping(model: PreTrainedModel, dtype: torch.dtype) -> None:
    with wrapped(model) as cached:
        cached.generate(torch.tensor([ROW]), max_new_tokens=2)
        begun = cached.submit(prompts([20], seed=5)[0])
        model.to(dtype)
        cached.engine.run()
        with pytest.raises(InputError, match="wrap the model again"):
            raise begun.error or AssertionError("served")
        assert_balanced(cached)
        for row in ROW, ROW[:1]:
            with pytest.raises(InputError, match="wrap the model again"):
                cached.generate(torch.tensor([row]), max_new_tokens=2)
            assert_balanced(cached)
        with pytest.raises(InputError, match="wrap the model again"):
            cached.warm(ROW)


def test_a_model_without_weights() -> None:
    with torch.device("meta"):
        empty = hf.AutoModelForCausalLM.from_config(limited_models()["max_position_embeddings"]()).eval()
    with pytest.raises(InputError, match="meta device"):
        PrefixCachedModel(empty)


def test_weights_changed_while_a_request_is_under_way(model: PreTrainedModel) -> None:
    """KV of the new weights must not enter the old ones' namespace, which may be shared with others."""
    weight = model.model.layers[0].self_attn.v_proj.weight
    with wrapped(model) as cached:
        begun = cached.submit(ROW, max_new_tokens=20, eos=())
        waiting = cached.submit(prompts([25], seed=3)[0], max_new_tokens=4)
        cached.engine.step()
        before = weight.detach().clone()
        with torch.no_grad():
            weight.add_(0.5)
        cached.engine.run()
        for completion in begun, waiting:
            with pytest.raises(InputError, match="changed while"):
                raise completion.error or AssertionError("served")
        assert_same(model, *complete(cached, ROW))
        with torch.no_grad():
            weight.copy_(before)
        cached.refresh()
        # Under the first weights' namespace lies what they computed, and nothing else.
        (again,) = complete(cached, ROW)
        assert_same(model, again)
        assert again.cached_tokens


def test_weights_changed_inside_generate(model: PreTrainedModel) -> None:
    """The loop goes on like an uncached model's would; nothing it computes then is kept."""
    weight = model.model.layers[0].self_attn.v_proj.weight
    before = weight.detach().clone()

    def change(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            weight.add_(0.2)
        return scores

    ids = torch.tensor([ROW])
    options = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": None}
    with wrapped(model) as cached:
        output = cached.generate(ids, logits_processor=[change], **options)
        with torch.no_grad():
            weight.copy_(before)
        cached.refresh()
        (again,) = complete(cached, output[0].tolist(), new=2)
        assert_same(model, again)
        assert again.cached_tokens <= len(ROW) + 1


# ---- NaN


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_poisoned_weight(model: PreTrainedModel, value: float) -> None:
    rows = prompts([40, 33, 21], shared=16)
    weight = poisoned(model)
    with wrapped(model, chunks=24) as cached:
        complete(cached, rows[0])
        used = cached.stats()["device"]["used_bytes"]
        kept = weight.detach().clone()
        with torch.no_grad():
            weight.fill_(value)
        failed = complete(cached, *rows)
        assert all(isinstance(completion.error, ModelOutputError) for completion in failed)
        assert_balanced(cached)
        for batch in rows[:1], rows:
            with pytest.raises(ModelOutputError, match="not finite"):
                cached.generate(**left_padded(batch), max_new_tokens=4)
            assert_balanced(cached)
        with pytest.raises(ModelOutputError):
            cached.warm(rows[1])
        with pytest.raises(ModelOutputError):
            list(cached.stream(rows[1]))
        assert cached.stats()["device"]["used_bytes"] == used, "nothing poisoned was cached"
        with torch.no_grad():
            weight.copy_(kept)
        pool = cached.engine.memory.pool
        assert pool.k.isfinite().all()
        assert pool.v.isfinite().all(), "a masked lane that holds NaN would still reach an output"
        for completion in complete(cached, *rows):
            assert_same(model, completion)


def test_nan_in_mid_generation(model: PreTrainedModel) -> None:
    """One token's embedding is poisoned: rows that do not meet it are served."""
    good, bad = prompts([30, 30])
    good = [token for token in good if token != 100]
    with wrapped(model) as cached:
        (expected,) = complete(cached, good)
        assert_same(model, expected)
        with torch.no_grad():
            model.model.embed_tokens.weight[100] = float("nan")
        first, second, third = complete(cached, good, [*bad[:12], 100, *bad[13:]], bad[:12])
        assert isinstance(second.error, ModelOutputError)
        assert_same(model, first)
        assert_same(model, third)
        assert_balanced(cached)
        assert cached.engine.memory.pool.k.isfinite().all()


def test_a_pass_that_fails_half_way_leaves_no_nan_behind(model: PreTrainedModel) -> None:
    """Layers before the one that raises have written by then."""
    weight = poisoned(model)
    kept = weight.detach().clone()

    def fail(*_: Any) -> None:
        raise RuntimeError("a broken layer")

    with wrapped(model) as cached:
        cached.generate(torch.tensor([ROW]), max_new_tokens=2)
        with torch.no_grad():
            weight.fill_(float("nan"))
        hook = model.model.layers[2].register_forward_pre_hook(fail)
        with pytest.raises(RuntimeError, match="a broken layer"):
            cached.generate(torch.tensor([ROW[:1]]), max_new_tokens=2)
        assert_balanced(cached)
        pool = cached.engine.memory.pool
        assert pool.k.isfinite().all()
        assert pool.v.isfinite().all()
        completion = cached.submit(ROW)
        cached.engine.run()
        with pytest.raises(RuntimeError, match="a broken layer"):
            raise completion.error or AssertionError("served")
        assert_balanced(cached)
        hook.remove()
        with torch.no_grad():
            weight.copy_(kept)
        assert pool.k.isfinite().all()
        assert pool.v.isfinite().all()
        assert_same(model, *complete(cached, ROW))


# ---- settings


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"memory": "lots"}, "2GiB"),
        ({"memory": "1KiB"}, "give at least"),
        ({"memory": 0}, "less than one byte"),
        ({"chunk_tokens": 0}, "chunk_tokens must be at least 1"),
        ({"chunk_tokens": -4}, "chunk_tokens must be at least 1"),
        ({"chunk_tokens": 2.5}, "chunk_tokens must be a whole number"),
        ({"chunk_tokens": "64"}, "chunk_tokens must be a whole number"),
        ({"store": "redis//nowhere"}, "accepted"),
        ({"store": "redis://127.0.0.1:notaport"}, "port|malformed|accepted"),
        ({"store": "ftp://127.0.0.1"}, "accepted"),
        ({"store": "http://"}, "http"),
        ({"store": ""}, "accepted"),
        ({"tenant": ""}, "tenant"),
        ({"tenant": "a:b"}, "colon"),
        ({"shared": {"a:b": ["c"]}}, "colon"),
        ({"pin_budget": "some"}, "2GiB"),
    ],
    ids=str,
)
def test_wrapper_arguments(shared_model: PreTrainedModel, options: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        PrefixCachedModel(shared_model, **{"memory": "1MiB", **options})
    assert not shared_model._forward_pre_hooks


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("KVTRIE_CHECK", "yes", "KVTRIE_CHECK='yes'"),
        ("KVTRIE_CHECK", "", "KVTRIE_CHECK=''"),
        ("KVTRIE_STORE_KEY", "short", "16 to 64 bytes"),
        ("KVTRIE_STORE_KEY", "", "KVTRIE_STORE_KEY is empty"),
    ],
)
def test_environment_variables(
    shared_model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, says: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(InputError, match=says):
        PrefixCachedModel(shared_model, memory="1MiB", store="memory://")


@pytest.mark.parametrize("limits", [{"step_tokens": 0}, {"max_running": 0}])
def test_engine_limits(limits: dict[str, int]) -> None:
    with pytest.raises(InputError, match="at least 1"):
        EngineConfig(**limits)


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({"temperature": -1.0}, "temperature >= 0"),
        ({"top_k": -1}, "top_k >= 0"),
        ({"top_p": 0.0}, "0 < top_p <= 1"),
        ({"top_p": 1.5}, "0 < top_p <= 1"),
        ({"temperature": float("nan")}, "temperature must be finite, got nan"),
        ({"temperature": float("inf")}, "temperature must be finite, got inf"),
        ({"temperature": 10**400}, "temperature must be finite"),
        ({"temperature": "0.7"}, "temperature must be a number, got '0.7'"),
        ({"temperature": None}, "temperature must be a number, got None"),
        ({"temperature": True}, "temperature must be a number, got True"),
        ({"top_p": float("nan")}, "top_p must be finite, got nan"),
        ({"top_p": None}, "top_p must be a number"),
        ({"top_k": 5.0}, "top_k must be a whole number, got 5.0"),
        ({"top_k": True}, "top_k must be a whole number, got True"),
        ({"top_k": "5"}, "top_k must be a whole number"),
        ({"top_k": torch.tensor([1, 2])}, "top_k must be a whole number"),
        ({"seed": 1.0}, "seed must be a whole number, got 1.0"),
        ({"seed": False}, "seed must be a whole number, got False"),
        ({"seed": 2**64}, f"seed must be within {-(2**63)} and {2**64 - 1}, got {2**64}"),
        ({"seed": -(2**63) - 1}, "seed must be within"),
    ],
    ids=str,
)
def test_sampling_out_of_range(setting: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=re.escape(says)):
        Sampling(**setting)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=2),
        Sampling(temperature=1, top_p=1, top_k=np.int64(5)),  # type: ignore[arg-type]
        Sampling(temperature=np.float32(0.5), top_p=1e-30),  # type: ignore[arg-type]
        Sampling(temperature=0.7, top_k=2**70, seed=2**64 - 1),
        Sampling(temperature=0.7, seed=-(2**63)),
        Sampling(temperature=1e300),
    ],
    ids=str,
)
def test_every_sampling_that_can_be_made_can_be_used(cached: PrefixCachedModel, sampling: Sampling) -> None:
    (completion,) = complete(cached, ROW, sampling=sampling)
    assert completion.error is None
    assert len(completion.tokens) == 4


@pytest.mark.parametrize("temperature", [1e-20, 1e-30, 1e-42, 1e-300, 5e-324])
def test_the_lowest_temperatures_are_greedy(cached: PrefixCachedModel, temperature: float) -> None:
    """Quotients of logits overflow, though the limit is well defined: the likeliest token."""
    (completion,) = complete(cached, ROW, sampling=Sampling(temperature=temperature))
    assert_same(cached.model, completion)


@pytest.mark.parametrize("new", [0, -1])
def test_fewer_than_one_new_token(cached: PrefixCachedModel, new: int) -> None:
    with pytest.raises(InputError, match="max_new_tokens"):
        cached.submit(ROW, max_new_tokens=new)
    assert cached.engine.idle


def test_text_without_a_tokenizer(cached: PrefixCachedModel) -> None:
    with pytest.raises(InputError, match="tokenizer"):
        cached.submit("some text")


def test_a_closed_wrapper(shared_model: PreTrainedModel) -> None:
    with wrapped(shared_model) as cached:
        pass
    cached.close()
    for call in EVERY_WAY_IN.values():
        with pytest.raises(InputError, match="closed"):
            call(cached, ROW)


def test_a_wrong_api_key(
    shared_model: PreTrainedModel,
    start_sidecar: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    digest = hashlib.sha256(b"the right key").hexdigest()
    tenants = tmp_path / "tenants.toml"
    tenants.write_text(f'[tenants.acme]\napi_key_sha256 = "{digest}"\n')
    tenants.chmod(0o600)
    sidecar = start_sidecar(tenants=tenants, memory="4MiB", chunk_tokens=CHUNK)
    for key in None, "the wrong key":
        with pytest.raises(AccessDenied, match="api_key") as refused:
            PrefixCachedModel(shared_model, memory="1MiB", store=sidecar.url, api_key=key)
        assert "the wrong key" not in str(refused.value)
    assert not shared_model._forward_pre_hooks
    monkeypatch.setenv("KVTRIE_API_KEY", "the wrong key")
    with pytest.raises(KvtrieError, match="api_key"):
        PrefixCachedModel(shared_model, memory="1MiB", store=sidecar.unix_url)
    with wrapped(shared_model, store=sidecar.url, api_key="the right key") as cached:
        assert_same(shared_model, *complete(cached, ROW))
        assert cached.flush()
        assert cached.stats()["lower"]["written_records"] > 0

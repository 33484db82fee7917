"""kvtrie's passes run on a view of the model: its owner's calls, in whatever thread, never meet them."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from types import MethodType
from typing import Any

import pytest
import torch
import transformers as hf
from transformers import PreTrainedModel

from kvtrie.api.models.model_view import ModelView
from kvtrie.prefix_tree.errors import InputError, UnsupportedModel
from tests.api.balance import CHUNK, complete, greedy, wrapped
from tests.api.tiny_models import CONFIGS, POSITIONS, VOCABULARY, left_padded, prompts, tiny_model

ROW = prompts([3 * CHUNK + 3])[0]


@pytest.fixture
def model() -> PreTrainedModel:
    return tiny_model("llama-gqa")


def test_what_is_doubled_and_what_is_shared(model: PreTrainedModel) -> None:
    root = ModelView(model).root
    assert type(root) is type(model)
    assert root is not model
    attention, own = root.model.layers[1].self_attn, model.model.layers[1].self_attn
    assert attention is not own
    assert attention.q_proj is own.q_proj
    assert root.lm_head is model.lm_head
    assert root.model.norm is model.model.norm
    assert [id(p) for p in root.parameters()] == [id(p) for p in model.parameters()]
    assert attention.config is root.config, "one private config, however many modules read it"
    assert root.config is not model.config
    assert root.config._attn_implementation == "kvtrie"
    assert model.config._attn_implementation == own.config._attn_implementation == "sdpa"


def test_the_model_has_no_trace_of_a_view(model: PreTrainedModel) -> None:
    before = [dict(module.__dict__) for module in model.modules()]
    with wrapped(model) as cached:
        complete(cached, ROW)
        cached.generate(torch.tensor([ROW]), max_new_tokens=3)
        assert [dict(module.__dict__) for module in model.modules()] == before


def test_generating_on_a_static_cache_in_another_thread() -> None:
    """It builds masks between its passes, by the attention that the config names at that moment."""
    model = tiny_model("gemma3-window")
    batch = left_padded(prompts([40, 30, 22], shared=12))
    plain = {"max_new_tokens": 6, "do_sample": False}
    static = {**plain, "cache_implementation": "static", "disable_compile": True}
    expected, dynamic = model.generate(**batch, **static), model.generate(**batch, **plain)
    wrong: list[object] = []

    def repeat(generate: Callable[..., Any], arguments: dict[str, Any], right: torch.Tensor) -> None:
        try:
            wrong.extend(i for i in range(8) if not torch.equal(generate(**batch, **arguments), right))
        except Exception as error:
            wrong.append(error)

    with wrapped(model, chunks=100) as cached:
        threads = [
            threading.Thread(target=repeat, args=(model.generate, static, expected)),
            threading.Thread(target=repeat, args=(cached.generate, plain, dynamic)),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_a_wrapper_that_is_dropped_frees_its_memory_at_once(model: PreTrainedModel) -> None:
    """Not at some later garbage collection: the pool may be most of a device."""
    gc.collect()
    gc.disable()
    try:
        with wrapped(model) as cached:
            complete(cached, ROW)
            cached.generate(torch.tensor([ROW]), max_new_tokens=3)
            view = weakref.ref(cached._facts.view.root)
            pool = weakref.ref(cached.engine.memory.pool)
        del cached
        assert pool() is None
        assert view() is None
    finally:
        gc.enable()


def test_defaults_replaced_after_wrapping(model: PreTrainedModel) -> None:
    with wrapped(model) as cached:
        model.generation_config = hf.GenerationConfig(max_new_tokens=5, do_sample=False, pad_token_id=0)
        ids = torch.tensor([ROW])
        assert torch.equal(cached.generate(ids), model.generate(ids))
        assert cached.generate(ids).shape[1] == len(ROW) + 5


def test_our_generate_in_the_model_s_place(model: PreTrainedModel) -> None:
    """As people do to serve code that calls `model.generate`."""
    ids = torch.tensor([ROW])
    expected = model.generate(ids, max_new_tokens=5, do_sample=False)
    with wrapped(model) as cached:
        model.generate = cached.generate
        assert torch.equal(model.generate(ids, max_new_tokens=5, do_sample=False), expected)
        del model.generate


def test_a_layer_replaced_after_wrapping(model: PreTrainedModel) -> None:
    other = tiny_model("llama-gqa", seed=1)
    with wrapped(model) as cached:
        complete(cached, ROW)
        model.model.layers[1] = other.model.layers[1]
        expected = greedy(model, ROW, 4)
        (completion,) = complete(cached, ROW)
        assert (completion.cached_tokens, completion.tokens) == (0, expected)
        assert (
            cached.generate(torch.tensor([ROW]), max_new_tokens=4, eos_token_id=None)[0, len(ROW) :].tolist()
            == expected
        )


def test_a_method_of_a_module_in_its_forward_s_place(model: PreTrainedModel) -> None:
    """As libraries that replace kernels do: bound to the module, so the view binds it to its own."""
    attention = model.model.layers[0].self_attn
    own = type(attention).forward
    calls: list[torch.nn.Module] = []

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(self)
        return own(self, *args, **kwargs)

    attention.forward = MethodType(forward, attention)
    with wrapped(model) as cached:
        calls.clear()
        (completion,) = complete(cached, ROW)
        assert calls
        assert attention not in calls
        assert completion.tokens == greedy(model, ROW, 4)


def test_an_attention_replaced_after_wrapping_by_one_that_ours_cannot_reach(model: PreTrainedModel) -> None:
    with wrapped(model) as cached:
        complete(cached, ROW)
        attention = model.model.layers[0].self_attn
        plain = attention.forward
        attention.forward = lambda *args, **kwargs: plain(*args, **kwargs)
        with pytest.raises(UnsupportedModel, match="2 of 3 layers reached kvtrie's attention"):
            cached.generate(torch.tensor([ROW]), max_new_tokens=2)
        del attention.forward
        complete(cached, ROW)


def test_a_config_changed_after_wrapping(model: PreTrainedModel) -> None:
    with wrapped(model) as cached:
        model.config.pad_token_id = 3
        model.set_attn_implementation("eager")
        complete(cached, ROW)
        model.config.rms_norm_eps = 0.5
        with pytest.raises(InputError, match=r"config changed after it was wrapped \(rms_norm_eps\)"):
            cached.submit(ROW)


def test_frequencies_that_a_long_call_of_the_owner_stretched() -> None:
    """Dynamic and longrope modules rewrite their frequencies at each pass; ours must be those of short prompts."""
    factors = {
        "short_factor": [1.0 + 0.1 * i for i in range(8)],
        "long_factor": [2.0 + 0.5 * i for i in range(8)],
    }
    longrope = {"rope_type": "longrope", "rope_theta": 1e4, "factor": 4.0, **factors}
    for family, rope in (
        ("llama-gqa", {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}),
        ("phi3", {**longrope, "original_max_position_embeddings": 128}),
    ):
        config = CONFIGS[family]()
        config.rope_parameters = rope
        if family == "llama-gqa":
            config.max_position_embeddings = 128
        else:
            config.original_max_position_embeddings = 128
        torch.manual_seed(0)
        model = hf.AutoModelForCausalLM.from_config(config).eval()
        expected = greedy(model, ROW, 6)
        long = torch.randint(3, VOCABULARY, (1, 300))
        with wrapped(model) as cached, torch.no_grad():
            digests = cached._identity.digests()
            (cold,) = complete(cached, ROW, new=6)
            begun = cached.submit(ROW, max_new_tokens=6, eos=())
            cached.engine.step()
            model(long)
            cached.engine.run()
            (warm,) = complete(cached, ROW, new=6)
            assert cold.tokens == begun.tokens == warm.tokens == expected
            assert warm.cached_tokens >= 3 * CHUNK
            assert cached._identity.digests() == digests
            assert cached._facts.max_positions < POSITIONS


def test_weights_are_read_once_whatever_a_pass_rewrites(monkeypatch: pytest.MonkeyPatch) -> None:
    from kvtrie.api.models import model_identity

    config = CONFIGS["phi3"]()
    factors = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    config.rope_parameters = {"rope_type": "longrope", "rope_theta": 1e4, "factor": 4.0, **factors}
    config.rope_parameters["original_max_position_embeddings"] = config.original_max_position_embeddings = 128
    model = hf.AutoModelForCausalLM.from_config(config).eval()
    read: list[int] = []
    digest = model_identity.digest_tensors
    monkeypatch.setattr(model_identity, "digest_tensors", lambda tensors: read.append(1) or digest(tensors))
    with wrapped(model) as cached:
        for _ in range(3):
            complete(cached, ROW, new=6)
            cached.generate(torch.tensor([ROW]), max_new_tokens=4)
            model(torch.tensor([ROW]))
        assert len(read) == 1


@pytest.mark.parametrize("change", ["hook", "scaling", "frequencies"])
def test_a_change_of_frequencies_that_depend_on_length(change: str) -> None:
    """The view has a copy of such a module, and makes it anew."""
    config = CONFIGS["llama-gqa"]()
    config.rope_parameters = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(config).eval()
    rotary, ids = model.model.rotary_emb, torch.tensor([ROW])
    logits = {"max_new_tokens": 1, "return_dict_in_generate": True, "output_logits": True}
    with wrapped(model) as cached:
        complete(cached, ROW)
        before = model.generate(ids, **logits).logits[0]
        if change == "hook":
            rotary.register_forward_hook(lambda module, inputs, output: tuple(2 * part for part in output))
        elif change == "scaling":
            rotary.attention_scaling = 3.0
        else:
            with torch.no_grad():
                rotary.original_inv_freq.mul_(0.5)
                rotary.inv_freq.mul_(0.5)
        expected = model.generate(ids, **logits).logits[0]
        assert (expected - before).abs().max() > 1e-3
        torch.testing.assert_close(cached.generate(ids, **logits).logits[0], expected, rtol=0, atol=1e-5)


def test_a_generate_that_leaves_its_config_changed(model: PreTrainedModel) -> None:
    """Transformers changes the number of layers for drafts, and an error keeps it from changing it back."""
    ids = torch.tensor([ROW])
    with wrapped(model) as cached:
        with pytest.raises(UnsupportedModel, match="assistant_early_exit"):
            cached.generate(ids, max_new_tokens=4, assistant_early_exit=1)

        class Failing(hf.LogitsProcessor):
            def __call__(self, *args: Any) -> Any:
                cached._facts.view.config.num_hidden_layers = 1
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            cached.generate(ids, max_new_tokens=4, logits_processor=hf.LogitsProcessorList([Failing()]))
        assert torch.equal(
            cached.generate(ids, max_new_tokens=4, do_sample=False),
            model.generate(ids, max_new_tokens=4, do_sample=False),
        )

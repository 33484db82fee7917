"""Changed weights and adapters change the namespace: never a stale hit, and switching back hits again."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from kvtrie.api import PrefixCachedModel
from kvtrie.prefix_tree.errors import UnsupportedModel
from tests.api.balance import CHUNK, complete, greedy, wrapped
from tests.api.tiny_models import prompts, tiny_model

peft = pytest.importorskip("peft")

ROW = prompts([4 * CHUNK + 3])[0]
MISS, HIT = 0, 4 * CHUNK


def ask(cached: PrefixCachedModel) -> int:
    """Cached tokens of one request, whose output is the uncached model's."""
    (completion,) = complete(cached, ROW)
    assert completion.error is None
    assert completion.tokens == greedy(cached.model, ROW, 4)
    ids = torch.tensor([ROW])
    logits = {"return_dict_in_generate": True, "output_logits": True, "max_new_tokens": 1}
    # Small changes of the weights move logits long before they move tokens.
    torch.testing.assert_close(
        cached.generate(ids, **logits).logits[0],
        cached.model.generate(ids, **logits).logits[0],
        rtol=1e-4,
        atol=1e-4,
    )
    return completion.cached_tokens


@pytest.fixture
def model() -> PreTrainedModel:
    return tiny_model("llama-gqa")


@pytest.fixture
def cached(model: PreTrainedModel) -> Iterator[PrefixCachedModel]:
    with wrapped(model, chunks=200) as wrapper:
        yield wrapper


def lora(rank: int = 4, **options: Any) -> Any:
    # Freshly made adapters change nothing by themselves: these are random.
    return peft.LoraConfig(
        r=rank, target_modules=["k_proj", "v_proj"], init_lora_weights=False, **{"lora_alpha": 16, **options}
    )


def test_weights_changed_in_place(cached: PrefixCachedModel, model: PreTrainedModel) -> None:
    weight = model.model.layers[0].self_attn.k_proj.weight
    assert [ask(cached), ask(cached)] == [MISS, HIT]
    with torch.no_grad():
        weight.add_(0.05)
    assert [ask(cached), ask(cached)] == [MISS, HIT]
    before = weight.detach().clone()
    with torch.no_grad():
        weight.mul_(1.5)
    assert ask(cached) == MISS
    with torch.no_grad():
        weight.copy_(before)
    assert ask(cached) == HIT, "contents count, not when they were written"


def test_an_optimizer_s_step(cached: PrefixCachedModel, model: PreTrainedModel) -> None:
    assert ask(cached) == MISS
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.tensor([ROW]), labels=torch.tensor([ROW])).loss.backward()
    optimizer.step()
    assert [ask(cached), ask(cached)] == [MISS, HIT]


def test_a_parameter_replaced(cached: PrefixCachedModel, model: PreTrainedModel) -> None:
    assert ask(cached) == MISS
    projection = model.model.layers[0].self_attn.v_proj
    projection.weight = torch.nn.Parameter(projection.weight.detach() * 2)
    assert [ask(cached), ask(cached)] == [MISS, HIT]
    model.load_state_dict(tiny_model("llama-gqa").state_dict())
    assert ask(cached) == HIT, "the first weights again"


def test_writes_through_data_need_refresh(cached: PrefixCachedModel, model: PreTrainedModel) -> None:
    assert ask(cached) == MISS
    model.model.layers[0].self_attn.k_proj.weight.data.mul_(1.5)
    cached.refresh()
    assert [ask(cached), ask(cached)] == [MISS, HIT]


def test_a_buffer_changed(cached: PrefixCachedModel, model: PreTrainedModel) -> None:
    """RoPE's frequencies are no parameters, and no part of the state dict; `.to(bfloat16)` rounds them."""
    assert ask(cached) == MISS
    with torch.no_grad():
        model.model.rotary_emb.inv_freq.mul_(0.7)
    assert [ask(cached), ask(cached)] == [MISS, HIT]


def native(model: PreTrainedModel) -> tuple[Any, Callable[[str], Any], Callable[[], Any], Callable[[], Any]]:
    try:
        model.add_adapter(lora(), "one")
    except ValueError as error:
        # Asked, not computed: transformers 5.24 wants a peft newer than any there is.
        pytest.skip(f"this transformers takes no adapters from this peft: {error}")
    model.add_adapter(lora(), "two")
    return model, model.set_adapter, model.disable_adapters, model.enable_adapters


def through_peft(
    model: PreTrainedModel,
) -> tuple[Any, Callable[[str], Any], Callable[[], Any], Callable[[], Any]]:
    wrapper = peft.get_peft_model(model, lora(), "one")
    wrapper.add_adapter("two", lora())
    tuner = wrapper.base_model
    return wrapper, wrapper.set_adapter, tuner.disable_adapter_layers, tuner.enable_adapter_layers


@pytest.mark.parametrize("add", [native, through_peft])
@pytest.mark.parametrize("wrap_first", [True, False], ids=["wrapped before", "wrapped after"])
def test_adapters_switched(model: PreTrainedModel, add: Any, wrap_first: bool) -> None:
    if wrap_first:
        with wrapped(model, chunks=200) as cached:
            assert [ask(cached), ask(cached)] == [MISS, HIT]
            _, switch, disable, enable = add(model)
            model.eval()
            switch_about(cached, switch, disable, enable, bare=HIT)
    else:
        whole, switch, disable, enable = add(model)
        with wrapped(whole.eval(), chunks=200) as cached:
            switch_about(cached, switch, disable, enable, bare=MISS)


def switch_about(
    cached: PrefixCachedModel,
    switch: Callable[[str], Any],
    disable: Callable[[], Any],
    enable: Callable[[], Any],
    bare: int,
) -> None:
    switch("one")
    assert [ask(cached), ask(cached)] == [MISS, HIT]
    switch("two")
    assert [ask(cached), ask(cached)] == [MISS, HIT]
    disable()
    assert [ask(cached), ask(cached)] == [bare, HIT]
    enable()
    switch("one")
    assert ask(cached) == HIT
    switch("two")
    assert ask(cached) == HIT


def layers(model: Any) -> list[Any]:
    return [module for module in model.modules() if hasattr(module, "merged_adapters")]


def test_an_adapter_s_scaling(model: PreTrainedModel) -> None:
    whole = peft.get_peft_model(model, lora(), "one")
    with wrapped(whole.eval()) as cached:
        assert ask(cached) == MISS
        for layer in layers(model):
            layer.set_scale("one", 0.5)
        assert [ask(cached), ask(cached)] == [MISS, HIT]
        for layer in layers(model):
            layer.set_scale("one", 1.0)
        assert ask(cached) == HIT


def test_an_adapter_s_weights(model: PreTrainedModel) -> None:
    whole = peft.get_peft_model(model, lora(), "one")
    with wrapped(whole.eval()) as cached:
        assert ask(cached) == MISS
        with torch.no_grad():
            layers(model)[0].lora_A["one"].weight.add_(0.1)
        assert [ask(cached), ask(cached)] == [MISS, HIT]


def test_merging_and_unmerging(model: PreTrainedModel) -> None:
    """Merging writes through `.data`, which no version counts."""
    whole = peft.get_peft_model(model, lora(), "one").eval()
    with wrapped(whole, chunks=200) as cached:
        assert [ask(cached), ask(cached)] == [MISS, HIT]
        whole.merge_adapter()
        assert [ask(cached), ask(cached)] == [MISS, HIT]
        whole.unmerge_adapter()
        # Rounding may have changed the weights for good; what counts is that nothing stale is used.
        ask(cached)
        assert ask(cached) == HIT
        for layer in layers(whole):
            layer.set_scale("one", 2.0)
        whole.merge_adapter()
        assert ask(cached) == MISS
        with whole.disable_adapter():
            ask(cached)
            assert ask(cached) == HIT
        ask(cached)
        assert ask(cached) == HIT


def test_two_adapters_at_once(model: PreTrainedModel) -> None:
    whole = peft.get_peft_model(model, lora(), "one")
    whole.add_adapter("two", lora())
    with wrapped(whole.eval()) as cached:
        for names in (["one"], ["one", "two"], ["two"]):
            whole.base_model.set_adapter(names)
            assert [ask(cached), ask(cached)] == [MISS, HIT]


def test_an_adapter_under_another_name_with_other_contents(model: PreTrainedModel) -> None:
    whole = peft.get_peft_model(model, lora(), "other")
    whole.add_adapter("one", lora())
    whole.set_adapter("one")
    with wrapped(whole.eval()) as cached:
        assert ask(cached) == MISS
        whole.delete_adapter("one")
        whole.add_adapter("one", lora())
        whole.set_adapter("one")
        whole.eval()
        assert [ask(cached), ask(cached)] == [MISS, HIT], "a name says nothing"


def test_an_adapter_switched_in_mid_request(model: PreTrainedModel) -> None:
    whole = peft.get_peft_model(model, lora(), "one")
    whole.add_adapter("two", lora())
    with wrapped(whole.eval()) as cached:
        begun = cached.submit(ROW, max_new_tokens=8, eos=())
        cached.engine.step()
        whole.set_adapter("two")
        cached.engine.run()
        assert "changed while" in str(begun.error)
        assert ask(cached) == MISS
        whole.set_adapter("one")
        assert ask(cached) == HIT


def test_peft_s_hot_swap(model: PreTrainedModel, tmp_path: Path) -> None:
    """It writes through `.data`, keeps every address, and is no write of the user's own."""
    from peft.utils.hotswap import hotswap_adapter

    whole = peft.get_peft_model(model, lora(), "one").eval()
    other = peft.get_peft_model(tiny_model("llama-gqa", seed=1), lora(), "one")
    first, second = tmp_path / "first", tmp_path / "second"
    whole.save_pretrained(first)
    other.save_pretrained(second)
    with wrapped(whole) as cached:
        assert [ask(cached), ask(cached)] == [MISS, HIT]
        begun = cached.submit(ROW, max_new_tokens=4, eos=())
        cached.engine.step()
        hotswap_adapter(whole, str(second / "one"), "one")
        cached.engine.run()
        assert "changed while" in str(begun.error)
        assert [ask(cached), ask(cached)] == [MISS, HIT]
        hotswap_adapter(whole, str(first / "one"), "one")
        assert ask(cached) == HIT


def test_trainable_tokens_beside_lora(model: PreTrainedModel) -> None:
    """One of its tensors is an attribute of an attribute, and which tokens it is for is no tensor at all."""
    whole = peft.get_peft_model(model, lora(trainable_token_indices=[ROW[0], ROW[5]]), "one").eval()
    with wrapped(whole) as cached:
        assert [ask(cached), ask(cached)] == [MISS, HIT]
        (layer,) = (m for m in whole.modules() if hasattr(m, "trainable_tokens_delta"))
        with torch.no_grad():
            layer.trainable_tokens_delta["one"].add_(0.5)
        assert [ask(cached), ask(cached)] == [MISS, HIT]
        layer.token_indices["one"] = [ROW[1], ROW[5]]
        cached.refresh()
        assert [ask(cached), ask(cached)] == [MISS, HIT]


@pytest.mark.parametrize("later", [False, True], ids=["before wrapping", "after wrapping"])
def test_an_adapter_that_tokens_of_the_prompt_activate(model: PreTrainedModel, later: bool) -> None:
    whole = peft.get_peft_model(model, lora(), "plain").eval()
    activated = lora(alora_invocation_tokens=[5, 6], task_type="CAUSAL_LM")
    says = r"PEFT adapter 'activated' .* activated by tokens of the prompt"
    if not later:
        whole.add_adapter("activated", activated)
        with pytest.raises(UnsupportedModel, match=says):
            PrefixCachedModel(whole.eval(), memory="1MiB")
        return
    with wrapped(whole) as cached:
        assert ask(cached) == MISS
        whole.add_adapter("activated", activated)
        with pytest.raises(UnsupportedModel, match=says):
            cached.submit(ROW)
        whole.delete_adapter("activated")
        whole.eval()
        assert ask(cached) == HIT


def test_adapters_that_peft_computes_outside_the_layers(model: PreTrainedModel) -> None:
    config = peft.PolyConfig(target_modules=["q_proj"], r=2, task_type="CAUSAL_LM")
    with pytest.raises(UnsupportedModel, match=r"PolyModel has a generate\(\) of its own"):
        PrefixCachedModel(peft.get_peft_model(model, config).eval(), memory="1MiB")


def test_adapters_that_were_unloaded_are_let_go_of(model: PreTrainedModel) -> None:
    whole = peft.get_peft_model(model, lora(), "base")
    seen: list[weakref.ref[torch.Tensor]] = []
    with wrapped(whole.eval(), chunks=200) as cached:
        for cycle in range(6):
            whole.add_adapter(f"a{cycle}", lora())
            whole.set_adapter(f"a{cycle}")
            whole.eval()
            assert ask(cached) == MISS
            seen.append(weakref.ref(layers(whole)[0].lora_A[f"a{cycle}"].weight.untyped_storage()))
            whole.delete_adapter(f"a{cycle}")
            whole.set_adapter("base")
            ask(cached)
        gc.collect()
        assert not any(ref() is not None for ref in seen)
        assert len(cached._identity._known) <= 2
        assert len(cached._identity._storages) == len([*model.parameters(), *model.buffers()])


STEERING = torch.randn(64, generator=torch.Generator().manual_seed(3)) * 4


def steer(model: PreTrainedModel) -> Callable[[], None]:
    hook = model.model.layers[0].register_forward_hook(lambda module, inputs, output: output + STEERING)
    return hook.remove


def steer_before(model: PreTrainedModel) -> Callable[[], None]:
    hook = model.model.layers[1].register_forward_pre_hook(
        lambda module, inputs: (inputs[0] + STEERING, *inputs[1:])
    )
    return hook.remove


def replace_forward(model: PreTrainedModel) -> Callable[[], None]:
    mlp = model.model.layers[0].mlp
    plain = mlp.forward
    mlp.forward = lambda hidden: plain(hidden) * 0.2
    return lambda: delattr(mlp, "forward")


def scale_attention(model: PreTrainedModel) -> Callable[[], None]:
    attention = model.model.layers[0].self_attn
    before = attention.scaling
    attention.scaling = 3 * before
    return lambda: setattr(attention, "scaling", before)


def widen_epsilon(model: PreTrainedModel) -> Callable[[], None]:
    norm = model.model.layers[0].input_layernorm
    before = norm.variance_epsilon
    norm.variance_epsilon = 0.5
    return lambda: setattr(norm, "variance_epsilon", before)


def steer_everywhere(model: PreTrainedModel) -> Callable[[], None]:
    def scale(module: Any, inputs: Any, output: Any) -> Any:
        return output * 3 if type(module).__name__ == "LlamaMLP" else None

    return torch.nn.modules.module.register_module_forward_hook(scale).remove


def replace_forward_of_the_class(model: PreTrainedModel) -> Callable[[], None]:
    kind = type(model.model.layers[0].mlp)
    before = kind.forward
    kind.forward = lambda self, hidden: before(self, hidden) * 0.2
    return lambda: setattr(kind, "forward", before)


CHANGES = [
    steer,
    steer_before,
    replace_forward,
    scale_attention,
    widen_epsilon,
    steer_everywhere,
    replace_forward_of_the_class,
]


@pytest.mark.parametrize("change", CHANGES)
def test_changes_that_no_tensor_knows_of(
    cached: PrefixCachedModel, model: PreTrainedModel, change: Callable[[Any], Callable[[], None]]
) -> None:
    with torch.no_grad():
        plain = model(torch.tensor([ROW])).logits
    assert [ask(cached), ask(cached)] == [MISS, HIT]
    undo = change(model)
    with torch.no_grad():
        assert (model(torch.tensor([ROW])).logits - plain).abs().max() > 0.01, "`ask` would see it"
    assert [ask(cached), ask(cached)] == [MISS, HIT]
    undo()
    assert ask(cached) == HIT
    undo = change(model)
    begun = cached.submit(ROW, max_new_tokens=4, eos=())
    cached.engine.step()
    undo()
    cached.engine.run()
    assert "changed while" in str(begun.error)
    assert ask(cached) == HIT


def test_hooks_that_get_the_address_of_earlier_ones(
    cached: PrefixCachedModel, model: PreTrainedModel
) -> None:
    """A function that was freed leaves its address to the next; it must not leave its namespace."""
    seen = set()
    for place in range(300):
        hook = model.model.layers[0].register_forward_hook(lambda module, inputs, output, place=place: output)
        seen.add(cached._identity.digests())
        hook.remove()
        with torch.no_grad():
            model.lm_head.weight.add_(0)
    assert len(seen) == 300


def test_kv_under_hooks_is_shared_with_no_other_process(model: PreTrainedModel) -> None:
    """What a hook does cannot be digested: another process may have another one."""
    undo = steer(model)
    with wrapped(model) as one, wrapped(model) as other:
        assert one._identity.digests() != other._identity.digests()
        before = one._identity.digests()
        one.refresh()
        assert one._identity.digests() != before, "a hook's own memory may have changed"
        undo()
        assert one._identity.digests() == other._identity.digests()


def test_a_call_that_asks_for_hidden_states_changes_nothing(
    cached: PrefixCachedModel, model: PreTrainedModel
) -> None:
    """Transformers installs hooks for it that stay; they only read."""
    assert ask(cached) == MISS
    model(torch.tensor([ROW]), output_hidden_states=True)
    assert ask(cached) == HIT


def test_prompt_learning_added_later_stays_outside(cached: PrefixCachedModel, model: PreTrainedModel) -> None:
    """It wraps the model from without: the wrapper goes on serving what it wrapped."""
    assert ask(cached) == MISS
    whole = peft.get_peft_model(model, peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    with pytest.raises(UnsupportedModel, match="prepends"):
        PrefixCachedModel(whole.eval(), memory="1MiB")
    assert ask(cached) == HIT


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"chunk_tokens": 2 * CHUNK}, "chunk_tokens"),
        ({"tenant": "other"}, "scope"),
        ({"salt": "salt"}, "salt"),
    ],
)
def test_what_the_namespace_is_made_of(model: PreTrainedModel, change: dict[str, Any], field: str) -> None:
    def namespace(wrapper_of: Any, **options: Any) -> Any:
        with wrapped(wrapper_of, **options) as cached:
            complete(cached, ROW)
            (root,) = (r for r in cached.engine.memory.tree.roots() if r.children)
            return root.namespace

    one = namespace(model)
    assert one.differences(namespace(tiny_model("llama-gqa"))) == []
    assert one.differences(namespace(model, **change)) == [field]
    assert one.differences(namespace(tiny_model("llama-gqa", seed=1))) == ["weights"]
    assert "kv_dtype" in one.differences(namespace(tiny_model("llama-gqa", torch.bfloat16)))

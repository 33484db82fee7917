"""Models compiled by torch.compile are refused: its guards would compile each step of kvtrie's anew."""

from __future__ import annotations

from torch import nn

from kvtrie.prefix_tree.errors import UnsupportedModel


def refuse_compiled(model: nn.Module) -> None:
    """Names what torch.compile did to a model, or to a part of it, if it did anything.

    Raises:
        UnsupportedModel: says how to undo it.
    """
    # Asked at every call, so by hand: `Module.modules()` takes several times as long.
    modules: list[nn.Module | None] = [model]
    for module in modules:
        if module is None:
            continue
        kind, state = type(module).__name__, module.__dict__
        if "_orig_mod" in module._modules:
            raise UnsupportedModel(f"{_REASON}; pass what was compiled: it is the {kind}'s ._orig_mod")
        if state.get("_compiled_call_impl") is not None:
            raise UnsupportedModel(f"{_REASON}; undo {kind}.compile() by {kind}._compiled_call_impl = None")
        if hasattr(state.get("forward"), "_torchdynamo_orig_callable"):
            raise UnsupportedModel(f"{_REASON}; undo what replaced {kind}.forward by `del model.forward`")
        modules += module._modules.values()


_REASON = "the model was compiled by torch.compile, which kvtrie does not serve"

"""Tries a model with seven tokens: how its layers call attention, and whether its logits are right.

    the model's own pass   0 1 2 3 4 5 6
    the view's two passes  0 1 2 3 4 | 5 6      the second attends to the keys and values of the first, too

The attention is the plain one, in fp32. So where the logits differ, the model does something that kvtrie does not
know of: its layers mix tokens outside attention or keep a state, mask tokens without passing a mask, or count
positions by themselves. `generate_check` tries the rest of the way, through the pool and transformers' `generate`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kvtrie.api.models.layer_attention import KEYWORD
from kvtrie.chunk_kernels import Variant
from kvtrie.chunk_kernels.reference import attend_rows
from kvtrie.prefix_tree.errors import KvtrieError, UnsupportedModel

PIECES = (5, 2)
"""Tokens of each pass."""

ROUNDINGS = 16
"""Difference of logits that is taken for rounding, in units of the dtype's precision and of their spread."""

DRAWS = 3
"""Draws of tokens that are tried before a model is refused for its logits."""

LEAST_TOLERANCE = 1e-3
"""The same for fp32, whose rounding, 2e-6 in the families served, is far below what a wrong layer changes."""

TF32_PRECISION = 2.0**-10
"""Precision of fp32 matrices that are multiplied in TF32."""


@dataclass(frozen=True, slots=True)
class LayerShape:
    """Keys and values of one layer."""

    kv_heads: int
    key_dim: int
    value_dim: int
    dtype: str
    """E.g. `float32`."""


@dataclass(frozen=True, slots=True)
class Probed:
    """Calls of the attention function by the layers of a model, and the logits that resulted."""

    shapes: dict[int, LayerShape]
    """By layer; layers that never reached the function are missing."""
    variants: dict[int, Variant]
    """By layer."""
    ids: Tensor
    """The tokens tried, int `[tokens]`."""
    logits: Tensor
    """Logits of the view's passes, fp32 `[tokens, vocabulary]`."""


def probe(kind: str, root: Any, config: Any, device: torch.device, draw: int = 0) -> Probed:
    """Runs a few tokens through a model whose layers call `layer_attention`.

    Args:
        kind: what errors call the model.
        root: of a `ModelView`.
        config: the text config.
        device: of the model's inputs.
        draw: other tokens for each number.

    Raises:
        UnsupportedModel: the model cannot run so, or a layer attends in a way that kvtrie does not compute.
    """
    ids = torch.tensor(_tokens(config, sum(PIECES), draw), device=device)
    attention = _PlainAttention(kind)
    logits, start = [], 0
    for rows in PIECES:
        attention.begin(rows)
        positions = torch.arange(start, start + rows, device=device)
        try:
            with torch.no_grad():
                output = root(
                    input_ids=ids[positions][None],
                    position_ids=positions[None],
                    use_cache=False,
                    **{KEYWORD: attention},
                )
        except (KvtrieError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise UnsupportedModel(
                f"{kind} cannot run on kvtrie's attention, which {len(attention.shapes)} of "
                f"{config.num_hidden_layers} layers reached before {type(error).__name__}: {error}"
            ) from error
        logits.append(output.logits[0].float())
        start += rows
    return Probed(attention.shapes, attention.variants, ids, torch.cat(logits))


def check_logits(model: nn.Module, root: Any, config: Any, probed: Probed) -> None:
    """Compares what was probed with the logits of the model's own pass over the same tokens.

    A difference must show at `DRAWS` draws of the tokens: with 16 bits, rounding now and then sends a token to
    another expert of a mixture, which changes all its logits.

    Args:
        model: with its own attention.
        root: of its `ModelView`.
        config: the text config.
        probed: by `probe`.

    Raises:
        UnsupportedModel: the difference is beyond rounding.
    """
    kind = type(model).__name__
    tolerance = max(LEAST_TOLERANCE, ROUNDINGS * _precision(probed))
    found = _difference(model, probed)
    for draw in range(1, DRAWS):
        if found <= tolerance:
            return
        found = min(found, _difference(model, probe(kind, root, config, probed.ids.device, draw)))
    if not found <= tolerance:
        raise UnsupportedModel(
            f"{kind} does not compute its own logits from the keys and values that its layers hand to attention: "
            f"they are off by {found:.2g} of their spread, where rounding explains {tolerance:.2g}"
        )


def _difference(model: nn.Module, probed: Probed) -> float:
    """Difference of the logits at the worst token: root mean square over the vocabulary, over their spread."""
    # Not `model(...)`: a model compiled in place would be compiled for these few tokens.
    forward: Any = model._call_impl
    with torch.no_grad():
        own: Tensor = forward(input_ids=probed.ids[None], use_cache=False).logits[0].float()
    if not torch.isfinite(own).all():
        return 0.0  # Its weights are broken: whatever is generated with them fails, and says so.
    fp32 = torch.finfo(torch.float32)
    spread = own.std(-1) + fp32.eps * own.abs().amax(-1) + fp32.tiny
    differences = (probed.logits - own).square().mean(-1).sqrt() / spread
    return float(differences.nan_to_num(torch.inf).max())


class _PlainAttention:
    """Attends plainly, over the keys and values of all passes so far; notes what each layer asks for."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self.shapes: dict[int, LayerShape] = {}
        self.variants: dict[int, Variant] = {}
        self._kv: dict[int, tuple[Tensor, Tensor]] = {}
        self._seen: set[int] = set()
        self._rows = 0

    def begin(self, rows: int) -> None:
        """A pass over the next `rows` tokens begins."""
        self._seen.clear()
        self._rows = rows

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, variant: Variant
    ) -> Tensor:
        """See `LayerAttention.attend`.

        Raises:
            UnsupportedModel: not one call a layer, or not with one query, key and value a token.
        """
        if layer in self._seen:
            raise UnsupportedModel(
                f"{self._kind}: layer {layer} attends more than once in a pass; kvtrie holds one key and one value "
                "a token in each layer"
            )
        self._seen.add(layer)
        counts = (query.shape[0], key.shape[0], value.shape[0])
        if (
            counts != (self._rows,) * 3
            or query.shape[2] != key.shape[2]
            or key.shape[1] != value.shape[1]
            or query.shape[1] % key.shape[1]
        ):
            raise UnsupportedModel(
                f"{self._kind}: for {self._rows} tokens, layer {layer} attends with {list(query.shape)} queries, "
                f"{list(key.shape)} keys and {list(value.shape)} values; kvtrie takes [tokens, heads, dim], with "
                "whole groups of query heads and keys as wide as queries"
            )
        dtype = str(key.dtype).removeprefix("torch.")
        self.shapes[layer] = LayerShape(key.shape[1], key.shape[2], value.shape[2], dtype)
        self.variants[layer] = variant
        if layer in self._kv:
            keys, values = self._kv[layer]
            key, value = torch.cat([keys, key]), torch.cat([values, value])
        self._kv[layer] = key, value
        out, _ = attend_rows(
            query.float(), key.float().transpose(0, 1), value.float().transpose(0, 1), scale, variant
        )
        return out.to(query.dtype)


def _tokens(config: Any, count: int, draw: int) -> list[int]:
    """Ordinary tokens across the vocabulary: none that a config names, which may mark an image."""
    named: set[int] = set()
    for name, value in config.to_dict().items():
        if "token" in name:
            named.update(v for v in (value if isinstance(value, list) else [value]) if isinstance(v, int))
    ordinary = [token for token in range(int(config.vocab_size)) if token not in named] or [0]
    return [ordinary[len(ordinary) * (i + 1) // (count + 2) - draw] for i in range(count)]


def _precision(probed: Probed) -> float:
    """Precision of the numbers that the model computes with."""
    precision = max(torch.finfo(getattr(torch, shape.dtype)).eps for shape in probed.shapes.values())
    if probed.logits.device.type != "cpu" and torch.get_float32_matmul_precision() != "highest":
        return max(precision, TF32_PRECISION)
    return precision

"""Loads a model with its tokenizer from this machine: a Hugging Face directory, or a GGUF file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kvtrie.api.smollm2 import SMOLLM2, is_smollm2, need_gguf, smollm2_file
from kvtrie.prefix_tree.errors import InputError

_SHORT = {torch.bfloat16: "bf16", torch.float16: "fp16"}
"""How names of CPU features spell each 16-bit dtype, as in `amx_bf16` and `avx512_fp16`."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A causal LM in eval mode, and its tokenizer."""

    model: Any
    tokenizer: Any
    """transformers' tokenizer; None where a directory has none."""
    description: str
    """Source, class and dtype, on one line."""


def load_model(name: str, dtype: torch.dtype | None = None, device: str = "cpu") -> LoadedModel:
    """Loads a model. Nothing is downloaded, and code that comes with a model is not run.

    Args:
        name: a Hugging Face directory, a `.gguf` file, or `smollm2`.
        dtype: of the weights; None for the one they are stored in. On a CPU without instructions for that dtype it
            is float32 then, because 16-bit weights would be slow; a GGUF file's weights become float32, too.
        device: where to put it, e.g. `cpu` or `cuda:1`.

    Raises:
        InputError: there is no such model, or it cannot be loaded.
        PackageMissing: a package that the model needs is not installed.
    """
    path = smollm2_file() if is_smollm2(name) else Path(name)
    if path.is_dir():
        return _load(name, path, {}, dtype, device)
    if path.suffix == ".gguf" and path.is_file():
        need_gguf(path)
        return _load(name, path.parent, {"gguf_file": path.name}, dtype, device)
    raise InputError(f"there is no model {name!a}: give a Hugging Face directory, a .gguf file, or {SMOLLM2}")


def _load(
    name: str, directory: Path, source: dict[str, str], asked: torch.dtype | None, device: str
) -> LoadedModel:
    import transformers

    options: dict[str, Any] = {**source, "local_files_only": True, "trust_remote_code": False}
    try:
        kept = _kept_dtype(directory, options)
        is_converted = bool(source) or (device == "cpu" and _slow_here(kept))
        dtype = asked or (torch.float32 if is_converted else kept)
        model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=dtype, **options)
        model = model.to(device).eval()
        has_tokenizer = bool(source) or any(directory.glob("tok*"))
        tokenizer = (
            transformers.AutoTokenizer.from_pretrained(directory, **options) if has_tokenizer else None
        )
    # The libraries raise what they please on a bad file.
    except Exception as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"cannot load model {name!a}: {ascii(said)[1:-1]}") from None
    description = f"{source.get('gguf_file', name)}: {type(model).__name__}, {_name(dtype)}"
    if asked is None and dtype != kept and not source:
        description += f" (its {_name(kept)} weights converted: this CPU has no {_name(kept)} instructions)"
    return LoadedModel(model, tokenizer, description)


def _kept_dtype(directory: Path, options: dict[str, Any]) -> torch.dtype:
    """The dtype that a model's config names; float32 where it names none."""
    from transformers import AutoConfig

    dtype = getattr(AutoConfig.from_pretrained(directory, **options), "dtype", None)
    return dtype if isinstance(dtype, torch.dtype) else torch.float32


def _slow_here(dtype: torch.dtype) -> bool:
    """Whether this CPU has no instructions for a 16-bit dtype, or torch cannot say."""
    if dtype not in _SHORT:
        return False
    asked = getattr(torch.cpu, "get_capabilities", None)
    features = {} if asked is None else asked()
    return not any(has is True and _SHORT[dtype] in feature for feature, has in features.items())


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

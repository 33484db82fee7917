"""Loading a model from a directory: its dtype, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kvtrie.api.huggingface.load_model import load_model
from kvtrie.prefix_tree.errors import InputError
from tests.api.tiny_models import tiny_model


@pytest.fixture(scope="module", params=[torch.bfloat16, torch.float16, torch.float32], ids=str)
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_model("llama-gqa", request.param).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("features", "kept"),
    [
        ({}, {torch.float32}),
        ({"amx_bf16": True, "amx_fp16": False}, {torch.float32, torch.bfloat16}),
        ({"avx512_bf16": True, "avx512_fp16": True}, {torch.float32, torch.bfloat16, torch.float16}),
    ],
)
def test_sixteen_bits_are_kept_where_the_cpu_has_instructions_for_them(
    directory: Path, monkeypatch: pytest.MonkeyPatch, features: dict[str, bool], kept: set[torch.dtype]
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features, raising=False)
    saved = getattr(torch, str(load_model_config(directory)))
    loaded = load_model(str(directory))
    assert loaded.model.dtype == (saved if saved in kept else torch.float32)
    assert ("weights converted" in loaded.description) == (saved not in kept)
    assert not loaded.model.training
    assert loaded.tokenizer is None


def test_a_torch_that_cannot_say_has_no_fast_sixteen_bits(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert load_model(str(directory)).model.dtype == torch.float32


def load_model_config(directory: Path) -> str:
    """The dtype that was saved, by its name."""
    import json

    return str(json.loads((directory / "config.json").read_text())["dtype"])


@pytest.mark.parametrize(
    ("content", "said"), [({}, "cannot load model"), ({"config.json": "{"}, "cannot load model")]
)
def test_a_directory_that_holds_no_model(tmp_path: Path, content: dict[str, str], said: str) -> None:
    for name, text in content.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=said) as raised:
        load_model(str(tmp_path))
    assert str(raised.value).isprintable()


def test_a_name_that_is_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no model"):
        load_model(str(tmp_path / "none"))


def test_a_gguf_file_that_is_none(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    (tmp_path / "model.gguf").write_bytes(b"no gguf")
    with pytest.raises(InputError, match="cannot load model"):
        load_model(str(tmp_path / "model.gguf"))

"""KV bytes of real models' configs, counted by hand; capacities as people write them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvtrie.api.trace.capacity import parse_capacities
from kvtrie.api.trace.kv_bytes import kv_bytes_per_token
from kvtrie.prefix_tree.errors import InputError

LLAMA = {
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "hidden_size": 4096,
    "torch_dtype": "bfloat16",
}


@pytest.mark.parametrize(
    ("config", "size_bytes"),
    [
        (LLAMA, 32 * 8 * 2 * 128 * 2),
        ({**LLAMA, "head_dim": 256, "dtype": "float32"}, 32 * 8 * 2 * 256 * 4),
        ({"n_layer": 12, "n_head": 12, "n_embd": 768, "torch_dtype": "float16"}, 12 * 12 * 2 * 64 * 2),
        ({"n_layer": 12, "n_head": 12, "n_embd": 768, "multi_query": True}, 12 * 2 * 64 * 2),
        ({"text_config": LLAMA, "torch_dtype": "float32"}, 32 * 8 * 2 * 128 * 2),
        ({"num_hidden_layers": 60, "kv_lora_rank": 512, "qk_rope_head_dim": 64, "n_head": 2}, 60 * 576 * 2),
    ],
)  # fmt: skip
def test_bytes_of_a_token(tmp_path: Path, config: dict[str, object], size_bytes: int) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    assert kv_bytes_per_token(path) == size_bytes


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is not JSON"),
        ("[]", "is not a JSON object"),
        ("{}", "needs 'num_hidden_layers'"),
        (json.dumps({**LLAMA, "num_key_value_heads": 0}), "needs 'num_key_value_heads'"),
        (json.dumps({**LLAMA, "torch_dtype": "int7"}), "has dtype 'int7'"),
    ],
)
def test_what_is_no_config(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(content)
    with pytest.raises(InputError, match=said):
        kv_bytes_per_token(path)


def test_a_config_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read: No such file"):
        kv_bytes_per_token(tmp_path / "none.json")


def test_capacities() -> None:
    part, size, blocks = parse_capacities("2.5%, 1MiB,300blocks")
    assert part.in_blocks(1000, None) == 25
    assert part.in_blocks(10, None) == 1
    assert size.in_blocks(1000, 1 << 10) == 1024
    assert blocks.in_blocks(1000, None) == 300
    with pytest.raises(InputError, match="pass --model-config"):
        size.in_blocks(1000, None)
    with pytest.raises(InputError, match="less than one block"):
        size.in_blocks(1000, 1 << 21)
    for text in ("", "5", "0%", "0blocks", "x%", "3 furlongs", "5%,"):
        with pytest.raises(InputError, match=r"capacity|size"):
            parse_capacities(text)

"""Texts as the command line tokenizes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kvtrie.api.tokenizer import open_tokenizer
from tests.api.tokenizers_of_each_kind import byte_level, sentencepiece_bpe

CHAT = [{"role": "user", "content": "The quick brown fox"}]


@pytest.mark.parametrize("make", [byte_level, sentencepiece_bpe])
@pytest.mark.parametrize("form", ["file", "model"])
def test_a_rendered_chat_template_gets_no_second_bos(make: Any, form: str, tmp_path: Path) -> None:
    own = make()
    own.save_pretrained(tmp_path)
    if form == "model":
        # Without the file of the tokenizers library alone: the directory is read by transformers.
        from kvtrie.api.tokenizer import _HuggingFaceModel

        tokenizer: Any = _HuggingFaceModel(str(tmp_path))
    else:
        tokenizer = open_tokenizer(str(tmp_path))
    rendered = own.apply_chat_template(CHAT, tokenize=False)
    right = own.apply_chat_template(CHAT, return_dict=False)
    assert right.count(own.bos_token_id) == 1
    assert tokenizer.encode(rendered, True) == right
    assert tokenizer.encode(rendered, False) == right
    # Any other text gets one, a text of equal letters too, and the empty one.
    for text in ("aa", "a", "", "The quick brown fox"):
        assert tokenizer.encode(text, True) == own.encode(text)
        assert tokenizer.encode(text, False) == own.encode(text, add_special_tokens=False)

"""Small real tokenizers of every kind, trained here on a few lines, and the one that mistral-common ships."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

TEXTS = [
    "The quick brown fox jumps over the lazy dog, isn't it? Don't say \"no\"!",
    "   def f(x):\n\treturn x ** 2  # naïve\n\n\nprint(f(3))   ",
    "日本語のテキストと中文字符，한국어도 있다。",
    "emoji 😀😀👩‍👩‍👧‍👦 and e\u0301 combining n\u0303 marks 🇩🇪 \u200d end",
    "mixed: Ünïcödé — “quotes” … ½ ∑ 𝔘𝔫𝔦",
]
BOS, EOS, PAD, USER, ASSISTANT = "<s>", "</s>", "<pad>", "<user>", "<assistant>"
SPECIAL = [PAD, BOS, EOS, USER, ASSISTANT]
CHAT = (
    "{{ bos_token }}{% for m in messages %}{{ '<user>' if m.role == 'user' else '<assistant>' }}{{ m.content }}"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def byte_level() -> PreTrainedTokenizerFast:
    """As GPT-2's and Llama 3's: BPE over bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=SPECIAL, initial_alphabet=alphabet)
    return _finished(tokenizer, trainer)


def sentencepiece_bpe() -> PreTrainedTokenizerFast:
    """As Llama 2's and Mistral's: BPE over words that begin with a space, bytes for the characters it lacks."""
    words = Tokenizer(models.BPE())
    words.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    latin = [chr(code) for code in range(32, 127)]
    words.train_from_iterator(
        [text.encode("ascii", "ignore").decode() for text in TEXTS] * 4,
        trainers.BpeTrainer(vocab_size=200, special_tokens=["<unk>", *SPECIAL], initial_alphabet=latin),
    )
    trained = json.loads(words.to_str())["model"]
    # The bytes are ordinary tokens, which trainers cannot be asked for.
    vocabulary = {**trained["vocab"]}
    vocabulary |= {f"<0x{byte:02X}>": len(vocabulary) + byte for byte in range(256)}
    merges = [tuple(merge) for merge in trained["merges"]]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = words.normalizer
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return _finished(tokenizer)


def unigram() -> PreTrainedTokenizerFast:
    """As Gemma's and T5's: sentencepiece Unigram."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return _finished(
        tokenizer,
        trainers.UnigramTrainer(vocab_size=200, special_tokens=[*SPECIAL, "<unk>"], unk_token="<unk>"),
    )


def word_piece(**options: Any) -> PreTrainedTokenizerFast:
    """As BERT's."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=[*SPECIAL, "<unk>"])
    return _finished(tokenizer, trainer, **options)


def word_piece_cleaned_up() -> PreTrainedTokenizerFast:
    """As BERT's was: transformers removes spaces before punctuation."""
    return word_piece(clean_up_tokenization_spaces=True)


def end_of_word_bpe() -> PreTrainedTokenizerFast:
    """As OpenAI GPT's: a word's last token is marked."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=[*SPECIAL, "<unk>"], end_of_word_suffix="</w>"
    )
    return _finished(tokenizer, trainer)


class Tekken:
    """mistral-common's, of bytes; a part of its vocabulary is enough."""

    def __init__(self) -> None:
        from kvtrie.api.tokenizer import open_tokenizer

        self._tekken = open_tokenizer("tekken")
        self.decoder: Any = self._tekken._tekken  # type: ignore[attr-defined]

    def encode(self, text: str) -> list[int]:
        return self._tekken.encode(text, special_tokens=False)

    def decode(self, tokens: list[int]) -> str:
        return str(self.decoder.decode(tokens))

    def __len__(self) -> int:
        return int(self.decoder.n_words)


KINDS: dict[str, Callable[[], Any]] = {
    kind.__name__.lower(): kind
    for kind in (
        byte_level,
        sentencepiece_bpe,
        unigram,
        word_piece,
        word_piece_cleaned_up,
        end_of_word_bpe,
        Tekken,
    )
}


def _finished(tokenizer: Tokenizer, trainer: Any = None, **options: Any) -> PreTrainedTokenizerFast:
    if trainer is not None:
        tokenizer.train_from_iterator(TEXTS * 4, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD, chat_template=CHAT, **options
    )

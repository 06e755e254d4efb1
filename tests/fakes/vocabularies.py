"""Small tokenizers of each family, trained here: byte-level BPE, Unigram, BPE with byte fallback,
WordPiece, single characters, bytes in plain Python; and the same with the normalisers that real
ones have."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import ByT5Tokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

CORPUS = [
    "It is 4. The answer: 2 + 2 = 4, and so on; the answer is the answer.",
    "def add(a, b):\r\n    return a + b\r\n\t# naïve café\n",
    "日本語の文章です。東京は日本の首都です。",
    "مرحبا بالعالم، كيف حالك اليوم؟",
    "👩‍👩‍👧‍👦 🎉🎉 👍🏽 🇯🇵 e\u0301 a\u0308",
] * 4
EOS, BOS, PAD, UNK, RESERVED, TOOL = (
    "<|end|>",
    "<|bos|>",
    "<|pad|>",
    "<unk>",
    "<|reserved_0|>",
    "<tool call>",
)


def with_special_tokens(tokenizer: Tokenizer, *, unk: str | None = None) -> PreTrainedTokenizerFast:
    # RESERVED is special to the decoder but no attribute of the tokenizer; TOOL is added, not
    # special.
    tokenizer.add_special_tokens([AddedToken(RESERVED, special=True)])
    tokenizer.add_tokens([AddedToken(TOOL, normalized=False)])
    names = {"eos_token": EOS, "bos_token": BOS, "pad_token": PAD}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        clean_up_tokenization_spaces=False,
        **names,
        **({"unk_token": unk} if unk else {}),
    )


@cache
def byte_level(normalizer: Any = None) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    if normalizer is not None:
        tokenizer.normalizer = normalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=[EOS, BOS, PAD],
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    return with_special_tokens(tokenizer)


@cache
def unigram(normalizer: Any = None) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.Unigram())
    if normalizer is not None:
        tokenizer.normalizer = normalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=220, special_tokens=[EOS, BOS, PAD, UNK], unk_token=UNK, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return with_special_tokens(tokenizer, unk=UNK)


@cache
def byte_fallback(*, strip: bool, legacy: bool = False) -> PreTrainedTokenizerFast:
    """As Llama 2 (`strip`) and Gemma decode; `legacy` writes the spaces while it normalises."""
    prototype = Tokenizer(models.BPE())
    prototype.pre_tokenizer = pre_tokenizers.Metaspace()
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    specials = [UNK, EOS, BOS, PAD]
    prototype.train_from_iterator(
        CORPUS[:2],
        trainers.BpeTrainer(
            vocab_size=500, special_tokens=specials + byte_tokens, show_progress=False
        ),
    )
    state = json.loads(prototype.to_str())["model"]
    merges = [tuple(merge) for merge in state["merges"]]
    tokenizer = Tokenizer(
        models.BPE(
            vocab=state["vocab"], merges=merges, unk_token=UNK, byte_fallback=True, fuse_unk=True
        )
    )
    tokenizer.add_special_tokens(specials)
    if legacy:
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    steps: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(steps + ([decoders.Strip(" ", 1, 0)] if strip else []))
    return with_special_tokens(tokenizer, unk=UNK)


@cache
def word_piece(normalizer: Any = None) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordPiece(unk_token=UNK))
    if normalizer is not None:
        tokenizer.normalizer = normalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    trainer = trainers.WordPieceTrainer(
        vocab_size=300, special_tokens=[UNK, EOS, BOS, PAD], show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return with_special_tokens(tokenizer, unk=UNK)


@cache
def characters() -> PreTrainedTokenizerFast:
    """A token per character of the corpus; what it does not know it leaves out without a word."""
    alphabet = sorted({char for text in CORPUS for char in text})
    tokenizer = Tokenizer(
        models.BPE(vocab={char: index for index, char in enumerate(alphabet)}, merges=[])
    )
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([EOS, BOS, PAD])
    return with_special_tokens(tokenizer)


@cache
def python_bytes() -> PreTrainedTokenizerBase:
    """A token per byte, in plain Python: it has no offsets, and its decoding drops what is not
    valid text."""
    tokenizer = ByT5Tokenizer(eos_token=EOS, pad_token=PAD, unk_token=UNK, extra_ids=0)
    tokenizer.add_special_tokens({"bos_token": BOS})
    tokenizer.add_tokens([AddedToken(RESERVED, special=True), AddedToken(TOOL, normalized=False)])
    return tokenizer


def _folding() -> Any:
    return normalizers.Sequence(
        [normalizers.NFD(), normalizers.Lowercase(), normalizers.StripAccents()]
    )


def _compatible() -> Any:
    return normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])


KINDS = {
    "byte_level": byte_level,
    "unigram": unigram,
    "llama_2": lambda: byte_fallback(strip=True),
    "gemma": lambda: byte_fallback(strip=False),
    "word_piece": word_piece,
    "characters": characters,
    "python_bytes": python_bytes,
    "byte_level_nfc": lambda: byte_level(normalizers.NFC),  # as Qwen, GPT-NeoX, Command R
    "byte_level_nfd": lambda: byte_level(normalizers.NFD),
    "byte_level_lower": lambda: byte_level(normalizers.Lowercase),
    "unigram_nfkc": lambda: unigram(_compatible),  # as T5
    "unigram_folded": lambda: unigram(_folding),
    "llama_legacy": lambda: byte_fallback(strip=True, legacy=True),
    "bert": lambda: word_piece(normalizers.BertNormalizer),
}
JOIN_WITH_SPACES = ("word_piece", "bert")  # their decoding spells no token's bytes

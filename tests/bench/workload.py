"""What is scored: random models of a real shape, a fixed log-normal mix of lengths in groups that
share a prompt."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

from tokenreward.checkpoints.checkpoint import Checkpoint
from tokenreward.contract import Needs, Row, RowRequest
from tokenreward.forward.probe import choose_layout

_SPREAD = 0.7  # of the logarithm of lengths: the 90th percentile is 2.5 times the median


@dataclass(frozen=True)
class Item:
    prompt: np.ndarray
    response: np.ndarray

    @property
    def ids(self) -> np.ndarray:
        return np.concatenate([self.prompt, self.response])


def config(vocab_size: int, **changes: Any) -> Qwen3Config:
    """Hidden 512, 8 layers, 8 query and 4 key heads."""
    shape = {
        "hidden_size": 512,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "intermediate_size": 1536,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": False,
    }
    return Qwen3Config(vocab_size=vocab_size, **{**shape, **changes})


def language_model(vocab_size: int, **changes: Any) -> Any:
    torch.manual_seed(0)
    return (
        AutoModelForCausalLM.from_config(config(vocab_size, **changes)).eval().requires_grad_(False)
    )


def reward_model(vocab_size: int, **changes: Any) -> Any:
    torch.manual_seed(0)
    chosen = config(vocab_size, num_labels=1, pad_token_id=0, **changes)
    return AutoModelForSequenceClassification.from_config(chosen).eval().requires_grad_(False)


def save(model: Any, folder: Path) -> Path:
    """A checkpoint folder that any server loads. Ids are what is sent, so its tokenizer knows words
    of its own only."""
    model.save_pretrained(folder)
    words = [
        "<pad>",
        "<s>",
        "</s>",
        *(f"w{number}" for number in range(3, model.config.vocab_size)),
    ]
    backend = Tokenizer(
        models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="</s>")
    )
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    fast.save_pretrained(folder)
    return folder


def checkpoint(model: Any, task: str) -> Checkpoint:
    return Checkpoint(model=model, tokenizer=None, task=task)


def layout(model: Any, task: str, needs: Needs, *, public: bool) -> Any:
    """Our engine's layout as the service would choose it; `public`: without the operator that is
    private to torch."""
    chosen = choose_layout(checkpoint(model, task), needs, say=lambda line: None)
    if public:
        chosen.compute_linears_through(None)
    return chosen


def mix(num_groups: int, *, group: int = 8, seed: int = 0, vocab_size: int = 32_000) -> list[Item]:
    """Groups of responses to one prompt: log-normal lengths, medians 350 (prompt) and 250
    (response)."""
    generator = np.random.default_rng(seed)
    items = []
    for _ in range(num_groups):
        prompt = _ids(generator, _length(generator, 350), vocab_size)
        items += [
            Item(prompt, _ids(generator, _length(generator, 250), vocab_size)) for _ in range(group)
        ]
    return items


def alone(lengths: list[int], *, seed: int = 0, vocab_size: int = 32_000) -> list[Item]:
    """Items that share nothing: a quarter of each is its prompt."""
    generator = np.random.default_rng(seed)
    return [
        Item(
            _ids(generator, length // 4, vocab_size),
            _ids(generator, length - length // 4, vocab_size),
        )
        for length in lengths
    ]


def log_normal(count: int, *, median: int = 267, seed: int = 0) -> list[int]:
    """The distribution's quantiles, shuffled: with few sequences, drawn ones would be a matter of
    the seed."""
    standard = NormalDist()
    ranks = np.random.default_rng(seed).permutation(count)
    return [
        _clipped(np.exp(_SPREAD * standard.inv_cdf((rank + 0.5) / count)), median) for rank in ranks
    ]


def rows(items: list[Item], needs: Needs) -> list[RowRequest]:
    return [RowRequest(Row(item.ids, len(item.prompt), len(item.ids)), needs) for item in items]


def budgeted(
    work: list[RowRequest], *, max_tokens: int = 4096, share: bool = True
) -> list[list[RowRequest]]:
    """Batches as the service makes them: prompts together, up to a budget of computed tokens."""
    batches: list[list[RowRequest]] = []
    used, seen = 0, set()
    for row, needs in work:
        key = row.ids[: row.start].tobytes()
        cost = len(row.ids) - (row.start if share and key in seen else 0)
        if not batches or used + cost > max_tokens:
            batches.append([])
            used, seen, cost = 0, set(), len(row.ids)
        batches[-1].append(RowRequest(row, needs))
        used += cost
        seen.add(key)
    return batches


def describe(items: list[Item]) -> str:
    """One line on a workload."""
    prompts = {item.prompt.tobytes(): len(item.prompt) for item in items}
    naive = sum(len(item.ids) for item in items)
    unique = sum(prompts.values()) + sum(len(item.response) for item in items)
    lengths = sorted(len(item.ids) for item in items)
    return (
        f"{len(items)} items, {len(prompts)} prompts, tokens {naive} naive / {unique} computed, "
        f"length median {lengths[len(lengths) // 2]}, longest {lengths[-1]}"
    )


def _length(generator: np.random.Generator, median: int) -> int:
    return _clipped(generator.lognormal(0.0, _SPREAD), median)


def _clipped(factor: float, median: int) -> int:
    return int(np.clip(factor * median, 8, 4 * median))


def _ids(generator: np.random.Generator, size: int, vocab_size: int) -> np.ndarray:
    return generator.integers(3, vocab_size, size=size)

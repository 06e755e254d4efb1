"""What people write on transformers: padded batches, all logits, all attention maps. Eager, or SDPA
by length."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

BATCH_SIZE = 8


def padded(sequences: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Right-padded ids and attention mask [b, longest]."""
    longest = max(map(len, sequences))
    ids = torch.zeros(len(sequences), longest, dtype=torch.long)
    mask = torch.zeros(len(sequences), longest, dtype=torch.long)
    for i, sequence in enumerate(sequences):
        ids[i, : len(sequence)] = torch.from_numpy(sequence)
        mask[i, : len(sequence)] = 1
    return ids, mask


def batches(items: Sequence[Any], *, by_length: bool) -> list[list[int]]:
    """Indices in batches of 8, in order of arrival or of length."""
    order = (
        sorted(range(len(items)), key=lambda i: len(items[i].ids))
        if by_length
        else list(range(len(items)))
    )
    return [order[top : top + BATCH_SIZE] for top in range(0, len(order), BATCH_SIZE)]


@torch.inference_mode()
def endogenous(
    model: Any, items: Sequence[Any], *, by_length: bool
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Q and V of each response token, in the order of the items, from whole logits in float32."""
    found: list[tuple[np.ndarray, np.ndarray]] = [(np.empty(0), np.empty(0))] * len(items)
    for members in batches(items, by_length=by_length):
        ids, mask = padded([items[i].ids for i in members])
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits.float()
        values = torch.logsumexp(logits, dim=-1)
        for place, i in enumerate(members):
            start, stop = len(items[i].prompt), len(items[i].ids)
            q = logits[place, start - 1 : stop - 1].gather(1, ids[place, start:stop, None])[:, 0]
            found[i] = q.numpy(), values[place, start - 1 : stop].numpy()
    return found


@torch.inference_mode()
def attention_dense(model: Any, items: Sequence[Any]) -> list[tuple[float, np.ndarray]]:
    """Score and last attention row over the response, from `output_attentions`, as ABC's own code
    does."""
    found: list[tuple[float, np.ndarray]] = []
    for members in batches(items, by_length=False):
        ids, mask = padded([items[i].ids for i in members])
        output = model(input_ids=ids, attention_mask=mask, use_cache=False, output_attentions=True)
        attention = output.attentions[-1].mean(dim=1)
        for place, i in enumerate(members):
            start, stop = len(items[i].prompt), len(items[i].ids)
            row = attention[place, stop - 1, start:stop]
            found.append((float(output.logits[place, 0]), (row / row.sum()).numpy()))
    return found


@torch.inference_mode()
def trunk(model: Any, items: Sequence[Any], *, by_length: bool) -> int:
    """Hidden states alone; the number of positions computed, padding included."""
    computed = 0
    for members in batches(items, by_length=by_length):
        ids, mask = padded([items[i].ids for i in members])
        model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)
        computed += ids.numel()
    return computed


class Scoring:
    """What a server that is built on transformers computes: a padded batch through the model, SDPA,
    all logits.

    Of a language model the soft-Bellman reward of each response token; of a reward model the score.
    """

    def __init__(self, folder: Path, task: Literal["causal_lm", "reward_model"]) -> None:
        torch.set_num_threads(1)
        auto = AutoModelForCausalLM if task == "causal_lm" else AutoModelForSequenceClassification
        self._model = auto.from_pretrained(folder, attn_implementation="sdpa").eval()
        self._per_token = task == "causal_lm"

    @torch.inference_mode()
    def rewards(
        self, sequences: Sequence[Sequence[int]], starts: Sequence[int]
    ) -> list[list[float]]:
        """Of each sequence, whose response begins at its start: one number per response token, or
        the one score."""
        ids, mask = padded([np.asarray(sequence) for sequence in sequences])
        logits = self._model(input_ids=ids, attention_mask=mask, use_cache=False).logits.float()
        if not self._per_token:
            return [[float(score)] for score in logits[:, 0]]
        values = torch.logsumexp(logits, dim=-1)
        found = []
        for place, (sequence, start) in enumerate(zip(sequences, starts, strict=True)):
            stop = len(sequence)
            q = logits[place, start - 1 : stop - 1].gather(1, ids[place, start:stop, None])[:, 0]
            found.append((q - values[place, start:stop]).tolist())
        return found

"""What people write on transformers: padded batches, all logits, all attention maps; on any device.

The model is one that our layout has switched to its own attention; it is switched back after each
call.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.rivals.huggingface import padded


@contextmanager
def under(model: Any, implementation: str) -> Iterator[None]:
    """Within it, the model attends by one of transformers' own ways."""
    before = model.config._attn_implementation
    model.set_attn_implementation(implementation)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def batch(model: Any, sequences: Sequence[np.ndarray]) -> dict[str, Any]:
    ids, mask = (tensor.to(model.device) for tensor in padded(sequences))
    return {"input_ids": ids, "attention_mask": mask, "use_cache": False}


@torch.inference_mode()
def by_log_softmax(
    model: Any, sequences: Sequence[np.ndarray], size: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Q of each token but the first, and V at every token, of each sequence; eager, from float32
    log-probabilities."""
    found = []
    with under(model, "eager"):
        for top in range(0, len(sequences), size):
            given = batch(model, sequences[top : top + size])
            logits = model(**given).logits.float()
            normalisers = logits[..., 0] - logits.log_softmax(dim=-1)[..., 0]
            found += _split(logits, normalisers, given["input_ids"], sequences[top : top + size])
    return found


@torch.inference_mode()
def by_sdpa(
    model: Any, sequences: Sequence[np.ndarray], size: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The same through SDPA, from logsumexps of all logits."""
    found = []
    with under(model, "sdpa"):
        for top in range(0, len(sequences), size):
            given = batch(model, sequences[top : top + size])
            logits = model(**given).logits.float()
            found += _split(
                logits, logits.logsumexp(dim=-1), given["input_ids"], sequences[top : top + size]
            )
    return found


def _split(
    logits: Tensor, normalisers: Tensor, ids: Tensor, sequences: Sequence[np.ndarray]
) -> list[tuple[np.ndarray, np.ndarray]]:
    chosen = logits[:, :-1].gather(2, ids[:, 1:, None])[..., 0].cpu().numpy()
    values = normalisers.cpu().numpy()
    return [(chosen[i, : len(of) - 1], values[i, : len(of)]) for i, of in enumerate(sequences)]


@torch.inference_mode()
def with_attentions(model: Any, sequences: Sequence[np.ndarray]) -> list[tuple[float, np.ndarray]]:
    """A reward model's score and the last token's attention, from `output_attentions`; one at a
    time, as the maps of all layers are kept."""
    found = []
    with under(model, "eager"):
        for sequence in sequences:
            output = model(**batch(model, [sequence]), output_attentions=True)
            row = output.attentions[-1][0, :, -1].float().mean(dim=0)
            found.append((float(output.logits[0, 0]), row.cpu().numpy()))
    return found


@torch.inference_mode()
def scores(model: Any, sequences: Sequence[np.ndarray], size: int) -> tuple[list[float], int]:
    """A reward model's score of each sequence, through SDPA in padded batches; and how many tokens
    that computed."""
    found, num_computed = [], 0
    with under(model, "sdpa"):
        for top in range(0, len(sequences), size):
            given = batch(model, sequences[top : top + size])
            found += model(**given).logits[:, 0].float().tolist()
            num_computed += given["input_ids"].numel()
    return found, num_computed

"""The plain layout: one `model(...)` call per row, as transformers runs it. Fall-back and oracle of
the packed one.

A row at a time has no padding, so nothing depends on a neighbour: not positions, not the
frequencies that dynamic rotary embeddings choose by the longest sequence of a call. Slow, and right
for any decoder. It knows no packing.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokenreward.checkpoints.checkpoint import Checkpoint
from tokenreward.checkpoints.refusal import CheckpointRefused
from tokenreward.contract import Needs, Outputs, Reading, Row, RowRequest
from tokenreward.forward.layout import Finished, Pending

_CHUNK_ROWS = 256


class PlainLayout:
    """Runs rows of one checkpoint one by one, under the attention that the checkpoint was loaded
    with."""

    name = "plain"
    shares = False
    runs_ahead = False

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._model: Any = checkpoint.model
        self._implementation = self._model.config._attn_implementation
        self._keeps_rows = "logits_to_keep" in inspect.signature(self._model.forward).parameters

    def num_computed(self, rows: Sequence[Row]) -> int:
        """Tokens that running these rows computes: no padding."""
        return sum(len(row.ids) for row in rows)

    def launch(self, requests: Sequence[RowRequest]) -> Pending:
        """Runs the rows one after the other: the pass has ended when this returns.

        The numbers of each row are on the host before the next row is read.
        """
        return Finished([self._one(row, needs) for row, needs in requests])

    def run(self, requests: Sequence[RowRequest]) -> list[Outputs]:
        """Outputs of each row, in order."""
        return self.launch(requests).result()

    @torch.inference_mode()
    def _one(self, row: Row, needs: Needs) -> Outputs:
        self._forget_lengths()
        ids = torch.from_numpy(row.ids).to(self._checkpoint.device)[None]
        logits = self._logits(ids, row, needs) if needs.reads_logits else {}
        values = self._values(ids, row) if needs.values or needs.pooled else {}
        return Outputs(
            **logits,
            **values,
            attention=self._attention(ids, row, needs) if needs.attention else {},
        )

    def _logits(self, ids: Tensor, row: Row, needs: Needs) -> dict[str, Any]:
        num_wanted = len(row.ids) - row.start + 1
        keep = {"logits_to_keep": num_wanted} if self._keeps_rows else {}
        logits = self._model(input_ids=ids, use_cache=False, **keep).logits[0][-num_wanted:]
        logits = logits[: row.stop - row.start + 1]
        targets = ids[0, row.start : row.stop]
        return {
            "chosen": logits[:-1].gather(1, targets[:, None])[:, 0].float().cpu().numpy(),
            "lse": {t: _chunked(_logsumexp, logits, t) for t in needs.temperatures},
            "entropy": {t: _chunked(_entropy, logits, t) for t in needs.entropies},
            "logits": {label: logits[:, label].float().cpu().numpy() for label in needs.labels},
        }

    def _values(self, ids: Tensor, row: Row) -> dict[str, Any]:
        hidden = self._checkpoint.trunk(input_ids=ids, use_cache=False).last_hidden_state[0]
        values = self._checkpoint.value_head.values(hidden).cpu().numpy()
        return {"values": values[row.start - 1 : row.stop], "pooled": float(values[-1])}

    def _attention(self, ids: Tensor, row: Row, needs: Needs) -> dict[Reading, np.ndarray]:
        """Of the last layer's map as transformers gives it, which only its eager attention does.

        Raises CheckpointRefused if the model has none: state-space layers.
        """
        self._model.set_attn_implementation("eager")
        try:
            output = self._checkpoint.trunk(input_ids=ids, use_cache=False, output_attentions=True)
        finally:
            self._model.set_attn_implementation(self._implementation)
        maps = getattr(output, "attentions", None)
        if not maps or maps[-1] is None:
            raise CheckpointRefused(
                f"{type(self._model).__name__} gives no attention weights, and a scorer of this "
                "deployment reads them"
            )
        weights = maps[-1][0].float().mean(dim=0).cpu().numpy()
        return {reading: _read(weights, row, reading) for reading in needs.attention}

    def _forget_lengths(self) -> None:
        """Dynamic rotary embeddings remember the longest sequence so far; a reward must not depend
        on history."""
        for module in self._model.modules():
            original = getattr(module, "original_max_seq_len", None)
            for name in [name for name in vars(module) if name.endswith("max_seq_len_cached")]:
                prefix = name.removesuffix(
                    "max_seq_len_cached"
                )  # a layer type, in models that have several
                if original is not None and getattr(module, name) != original:
                    setattr(module, name, original)
                    frequencies = getattr(module, f"{prefix}original_inv_freq").to(
                        self._checkpoint.device
                    )
                    setattr(module, f"{prefix}inv_freq", frequencies)


def _chunked(of: Callable[[Tensor], Tensor], logits: Tensor, temperature: float) -> np.ndarray:
    """A function of logits / T [rows, vocabulary] that gives one number a row, in float32 and a few
    rows at a time."""
    chunks = [of(chunk.float() / temperature) for chunk in torch.split(logits, _CHUNK_ROWS)]
    found: np.ndarray = torch.cat(chunks).cpu().numpy()
    return found


def _logsumexp(logits: Tensor) -> Tensor:
    normaliser: Tensor = torch.logsumexp(logits, dim=-1)
    return normaliser


def _entropy(logits: Tensor) -> Tensor:
    entropy: Tensor = torch.special.entr(logits.softmax(dim=-1)).sum(dim=-1)
    return entropy


def _read(weights: np.ndarray, row: Row, reading: Reading) -> np.ndarray:
    """One reading of a whole map [n, n] (see `contract.Outputs`)."""
    if reading != "mean_step":
        one: np.ndarray = weights[-1 if reading == "last" else row.stop - 2]
        return one
    # Who pays a token anything sees all from there on, and so do the tokens in between: a zero
    # there is rounding.
    seen = np.logical_or.accumulate(weights[row.start :] > 0, axis=1)
    seen = np.tril(np.logical_or.accumulate(seen[::-1], axis=0)[::-1][:, row.start : row.stop])
    num_seen = np.maximum(seen[: row.stop - row.start - 1].sum(axis=0), 1)
    steps = weights[row.start : row.stop - 1, row.start : row.stop].astype(np.float64)
    return np.asarray(steps.sum(axis=0) / num_seen, dtype=np.float32)

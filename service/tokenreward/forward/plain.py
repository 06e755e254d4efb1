"""The plain layout: one call of the model per row, as transformers runs it. It serves where rows
cannot be packed, and it is the truth that the packed layout is compared with.

A row at a time has no padding, so no number depends on a neighbour: not by its positions, and not
by the frequencies that dynamic rotary embeddings choose by the longest sequence of a call. It is
slow, and right for any decoder. It knows no packing.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokenreward.checkpoints.checkpoint import Checkpoint
from tokenreward.checkpoints.refusal import CheckpointRefused
from tokenreward.checkpoints.value_head import ValueHead
from tokenreward.contract import Needs, Outputs, Reading, Row, RowRequest
from tokenreward.forward.layout import Gap
from tokenreward.forward.transfer import Pending

_CHUNK_ROWS = 256


class PlainLayout:
    """Runs rows of one checkpoint one by one, under the attention that it was loaded with."""

    name = "plain"
    shares = False
    runs_ahead = False

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.gap: Gap | None = None
        self.reason: str | None = None
        self._checkpoint = checkpoint
        self._model: Any = checkpoint.model
        self._value_head: ValueHead | None = None
        if checkpoint.task == "reward_model":
            self._value_head = checkpoint.value_head
        self._implementation = self._model.config._attn_implementation
        self._keeps_rows = "logits_to_keep" in inspect.signature(self._model.forward).parameters

    def num_computed(self, rows: Sequence[Row]) -> int:
        """Tokens that running these rows computes: each row's own, and no padding."""
        return sum(len(row.ids) for row in rows)

    def launch(self, requests: Sequence[RowRequest]) -> Pending[list[Outputs]]:
        """Runs the rows one after the other: the pass has ended when this returns.

        The numbers of each row are on the host before the next row is read.
        """
        outputs = [self._read(row, needs) for row, needs in requests]
        return Pending(lambda: outputs)

    def run(self, requests: Sequence[RowRequest]) -> list[Outputs]:
        """Outputs of each row, in order."""
        return self.launch(requests).result()

    @torch.inference_mode()
    def _read(self, row: Row, needs: Needs) -> Outputs:
        """The outputs of one row: a call of the model for each kind of number that is wanted."""
        self._forget_lengths()
        ids = torch.from_numpy(row.ids).to(self._checkpoint.device)[None]
        fields: dict[str, Any] = {}
        if needs.reads_logits:
            fields |= self._logits(ids, row, needs)
        if needs.values or needs.pooled:
            assert self._value_head is not None
            hidden = self._checkpoint.trunk(input_ids=ids, use_cache=False).last_hidden_state[0]
            values = self._value_head.values(hidden).cpu().numpy()
            fields |= {"values": values[row.start - 1 : row.stop], "pooled": float(values[-1])}
        if needs.attention:
            fields["attention"] = self._attention(ids, row, needs)
        return Outputs(**fields)

    def _logits(self, ids: Tensor, row: Row, needs: Needs) -> dict[str, Any]:
        """Numbers of the model's own logits: its call alone knows how it scales or caps them."""
        num_wanted = len(row.ids) - row.start + 1
        keep = {"logits_to_keep": num_wanted} if self._keeps_rows else {}
        logits = self._model(input_ids=ids, use_cache=False, **keep).logits[0][-num_wanted:]
        logits = logits[: row.stop - row.start + 1]
        targets = ids[0, row.start : row.stop, None]
        return {
            "chosen": logits[:-1].gather(1, targets)[:, 0].float().cpu().numpy(),
            "lse": {
                t: _in_chunks(partial(torch.logsumexp, dim=-1), logits, t)
                for t in needs.temperatures
            },
            "entropy": {t: _in_chunks(_entropy, logits, t) for t in needs.entropies},
            "logits": {label: logits[:, label].float().cpu().numpy() for label in needs.labels},
        }

    def _attention(self, ids: Tensor, row: Row, needs: Needs) -> dict[Reading, np.ndarray]:
        """Readings of the last layer's map [n, n], which only transformers' eager attention gives.

        Raises:
            CheckpointRefused: The model has no such map, as state-space layers have none.
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
        return {reading: read_map(weights, row, reading) for reading in needs.attention}

    def _forget_lengths(self) -> None:
        """Sets rotary embeddings back to their own frequencies.

        Dynamic ones keep the frequencies of the longest sequence so far, and a reward must not
        depend on what was read before.
        """
        for module in self._model.modules():
            original = getattr(module, "original_max_seq_len", None)
            for name in [name for name in vars(module) if name.endswith("max_seq_len_cached")]:
                # The prefix is a layer type, in models that have several; else it is empty.
                prefix = name.removesuffix("max_seq_len_cached")
                if original is not None and getattr(module, name) != original:
                    setattr(module, name, original)
                    frequencies = getattr(module, f"{prefix}original_inv_freq")
                    setattr(module, f"{prefix}inv_freq", frequencies.to(self._checkpoint.device))


def rope_parameters(config: Any) -> list[dict[str, Any]]:
    """What a configuration says of rotary positions: once, or for each type of layer."""
    parameters = getattr(config, "rope_parameters", None) or {}
    of_layer_types = [value for value in parameters.values() if isinstance(value, dict)]
    return of_layer_types or [parameters]


def rope_switch(config: Any) -> int | None:
    """Longest row that is read with the short factors of rotary positions of type `longrope`.

    A call with a longer row takes the long factors, for all of its rows. None if the rotary
    frequencies of a configuration do not switch.
    """
    for parameters in rope_parameters(config):
        if parameters.get("rope_type") == "longrope":
            return int(parameters["original_max_position_embeddings"])
    return None


def _in_chunks(of: Callable[[Tensor], Tensor], logits: Tensor, temperature: float) -> np.ndarray:
    """A function of logits / T [n, vocabulary] that gives one number a row, a few rows at a time.

    It is computed in float32.
    """
    chunks = [of(chunk.float() / temperature) for chunk in torch.split(logits, _CHUNK_ROWS)]
    return np.asarray(torch.cat(chunks).cpu().numpy())


def _entropy(logits: Tensor) -> Tensor:
    entropy: Tensor = torch.special.entr(logits.softmax(dim=-1)).sum(dim=-1)
    return entropy


def read_map(weights: np.ndarray, row: Row, reading: Reading) -> np.ndarray:
    """One reading of a whole map of attention weights [n, n] (see `contract.Outputs`)."""
    if reading == "last":
        return np.asarray(weights[-1])
    if reading == "last_step":
        return np.asarray(weights[row.stop - 2])
    # A mean over the queries that can see a token. A map says who cannot by zeros, but a zero may
    # also be rounding: a query that attends to a token sees all tokens from there up to itself, and
    # so do all earlier queries from that token on.
    sees = np.logical_or.accumulate(weights[row.start :] > 0, axis=1)
    sees = np.tril(np.logical_or.accumulate(sees[::-1], axis=0)[::-1][:, row.start : row.stop])
    num_queries = np.maximum(sees[: row.stop - row.start - 1].sum(axis=0), 1)
    steps = weights[row.start : row.stop - 1, row.start : row.stop].astype(np.float64)
    return np.asarray(steps.sum(axis=0) / num_queries, dtype=np.float32)

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
from tokenreward.checkpoints.heads.value_head import ValueHead
from tokenreward.checkpoints.refusal import CheckpointRefused
from tokenreward.contract import Needs, Outputs, Reading, Row, RowRequest
from tokenreward.forward.language_head import best, ranks_of
from tokenreward.forward.layout import Gap, Measure
from tokenreward.forward.transfer import Pending

_CHUNK_ROWS = 256
_RANKED_ROWS = 64  # of keys, which take twice the bytes


class PlainLayout:
    """Runs rows of one checkpoint one by one, under the attention that it was loaded with."""

    name = "plain"
    shares = False
    runs_ahead = False

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.gap: Gap | None = None
        self.measure: Measure | None = None
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
        ids = torch.from_numpy(row.ids).to(self._checkpoint.placement.first)[None]
        fields: dict[str, Any] = {}
        if needs.reads_logits:
            fields |= self._logits(ids, row, needs)
        if needs.values or needs.pooled:
            head = self._value_head
            assert head is not None
            hidden = self._checkpoint.trunk(input_ids=ids, use_cache=False).last_hidden_state[0]
            weights = None
            if head.gate is not None:
                place = head.gate.place(row)
                weights = head.gate.weights(hidden[place : place + 1]).expand(len(hidden), -1)
            values = head.values(hidden, weights).cpu().numpy()
            fields |= {"values": values[row.start - 1 : row.stop], "pooled": float(values[-1])}
            if head.label_names:
                labels = head.logits(hidden[-1:])[0].tolist()
                fields["scores"] = dict(zip(head.label_names, labels, strict=True))
        if needs.attention:
            fields["attention"] = self._attention(row, needs)
        return Outputs(**fields)

    def _logits(self, ids: Tensor, row: Row, needs: Needs) -> dict[str, Any]:
        """Numbers of the model's own logits: its call alone knows how it scales or caps them."""
        num_wanted = len(row.ids) - row.start + 1
        keep = {"logits_to_keep": num_wanted} if self._keeps_rows else {}
        logits = self._model(input_ids=ids, use_cache=False, **keep).logits[0][-num_wanted:]
        logits = logits[: row.stop - row.start + 1]
        # The head may be on another device than the ids.
        targets = ids[0, row.start : row.stop, None].to(logits.device)
        return {
            "chosen": logits[:-1].gather(1, targets)[:, 0].float().cpu().numpy(),
            "lse": {
                t: _in_chunks(partial(torch.logsumexp, dim=-1), logits, t)
                for t in needs.temperatures
            },
            "entropy": {t: _in_chunks(_entropy, logits, t) for t in needs.entropies},
            "logits": {label: logits[:, label].float().cpu().numpy() for label in needs.labels},
            **_ranked(logits[:-1], targets[:, 0], needs.top_k),
        }

    @torch.inference_mode()
    def attention_map(self, row: Row) -> tuple[Tensor, Tensor]:
        """The last map of attention weights, which only transformers' eager attention gives.

        Of a model whose last layers have no attention, it is that of the last layer that has.

        Returns:
            The map [heads, n, n], in float32, and the trunk's last hidden states [n, h], both of
            one call.

        Raises:
            CheckpointRefused: The model gives no such map. State-space layers, for one, have none,
                and those of linear attention are of another shape.
        """
        config = self._model.config
        ids = torch.from_numpy(row.ids).to(self._checkpoint.placement.first)
        # Not through `set_attn_implementation`, which does nothing for models outside of
        # transformers' attention interface. They, too, look at their configuration in each call.
        config._attn_implementation = "eager"
        try:
            output = self._checkpoint.trunk(
                input_ids=ids[None], use_cache=False, output_attentions=True
            )
        finally:
            config._attn_implementation = self._implementation
        maps = getattr(output, "attentions", None)
        name, num_tokens = type(self._model).__name__, len(row.ids)
        if not maps or maps[-1] is None:
            raise CheckpointRefused(
                f"{name} gives no attention weights, and a scorer of this deployment reads them"
            )
        if maps[-1].dim() != 4 or maps[-1].shape[-2:] != (num_tokens, num_tokens):
            raise CheckpointRefused(
                f"the last layer of {name} gives no map of attention weights from token to token, "
                "and a scorer of this deployment reads it"
            )
        return maps[-1][0].float(), output.last_hidden_state[0]

    def _attention(self, row: Row, needs: Needs) -> dict[Reading, np.ndarray]:
        """Readings of the last map of attention weights. Raises CheckpointRefused."""
        weights = self.attention_map(row)[0]
        drops_keys = has_dropped_keys(weights)
        mean = weights.mean(dim=0).cpu().numpy()
        return {
            reading: read_map(mean, row, reading, drops_keys=drops_keys)
            for reading in needs.attention
        }

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
                    device = getattr(module, f"{prefix}inv_freq").device
                    setattr(module, f"{prefix}inv_freq", frequencies.to(device))


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


def _ranked(logits: Tensor, targets: Tensor, k: int | None) -> dict[str, np.ndarray]:
    """The k largest of logits [n, vocabulary], their tokens, and the ranks of the targets [n]: as
    the fields of `Outputs`; none if k is None."""
    if k is None:
        return {}
    parts = zip(torch.split(logits, _RANKED_ROWS), torch.split(targets, _RANKED_ROWS), strict=True)
    chunks = []
    for part, tokens in parts:
        whole = part.float()
        chunks.append((*best(whole, k), ranks_of(whole, tokens)))
    columns = [torch.cat(column).cpu().numpy() for column in zip(*chunks, strict=True)]
    return dict(zip(("top_logits", "top_ids", "ranks"), columns, strict=True))


def _entropy(logits: Tensor) -> Tensor:
    entropy: Tensor = torch.special.entr(logits.softmax(dim=-1)).sum(dim=-1)
    return entropy


def read_map(
    weights: np.ndarray, row: Row, reading: Reading, *, drops_keys: bool = False
) -> np.ndarray:
    """One reading of a whole map of attention weights [n, n] (see `contract.Outputs`).

    Args:
        weights: The map.
        row: The row that it is of.
        reading: The reading.
        drops_keys: Whether a weight of 0 is a key that the model has dropped, by a top-k say.
    """
    if reading == "last":
        return np.asarray(weights[-1])
    if reading == "last_step":
        return np.asarray(weights[row.stop - 2])
    # A mean over the queries that pay a token any attention. A map says who pays none by zeros, but
    # a zero may also be rounding. Without a top-k, a query that attends to a token sees all tokens
    # from there up to itself, and so do all earlier queries from that token on.
    sees = weights[row.start :] > 0
    if not drops_keys:
        sees = np.logical_or.accumulate(sees, axis=1)
        sees = np.logical_or.accumulate(sees[::-1], axis=0)[::-1]
    sees = np.tril(sees[:, row.start : row.stop])
    num_queries = np.maximum(sees[: row.stop - row.start - 1].sum(axis=0), 1)
    steps = weights[row.start : row.stop - 1, row.start : row.stop].astype(np.float64)
    return np.asarray(steps.sum(axis=0) / num_queries, dtype=np.float32)


def has_dropped_keys(weights: Tensor) -> bool:
    """Whether a map [heads, n, n] is of a model that drops keys before its softmax.

    A top-k leaves k of a query's keys, in places of its choice: in the map of a head, most queries
    that see more than k tokens pay attention to k of them, the most that any does, and not all of
    these follow one another. A window leaves k that do, and rounding to 0 leaves any number.
    """
    pays = weights > 0
    counts = pays.sum(dim=-1)
    most = counts.amax(dim=-1, keepdim=True)
    num_tokens = torch.arange(1, weights.shape[-1] + 1, device=weights.device)
    first = pays.int().argmax(dim=-1)
    # One key is left where attention is so sharp that all others round to 0.
    is_scattered = (num_tokens - first > counts) & (counts == most) & (most > 1)
    sees_more = (num_tokens > most).expand_as(is_scattered)
    return 2 * int((is_scattered & sees_more).sum()) > int(sees_more.sum())

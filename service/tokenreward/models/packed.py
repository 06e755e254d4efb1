"""The fast layout: all rows of a batch in one [1, n] sequence, each shared prompt once, one trunk pass, heads on the
wanted tokens only.

Raises what the model raises; it does not split batches (the engine does) and knows no scorers.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokenreward.contract import Needs, Outputs, Row
from tokenreward.models.attention import IMPLEMENTATION, CannotPack, PackedRow, packed
from tokenreward.models.checkpoint import Checkpoint
from tokenreward.models.head import LanguageHead
from tokenreward.models.kernels import choose_kernel
from tokenreward.models.last_layer import LastLayer
from tokenreward.models.linear import Linear, plain, swap
from tokenreward.models.packing import Packing, num_packed, pack

Work = Sequence[tuple[Row, Needs]]


@dataclass(frozen=True, slots=True, eq=False)
class Hidden:
    """The trunk's last hidden states [m, h] and the places [m], ascending, of the packed sequence that they are of."""

    states: Tensor
    places: np.ndarray

    def at(self, places: np.ndarray) -> np.ndarray:
        """Where the states of these places are."""
        return np.searchsorted(self.places, places)


def _wanted(work: Work, packing: Packing) -> np.ndarray:
    """Places whose hidden states some head reads; the end of each row always."""
    parts = [places[-1:] for places in packing.places]
    for (row, needs), places in zip(work, packing.places, strict=True):
        if needs.values or needs.temperatures:
            parts.append(places[row.start - 1 : row.stop])
    return np.unique(np.concatenate(parts))


class PackedLayout:
    """Runs rows of one checkpoint packed. Switches the model to the segments attention for good."""

    name = "packed"
    linear: Linear | None = None  # what float32 linears go through, if not torch's own

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._head = LanguageHead.of(checkpoint) if checkpoint.task == "causal_lm" else None
        checkpoint.model.set_attn_implementation(IMPLEMENTATION)
        self._num_layers = int(checkpoint.text_config.num_hidden_layers)
        self._kernel, self._share = choose_kernel(checkpoint.device, checkpoint.model.dtype)
        self._last_layer: LastLayer | None = None

    def prune_last_layer(self, yes: bool) -> bool:
        """Whether the last layer computes the wanted tokens only; False if the model has no such layer."""
        self._last_layer = LastLayer.of(self._checkpoint.trunk) if yes else None
        return self._last_layer is not None

    def compute_linears_through(self, linear: Linear | None) -> None:
        """Float32 linear layers and the language head through another operator; None gives them back torch's own."""
        self.linear = linear
        swap(self._checkpoint.model, linear)
        if self._head is not None:
            self._head = replace(self._head, linear=plain if linear is None else linear)

    def num_computed(self, rows: Sequence[Row]) -> int:
        """Tokens that a pass over these rows computes: no padding, and a shared prompt once."""
        return num_packed(rows, share=self._share)

    @torch.inference_mode()
    def run(self, work: Work) -> list[Outputs]:
        """Outputs of each row, in order. Raises CannotPack if the attention was not asked in every layer."""
        packing = pack([row for row, _ in work], share=self._share)
        wanted = {index: (row, needs.attention) for index, (row, needs) in enumerate(work) if needs.attention}
        context = PackedRow(packing, self._kernel, self._num_layers, wanted)
        hidden = self._trunk(context, work)
        values = self._values(hidden, work, packing)
        logits = self._logits(hidden, work, packing)
        return [
            Outputs(
                **logits[i],
                **values[i],
                attention={name: weights.cpu().numpy() for name, weights in context.found.get(i, {}).items()},
            )
            for i in range(len(work))
        ]

    def _trunk(self, context: PackedRow, work: Work) -> Hidden:
        ids, positions = (self._on_device(of)[None] for of in (context.packing.ids, context.packing.positions))
        at = np.arange(len(context.packing.ids))
        with ExitStack() as stack:
            stack.enter_context(packed(context))
            if self._last_layer is not None:
                at = _wanted(work, context.packing)
                context.ends_only = not any(needs.values or needs.temperatures for _, needs in work)
                stack.enter_context(self._last_layer.on(self._on_device(at)))
            output = self._checkpoint.trunk(input_ids=ids, position_ids=positions, use_cache=False)
        if context.num_calls != context.num_layers:
            raise CannotPack(f"{context.num_calls} of {context.num_layers} layers went through the attention interface")
        return Hidden(output.last_hidden_state[0], at)

    def _values(self, hidden: Hidden, work: Work, packing: Packing) -> list[dict[str, Any]]:
        if not any(needs.values or needs.pooled for _, needs in work):
            return [{}] * len(work)
        values = self._checkpoint.value_head.values(hidden.states).cpu().numpy()
        found: list[dict[str, Any]] = []
        for (row, needs), places in zip(work, packing.places, strict=True):
            inside = values[hidden.at(places[row.start - 1 : row.stop])] if needs.values else None
            found.append({"values": inside, "pooled": float(values[hidden.at(places[-1:])][0])})
        return found

    def _logits(self, hidden: Hidden, work: Work, packing: Packing) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = [{} for _ in work]
        if self._head is None:
            return found
        # Rows of a kind together: a request's odd temperature must not be computed for everybody.
        kinds: dict[tuple[frozenset[float], frozenset[float]], list[int]] = {}
        for i, (_, needs) in enumerate(work):
            if needs.temperatures:
                kinds.setdefault((needs.temperatures, needs.entropies), []).append(i)
        for (temperatures, entropies), members in kinds.items():
            rows = [(work[i][0], packing.places[i]) for i in members]
            for i, outputs in zip(
                members, self._head_outputs(hidden, rows, sorted(temperatures), sorted(entropies)), strict=True
            ):
                found[i] = outputs
        return found

    def _head_outputs(
        self,
        hidden: Hidden,
        rows: list[tuple[Row, np.ndarray]],
        temperatures: list[float],
        entropies: list[float],
    ) -> list[dict[str, Any]]:
        """Of rows, with their tokens' places, that want the same temperatures and entropies."""
        assert self._head is not None
        # Position t predicts token t + 1; the position after the last token is wanted, too (its V), without a target.
        # The last token of a shared prompt predicts many first tokens and meets the vocabulary once.
        at = [places[row.start - 1 : row.stop] for row, places in rows]
        places, inverse = np.unique(np.concatenate(at), return_inverse=True)
        states, of_row = hidden.states[self._on_device(hidden.at(places))], self._on_device(inverse)
        targets = self._on_device(np.concatenate([np.append(row.ids[row.start : row.stop], 0) for row, _ in rows]))
        chosen = self._head.chosen(states, of_row, targets).cpu().numpy()
        lse, entropy = (
            found.cpu().numpy()[:, inverse] for found in self._head.normalisers(states, temperatures, entropies)
        )
        cuts = np.cumsum([0, *(len(positions) for positions in at)]).tolist()
        return [
            {
                "chosen": chosen[top : below - 1],
                "lse": {t: lse[k, top:below] for k, t in enumerate(temperatures)},
                "entropy": {t: entropy[k, top:below] for k, t in enumerate(entropies)},
                "logits": self._labels(states, of_row[top:below], sorted(row.labels)),
            }
            for (row, _), top, below in zip(rows, cuts, cuts[1:], strict=False)
        ]

    def _labels(self, hidden: Tensor, at: Tensor, labels: list[int]) -> dict[int, np.ndarray]:
        """Raw logits of a row's labels, at each of its positions."""
        assert self._head is not None
        return {label: self._head.chosen(hidden, at, torch.full_like(at, label)).cpu().numpy() for label in labels}

    def _on_device(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self._checkpoint.device)

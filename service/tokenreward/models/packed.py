"""The fast layout: all rows of a batch in one [1, n] row of segments, one trunk pass, heads on the wanted tokens only.

Raises what the model raises; it does not split batches (the engine does) and knows no scorers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokenreward.contract import Needs, Outputs, Row
from tokenreward.models.attention import IMPLEMENTATION, CannotPack, PackedRow, packed
from tokenreward.models.checkpoint import Checkpoint
from tokenreward.models.head import LanguageHead


class PackedLayout:
    """Runs rows of one checkpoint packed. Switches the model to the segments attention for good."""

    name = "packed"

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._head = LanguageHead.of(checkpoint) if checkpoint.task == "causal_lm" else None
        checkpoint.model.set_attn_implementation(IMPLEMENTATION)
        self._num_layers = int(checkpoint.text_config.num_hidden_layers)

    def num_computed(self, rows: Sequence[Row]) -> int:
        """Tokens that a pass over these rows computes: no padding."""
        return sum(len(row.ids) for row in rows)

    @torch.inference_mode()
    def run(self, work: Sequence[tuple[Row, Needs]]) -> list[Outputs]:
        """Outputs of each row, in order. Raises CannotPack if the attention was not asked in every layer."""
        rows = [row for row, _ in work]
        bounds = np.concatenate([[0], np.cumsum([len(row.ids) for row in rows])]).tolist()
        wanted = {index: (row, needs.attention) for index, (row, needs) in enumerate(work) if needs.attention}
        context = PackedRow(bounds=bounds, num_layers=self._num_layers, wanted=wanted)
        hidden = self._trunk(rows, context)
        values = self._values(hidden, work, bounds)
        logits = self._logits(hidden, work, bounds)
        return [
            Outputs(
                **logits[i],
                **values[i],
                attention={name: weights.cpu().numpy() for name, weights in context.found.get(i, {}).items()},
            )
            for i in range(len(work))
        ]

    def _trunk(self, rows: Sequence[Row], context: PackedRow) -> Tensor:
        device = self._checkpoint.device
        ids = torch.from_numpy(np.concatenate([row.ids for row in rows])).to(device)
        positions = torch.from_numpy(np.concatenate([np.arange(len(row.ids)) for row in rows])).to(device)
        with packed(context):
            output = self._checkpoint.trunk(input_ids=ids[None], position_ids=positions[None], use_cache=False)
        if context.num_calls != context.num_layers:
            raise CannotPack(f"{context.num_calls} of {context.num_layers} layers went through the attention interface")
        hidden: Tensor = output.last_hidden_state[0]
        return hidden

    def _values(self, hidden: Tensor, work: Sequence[tuple[Row, Needs]], bounds: list[int]) -> list[dict[str, Any]]:
        if not any(needs.values for _, needs in work):
            return [{}] * len(work)
        everywhere = self._checkpoint.value_head.values(hidden).cpu().numpy()
        return [
            {"values": everywhere[start + row.start - 1 : start + row.stop], "pooled": float(everywhere[stop - 1])}
            for (row, _), start, stop in zip(work, bounds, bounds[1:], strict=False)
        ]

    def _logits(self, hidden: Tensor, work: Sequence[tuple[Row, Needs]], bounds: list[int]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = [{} for _ in work]
        asked = [index for index, (_, needs) in enumerate(work) if needs.temperatures]
        if not asked or self._head is None:
            return found
        # Rows of a kind together: a request's odd temperature must not be computed for everybody.
        for kind in {(work[i][1].temperatures, work[i][1].entropies) for i in asked}:
            members = [i for i in asked if (work[i][1].temperatures, work[i][1].entropies) == kind]
            for i, outputs in zip(members, self._head_outputs(hidden, members, work, bounds), strict=True):
                found[i] = outputs
        return found

    def _head_outputs(
        self, hidden: Tensor, members: list[int], work: Sequence[tuple[Row, Needs]], bounds: list[int]
    ) -> list[dict[str, Any]]:
        """Of rows that want the same temperatures and entropies."""
        assert self._head is not None
        # Position t predicts token t + 1; the position after the last token is wanted, too (its V), without a target.
        at = [np.arange(work[i][0].start - 1, work[i][0].stop) + bounds[i] for i in members]
        rows = hidden[torch.from_numpy(np.concatenate(at)).to(hidden.device)]
        targets = [np.append(work[i][0].ids[work[i][0].start : work[i][0].stop], 0) for i in members]
        target = torch.from_numpy(np.concatenate(targets)).to(hidden.device)
        needs = work[members[0]][1]
        temperatures, entropies = sorted(needs.temperatures), sorted(needs.entropies)
        chosen = self._head.chosen(rows, target).cpu().numpy()
        lse, entropy = (found.cpu().numpy() for found in self._head.normalisers(rows, temperatures, entropies))
        cuts = np.cumsum([0, *(len(positions) for positions in at)]).tolist()
        return [
            {
                "chosen": chosen[top : below - 1],
                "lse": {t: lse[k, top:below] for k, t in enumerate(temperatures)},
                "entropy": {t: entropy[k, top:below] for k, t in enumerate(entropies)},
                "logits": self._labels(rows[top:below], sorted(work[i][0].labels)),
            }
            for i, top, below in zip(members, cuts, cuts[1:], strict=False)
        ]

    def _labels(self, hidden: Tensor, labels: list[int]) -> dict[int, np.ndarray]:
        """Raw logits of a row's labels, at each of its positions."""
        assert self._head is not None
        return {
            label: self._head.chosen(hidden, torch.full((len(hidden),), label, device=hidden.device)).cpu().numpy()
            for label in labels
        }

"""The fast layout: all rows of a batch in one [1, n] row of segments, one trunk pass, heads on the wanted tokens only.

Raises what the model raises; it does not split batches (the engine does) and knows no scorers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tokenreward.contract import Needs, Outputs, Row
from tokenreward.models.attention import IMPLEMENTATION, CannotPack, PackedRow, packed
from tokenreward.models.checkpoint import Checkpoint
from tokenreward.models.head import LanguageHead, value_of


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
        wanted = frozenset(index for index, (_, needs) in enumerate(work) if needs.attention)
        context = PackedRow(bounds=bounds, num_layers=self._num_layers, wanted=wanted)
        hidden = self._trunk(rows, context)
        values = self._values(hidden, work, bounds)
        logits = self._logits(hidden, work, bounds)
        attention = {index: row.cpu().numpy() for index, row in context.rows.items()}
        return [Outputs(*logits[i], *values[i], attention=attention.get(i)) for i in range(len(work))]

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

    def _values(
        self, hidden: Tensor, work: Sequence[tuple[Row, Needs]], bounds: list[int]
    ) -> list[tuple[np.ndarray | None, float | None]]:
        if not any(needs.values for _, needs in work):
            return [(None, None)] * len(work)
        everywhere = value_of(hidden, *self._checkpoint.value_head).cpu().numpy()
        found: list[tuple[np.ndarray | None, float | None]] = []
        for (row, _), start, stop in zip(work, bounds, bounds[1:], strict=False):
            found.append((everywhere[start + row.start : start + row.stop], float(everywhere[stop - 1])))
        return found

    def _logits(
        self, hidden: Tensor, work: Sequence[tuple[Row, Needs]], bounds: list[int]
    ) -> list[tuple[np.ndarray | None, dict[float, np.ndarray]]]:
        found: list[tuple[np.ndarray | None, dict[float, np.ndarray]]] = [(None, {}) for _ in work]
        asked = [index for index, (_, needs) in enumerate(work) if needs.temperatures]
        if not asked or self._head is None:
            return found
        # Rows of a kind together: a request's odd temperature must not be computed for everybody.
        for temperatures in {work[i][1].temperatures for i in asked}:
            members = [i for i in asked if work[i][1].temperatures == temperatures]
            for i, outputs in zip(members, self._head_outputs(hidden, members, work, bounds), strict=True):
                found[i] = outputs
        return found

    def _head_outputs(
        self, hidden: Tensor, members: list[int], work: Sequence[tuple[Row, Needs]], bounds: list[int]
    ) -> list[tuple[np.ndarray | None, dict[float, np.ndarray]]]:
        """Of rows that want the same temperatures."""
        assert self._head is not None
        # Position t predicts token t + 1; the position after the last token is wanted, too (its V), without a target.
        at = [np.arange(work[i][0].start - 1, work[i][0].stop) + bounds[i] for i in members]
        targets = [np.append(work[i][0].ids[work[i][0].start : work[i][0].stop], 0) for i in members]
        rows = hidden[torch.from_numpy(np.concatenate(at)).to(hidden.device)]
        target = torch.from_numpy(np.concatenate(targets)).to(hidden.device)
        temperatures = sorted(work[members[0]][1].temperatures)
        chosen = self._head.chosen(rows, target).cpu().numpy()
        lse = self._head.logsumexp(rows, temperatures).cpu().numpy()
        cuts = np.cumsum([len(positions) for positions in at])[:-1]
        by_row = zip(np.split(chosen, cuts), np.split(lse, cuts, axis=1), strict=True)
        return [(picked[:-1], {t: row[k] for k, t in enumerate(temperatures)}) for picked, row in by_row]

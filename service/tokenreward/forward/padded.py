"""The padded layout: rows of about one length in one call of the trunk, filled up on the right.

It serves causal models whose rows cannot be laid end to end: attention outside of transformers'
interface, ALiBi, state-space and linear-attention layers. A token of such a model reads nothing
behind it, so what stands behind a row changes no number of the row, and no mask is passed: without
one, attention takes its fast causal kernel. Whether a model keeps to this is for the probe to say.
This module knows rows, and no architecture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from tokenreward.checkpoints.checkpoint import Checkpoint
from tokenreward.contract import Needs, Outputs, Reading, Row, RowRequest
from tokenreward.forward.language_head import states_before_head
from tokenreward.forward.layout import Gap, Measure, in_order
from tokenreward.forward.packing import sides
from tokenreward.forward.plain import PlainLayout, rope_switch
from tokenreward.forward.readout import BatchedLayout, Readout, read_places
from tokenreward.forward.transfer import Pending, to_ends

# What a call of the trunk costs beside its tokens, in tokens: a longer row is worth a call of its
# own if its neighbours would be filled up by more than this. On a CPU, 32 was faster than 0 and 128
# for models of 6 million parameters. Not yet timed on a GPU.
CALL_TOKENS = {"cpu": 32, "cuda": 512}

_FILLER_ID = 0  # nothing reads it


class PaddedLayout(BatchedLayout):
    """Runs rows of one checkpoint, padded, under the attention that it was loaded with.

    Args:
        checkpoint: The model.
        through_model: Run the model's own call, up to its head, and not its trunk alone.

    Attributes:
        runs_ahead: Whether `launch` does not wait: it does wait for rows whose attention is read.
        call_tokens: What a call costs beside its tokens, in tokens (see `calls_of`).
    """

    name = "padded"
    shares = False

    def __init__(self, checkpoint: Checkpoint, *, through_model: bool = False) -> None:
        super().__init__(checkpoint)
        self.gap: Gap | None = None
        self.measure: Measure | None = None
        self.reason: str | None = None
        self.runs_ahead = True
        self._through_model = through_model
        self.call_tokens = CALL_TOKENS.get(checkpoint.placement.first.type, CALL_TOKENS["cuda"])
        self._rope_switch = rope_switch(checkpoint.text_config)
        self._plain = PlainLayout(checkpoint)

    def num_computed(self, rows: Sequence[Row]) -> int:
        """Tokens that a pass over these rows computes, the padding among them."""
        return sum(len(call) * len(rows[call[-1]].ids) for call in self._calls(rows))

    def run(self, requests: Sequence[RowRequest]) -> list[Outputs]:
        """Outputs of each row, in order."""
        return self.launch(requests).result()

    @torch.inference_mode()
    def launch(self, requests: Sequence[RowRequest]) -> Pending[list[Outputs]]:
        """Starts a pass: a call of the trunk for rows of about one length each.

        Attention is read from the model's own maps, row by row, as the plain layout does.
        """
        calls = self._calls([row for row, _ in requests])
        parts = [(call, self._launch_call(requests, call)) for call in calls]
        readings = {
            i: self._plain.run([RowRequest(row, Needs(attention=needs.attention))])[0].attention
            for i, (row, needs) in enumerate(requests)
            if needs.attention
        }
        return Pending(partial(_with_attention, parts, readings))

    def _calls(self, rows: Sequence[Row]) -> list[list[int]]:
        """For each call of the trunk, the numbers of its rows, the longest last."""
        calls = []
        for side in sides(rows, self._rope_switch):
            lengths = [len(rows[i].ids) for i in side]
            numbers = np.array(side)
            calls += [numbers[call].tolist() for call in calls_of(lengths, self.call_tokens)]
        return calls

    def _launch_call(
        self, requests_of_pass: Sequence[RowRequest], call: Sequence[int]
    ) -> Pending[list[Outputs]]:
        """Starts one call of the trunk, for some rows of a pass, and the copy of the heads' numbers
        to the host."""
        requests = [requests_of_pass[i] for i in call]
        width = max(len(row.ids) for row, _ in requests)
        ids = np.full((len(requests), width), _FILLER_ID, dtype=np.int64)
        places = []
        for index, (row, _) in enumerate(requests):
            ids[index, : len(row.ids)] = row.ids
            places.append(index * width + np.arange(len(row.ids)))
        at = read_places(requests, places, self.gate)
        placement = self._checkpoint.placement
        on_device, states_at = to_ends([ids], [at], placement.first, placement.last)
        hidden = states_before_head(
            self._checkpoint, through_model=self._through_model, input_ids=on_device
        )
        readout = Readout(requests, hidden.flatten(0, 1)[states_at], at, places)
        if self.language_head is not None:
            readout.add_logits(self.language_head)
        if self._value_head is not None:
            readout.add_values(self._value_head)
        return readout.send()


def calls_of(lengths: Sequence[int], call_tokens: int) -> list[list[int]]:
    """Which rows go through a call together, so that the least is computed.

    Sorted by length, the rows of a call follow one another. With n rows of lengths l_1 <= ... <=
    l_n, the best cost of the first i rows is

        cost_i = min over j < i of  cost_j + (i - j) * l_i + call_tokens

    Args:
        lengths: Tokens of each row.
        call_tokens: What a call costs beside its tokens, in tokens.

    Returns:
        For each call, the numbers of its rows, the longest last.
    """
    order = np.argsort(lengths, kind="stable")
    costs = np.zeros(len(order) + 1, dtype=np.int64)
    starts = np.zeros(len(order) + 1, dtype=np.int64)
    for stop in range(1, len(order) + 1):
        length = lengths[order[stop - 1]]
        candidates = costs[:stop] + (stop - np.arange(stop)) * length
        starts[stop] = np.argmin(candidates)
        costs[stop] = candidates[starts[stop]] + call_tokens
    calls = []
    stop = len(order)
    while stop:
        calls.append(order[starts[stop] : stop].tolist())
        stop = int(starts[stop])
    return calls


def _with_attention(
    parts: Sequence[tuple[list[int], Pending[list[Outputs]]]],
    readings: Mapping[int, Mapping[Reading, np.ndarray]],
) -> list[Outputs]:
    """Waits for the calls of a pass. Gives the outputs of all rows, in the order of the rows."""
    outputs = in_order(parts)
    for index, attention in readings.items():
        outputs[index] = replace(outputs[index], attention=dict(attention))
    return outputs

"""The layout of classifiers: models whose own class scores a whole row, and whose tokens see the
tokens after them.

Rows of about one length go through one call of the class, filled up on the right behind a mask.
There is one score for a row, and the attention that the pooled token pays. This module knows rows,
and no architecture.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokenreward.checkpoints.checkpoint import Checkpoint
from tokenreward.checkpoints.heads.value_head import label_names, label_weights
from tokenreward.checkpoints.refusal import CheckpointRefused
from tokenreward.contract import Outputs, Reading, Row, RowRequest
from tokenreward.errors import UnsupportedText
from tokenreward.forward.layout import Gap, Measure
from tokenreward.forward.padded import CALL_TOKENS, calls_of
from tokenreward.forward.transfer import Pending

TWO_WAY = "its own class scores whole rows: a row has one score, and tokens have no values"


class TwoWayLayout:
    """Runs rows of a classifier, padded, or row by row.

    Attributes:
        name: "padded", or "plain" if each row has a call of its own.
        call_tokens: What a call costs beside its tokens, in tokens (see `calls_of`).
    """

    shares = False
    runs_ahead = False

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.name = "padded"
        self.gap: Gap | None = None
        self.measure: Measure | None = None
        self.reason: str | None = TWO_WAY
        self.call_tokens = CALL_TOKENS.get(checkpoint.placement.first.type, CALL_TOKENS["cuda"])
        self._checkpoint = checkpoint
        self._model: Any = checkpoint.model
        config = checkpoint.text_config
        self._pad_id = getattr(config, "pad_token_id", None)
        # Encoder-decoders pool at the last EOS, and their rows of one call must have as many.
        self._eos_id = config.eos_token_id if config.is_encoder_decoder else None
        self._response_type = _response_type(checkpoint)
        if self._pad_id is None:
            self.name = "plain"
        names = label_names(self._model.config, self._model.config.num_labels)
        weights = label_weights(names, checkpoint.head_settings)
        # All labels are told where the operator names one or weighs them.
        self._label_names = names if weights else ()
        # One label is the value; of two, their difference.
        self._weights = weights or [-1.0, 1.0][-len(names) :]

    def num_computed(self, rows: Sequence[Row]) -> int:
        """Tokens that a pass over these rows computes, the padding among them."""
        num_tokens = 0
        for call in self._calls(rows):
            num_tokens += len(call) * max(len(rows[index].ids) for index in call)
        return num_tokens

    def launch(self, requests: Sequence[RowRequest]) -> Pending[list[Outputs]]:
        """Runs the rows: the pass has ended when this returns."""
        outputs = self.run(requests)
        return Pending(lambda: outputs)

    @torch.inference_mode()
    def run(self, requests: Sequence[RowRequest]) -> list[Outputs]:
        """Outputs of each row, in order: `pooled`, and the `last` reading of attention.

        Raises:
            UnsupportedText: The model pools at EOS, and a response has none: its class would fail,
                or pool at the end of the prompt.
        """
        rows = [row for row, _ in requests]
        if self._eos_id is not None and not all(
            self._eos_id in row.ids[row.start :] for row in rows
        ):
            raise UnsupportedText(
                f"the model scores at EOS (id {self._eos_id}), and the response has none: "
                "send `finished: true`, or ids that end with it"
            )
        numbers: dict[int, list[float]] = {}
        for call in self._calls(rows):
            logits = self._model(**self._inputs([rows[i] for i in call])).logits.float()
            numbers |= zip(call, logits.tolist(), strict=True)
        outputs = []
        for index, (row, needs) in enumerate(requests):
            attention: dict[Reading, np.ndarray] = {}
            if needs.attention:
                attention["last"] = self._attention(row)
            logits_of_row = numbers[index]
            pooled = float(np.dot(logits_of_row, self._weights))
            scores = dict(zip(self._label_names, logits_of_row, strict=False))
            outputs.append(Outputs(pooled=pooled, scores=scores, attention=attention))
        return outputs

    def _calls(self, rows: Sequence[Row]) -> list[list[int]]:
        """The numbers of the rows that go through each call together."""
        if self.name == "plain":
            return [[index] for index in range(len(rows))]
        groups: dict[int, list[int]] = {}
        for index, row in enumerate(rows):
            num_eos = 0 if self._eos_id is None else int((row.ids == self._eos_id).sum())
            groups.setdefault(num_eos, []).append(index)
        calls = []
        for members in groups.values():
            lengths = [len(rows[index].ids) for index in members]
            numbers = np.asarray(members)
            calls += [numbers[call].tolist() for call in calls_of(lengths, self.call_tokens)]
        return calls

    def _inputs(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """The arguments of the model's call for these rows."""
        width = max(len(row.ids) for row in rows)
        ids = np.full((len(rows), width), self._pad_id or 0, dtype=np.int64)
        mask = np.zeros_like(ids)
        for index, row in enumerate(rows):
            ids[index, : len(row.ids)] = row.ids
            mask[index, : len(row.ids)] = 1
        arrays = {"input_ids": ids, "attention_mask": mask}
        if self._response_type is not None:
            types = arrays["token_type_ids"] = np.zeros_like(ids)
            for index, row in enumerate(rows):
                num_first = row.start if row.num_first is None else row.num_first
                types[index, num_first : len(row.ids)] = self._response_type
        device = self._checkpoint.placement.first
        return {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}

    def _attention(self, row: Row) -> np.ndarray:
        """What the pooled token pays each token of a row, mean over heads, in the last layer.

        An encoder-decoder's is the decoder's attention to the encoder. Where a class pools by the
        mean of all tokens, it is the mean of what they pay.

        Raises:
            CheckpointRefused: The model gives no such map.
        """
        implementation = self._model.config._attn_implementation
        self._model.set_attn_implementation("eager")
        try:
            output = self._model(**self._inputs([row]), output_attentions=True)
        finally:
            self._model.set_attn_implementation(implementation)
        name = "attentions" if self._eos_id is None else "cross_attentions"
        maps = getattr(output, name, None)
        size, config = len(row.ids), self._checkpoint.text_config
        if not maps or maps[-1] is None or maps[-1].shape[-2:] != (size, size):
            raise CheckpointRefused(
                f"{type(self._model).__name__} gives no attention weights, and a scorer of this "
                "deployment reads them"
            )
        weights = maps[-1][0].float().mean(dim=0).cpu().numpy()
        if self._eos_id is not None:
            return np.asarray(weights[np.flatnonzero(row.ids == self._eos_id)[-1]])
        if getattr(config, "classifier_pooling", None) == "mean":
            return np.asarray(weights.mean(axis=0))
        is_causal = not np.triu(weights, 1).any()
        if is_causal or getattr(config, "summary_type", None) == "last":
            return np.asarray(weights[-1])
        return np.asarray(weights[0])


def reads_segments(checkpoint: Checkpoint) -> bool:
    """Whether the model is told which of the two texts of a pair a token is of."""
    return bool(_response_type(checkpoint))


def _response_type(checkpoint: Checkpoint) -> int | None:
    """The segment of a response's tokens, as the tokenizer has it for the second text of a pair;
    None if the model is told no segments."""
    parameters = inspect.signature(checkpoint.model.forward).parameters
    if checkpoint.tokenizer is None or "token_type_ids" not in parameters:
        return None
    if getattr(checkpoint.text_config, "type_vocab_size", 2) < 2:  # all tokens are of one segment
        return None
    types = checkpoint.tokenizer("a", "b").get("token_type_ids")
    if not types:
        return None
    # A chat template writes one text.
    return 0 if checkpoint.tokenizer.chat_template else int(types[-1])

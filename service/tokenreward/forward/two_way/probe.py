"""The load-time probe of classifiers: padding must change no number of the model's own class, and
the attention that scorers read must be a distribution.

It runs random rows, and one question with its answer. It knows no architecture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from tokenreward.checkpoints.checkpoint import Checkpoint
from tokenreward.checkpoints.refusal import CheckpointRefused, one_line
from tokenreward.contract import Needs, Outputs, Reading, Row, RowRequest
from tokenreward.forward.layout import Gap
from tokenreward.forward.trial import Trial, coarse_bounds, exact_trial, random_rows
from tokenreward.forward.two_way.layout import TWO_WAY, TwoWayLayout
from tokenreward.text.tokenizer import Tokenizer

_QUESTION, _ANSWER = "What is the capital of France?", "It is Paris."
_ONE_CALL = 10**6  # see `calls_of`: all rows of a trial are padded to one length


def choose_two_way_layout(
    checkpoint: Checkpoint, needs: Needs, *, say: Callable[[str], None]
) -> TwoWayLayout:
    """The layout of a classifier: padded if the padding changes no number, else row by row.

    Args:
        checkpoint: The model.
        needs: What scorers will ask of its rows.
        say: Is told the decision, in one line.

    Raises:
        CheckpointRefused: The model gives numbers that are not finite, or no attention that a
            scorer reads.
    """
    layout = TwoWayLayout(checkpoint)
    attention: frozenset[Reading] = frozenset({"last"} if needs.attention else ())
    requests = [
        RowRequest(_with_eos(row, checkpoint), Needs(pooled=True, attention=attention))
        for row in random_rows(checkpoint)
    ]
    truth = _own_outputs(checkpoint, layout, requests)
    trial = _trial(checkpoint, requests, truth)
    if layout.name == "padded":
        try:
            layout.gap = _gap(layout, trial)
            fault = None if layout.gap.is_within else f"differ in {layout.gap}"
        except Exception as error:  # the model takes no mask, or no rows of several lengths
            fault = f"raise {type(error).__name__}"
        if fault is not None:
            say(f"plain layout, one row at a time: padded rows {fault}")
            layout.name = "plain"
    if layout.name == "plain":
        layout.gap = _gap(layout, trial)
    layout.measure = partial(_measure, checkpoint, layout, requests)
    say(f"{layout.name} layout: differs from the model's own forward in {layout.gap}; {TWO_WAY}")
    return layout


def _measure(
    checkpoint: Checkpoint, layout: TwoWayLayout, requests: Sequence[RowRequest]
) -> Iterator[Gap | None]:
    """Measures the gap again (see `Layout.measure`). The layout calls the model's own class, so the
    served model itself gives the truth."""
    truth: list[Outputs] = []
    for request in requests:
        truth += _own_outputs(checkpoint, layout, [request])
        yield None
    yield _gap(layout, _trial(checkpoint, requests, truth))


def _trial(
    checkpoint: Checkpoint, requests: Sequence[RowRequest], truth: Sequence[Outputs]
) -> Trial:
    """What padded rows must give: the numbers of each row alone, within rounding."""
    if checkpoint.model.dtype == torch.float32:
        return exact_trial(requests, truth)
    return Trial(requests, truth, coarse_bounds(checkpoint, truth))


def _gap(layout: TwoWayLayout, trial: Trial) -> Gap:
    """How far rows of one call, in another order, are from those of a call each. Raises what the
    model raises."""
    if layout.name == "plain":
        return trial.gap_of(trial.truth)
    call_tokens, layout.call_tokens = layout.call_tokens, _ONE_CALL
    try:
        return trial.gap_of(layout.run(trial.requests[::-1])[::-1])
    finally:
        layout.call_tokens = call_tokens


def _own_outputs(
    checkpoint: Checkpoint, layout: TwoWayLayout, requests: Sequence[RowRequest]
) -> list[Outputs]:
    """What the model's own class gives of each row alone.

    Raises:
        CheckpointRefused: It raises, gives numbers that are not finite, or attention weights that
            are no distribution.
    """
    name = type(checkpoint.model).__name__
    try:
        truth = [layout.run([request])[0] for request in requests]
    except CheckpointRefused:
        raise
    except Exception as error:  # the model's own code raises errors of all kinds
        raise CheckpointRefused(f"{name} cannot be read: {one_line(error)}") from error
    if not np.isfinite([outputs.pooled or 0.0 for outputs in truth]).all():
        raise CheckpointRefused(f"{name} gives NaN or infinity")
    sums = [outputs.attention["last"].sum() for outputs in truth if outputs.attention]
    rounding = 8 * float(torch.finfo(checkpoint.model.dtype).eps)
    if not np.allclose(sums, 1.0, atol=max(1e-4, rounding)):
        raise CheckpointRefused(
            f"the attention weights of {name} do not sum to 1, and a scorer of this deployment "
            "reads them"
        )
    return truth


def _with_eos(row: Row, checkpoint: Checkpoint) -> Row:
    """The row with EOS at its end alone, where an encoder-decoder pools."""
    config = checkpoint.text_config
    if not config.is_encoder_decoder:
        return row
    tokens = np.setdiff1d(row.ids, [config.eos_token_id])
    ids = np.where(row.ids == config.eos_token_id, tokens[0] if len(tokens) else 0, row.ids)
    ids[-1] = config.eos_token_id
    return replace(row, ids=ids)


def pair_line(checkpoint: Checkpoint, tokenizer: Tokenizer, suffix_text: str | None) -> str:
    """One line on the score of a question and its answer, and of both as the tokenizer pairs them.

    Args:
        checkpoint: A classifier.
        tokenizer: Its tokenizer.
        suffix_text: What the settings put after each response.
    """
    layout = TwoWayLayout(checkpoint)
    prompt = tokenizer.prompt_from_text(_QUESTION, param=None)
    is_finished = tokenizer.end_of_turn is not None
    response, _ = tokenizer.response(_ANSWER, finished=is_finished, param="response")
    ids = np.concatenate([prompt, response, tokenizer.suffix(suffix_text)])
    pair = np.asarray(checkpoint.tokenizer(_QUESTION, _ANSWER)["input_ids"], dtype=np.int64)
    scores = []
    for tokens in (ids, pair):
        request = RowRequest(Row(tokens, len(prompt), len(tokens)), Needs(pooled=True))
        scores.append(layout.run([request])[0].pooled)
    line = f"{type(checkpoint.model).__name__}: score of a question and its answer {scores[0]:.4g}"
    if not np.array_equal(ids, pair):
        line += f", of both as its tokenizer pairs them {scores[1]:.4g}: other tokens are read"
    return line

"""After the pass: a scorer's signals, in the caller's units, with credit, as the reply has them.

    outputs -> Signals -> units -> credit -> KL penalty -> ScorerResult -> ItemResult

It computes with numpy on one item at a time, and knows neither batches nor the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Int64

from tokenreward import credit as credits
from tokenreward.alignment import last_of_units, sum_over_units
from tokenreward.contract import Outputs, Signals
from tokenreward.engine.job import Job
from tokenreward.engine.plan import Plan, scorer_failed
from tokenreward.engine.skipped import with_skipped
from tokenreward.errors import ItemError, NonFinite, ScorerFailed
from tokenreward.text.tokenizer import Tokenizer
from tokenreward.wire import ErrorDetail, ItemResult, RewardsRequest, ScorerResult, Token
from tokenreward.wire.reply import INTEGER_TABLES, TABLES


def item_result(
    job: Job, request: RewardsRequest, plans: Sequence[Plan], tokenizer: Tokenizer
) -> ItemResult:
    """The result for one item. Each scorer fails on its own.

    Args:
        job: The item, with its outputs.
        request: The request that it came with.
        plans: What the request wants of each scorer.
        tokenizer: The checkpoint's, for the tokens that the request may want to see.

    Returns:
        With `scorer`, that scorer's result; with `scorers`, the results by name. Rewards are
        float32 arrays [units].
    """
    results = {plan.name: _scorer_result(job, plan) for plan in plans}
    tokens = None
    if request.return_tokens and job.error is None:
        tokens = _tokens(job, tokenizer)
    if request.scorer is None:
        return ItemResult(index=job.index, tokens=tokens, scorers=results)
    result = results[request.scorer]
    return ItemResult(
        index=job.index,
        tokens=tokens,
        rewards=result.rewards,
        score=result.score,
        error=result.error,
        scores=result.scores,
        step_scores=result.step_scores,
        step_ids=result.step_ids,
        **{name: getattr(result, name) for name in TABLES},
    )


def _scorer_result(job: Job, plan: Plan) -> ScorerResult:
    if job.error is not None:
        return ScorerResult(error=ErrorDetail.of(job.error))
    places = job.rows_of[plan.name]
    if isinstance(places, ItemError):
        return ScorerResult(error=ErrorDetail.of(places))
    if isinstance(job.outputs, ItemError):
        # Several scorers of the item may have this error, so the path is not put into it.
        return ScorerResult(error=replace(ErrorDetail.of(job.outputs), param=job.param))
    outputs = [
        with_skipped(job.outputs[place], *job.num_skipped.get(place, (0, 0))) for place in places
    ]
    try:
        return _score(job, plan, outputs)
    except ItemError as error:
        return ScorerResult(error=ErrorDetail.of(error.within(job.param)))
    except Exception as error:
        # A fault here comes from the scorer's output, so only this item fails.
        failure = scorer_failed(plan.name, error).within(job.param)
        return ScorerResult(error=ErrorDetail.of(failure))


def _score(job: Job, plan: Plan, outputs: Sequence[Outputs]) -> ScorerResult:
    """One scorer's result for one item. Raises ItemError, and whatever the scorer raises."""
    item = job.sample.item
    # Infinite and undefined numbers have an error of their own, below.
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        signals = plan.scorer.score(job.sample, outputs, plan.options)
        _check(plan, signals, num_tokens=len(job.unit_of_token))
        units = _in_units(signals, job)
    rewards, score = credits.assign(units, job.scored, plan.credit, name=plan.credit_name)
    rewards = credits.penalise(
        rewards, plan.credit, job.scored, item.policy_logprobs, item.ref_logprobs
    )
    numbers = [array for array in (rewards, score, signals.step_scores) if array is not None]
    numbers += [*(signals.scores or {}).values(), *signals.tables.values()]
    if not all(np.isfinite(array).all() for array in numbers):
        raise NonFinite(f"scorer `{plan.name}` gave a number that is not finite")
    result = ScorerResult(rewards=rewards, score=score, scores=signals.scores)
    if signals.step_scores is not None and signals.step_ends is not None:
        result.step_scores = signals.step_scores.tolist()
        result.step_ids = _step_ids(signals.step_ends, job).tolist()
    for name, table in signals.tables.items():
        dtype = np.int32 if name in INTEGER_TABLES else np.float32
        setattr(result, name, np.ascontiguousarray(table, dtype=dtype))
    return result


def _check(plan: Plan, signals: Signals, *, num_tokens: int) -> None:
    """Refuses signals that are missing or of another length. Neither is filled in or padded.

    Raises:
        ScorerFailed: Says what the scorer gave.
    """
    scorer = f"scorer `{plan.name}`"
    if not isinstance(signals, Signals):
        raise ScorerFailed(f"{scorer} gave {type(signals).__name__}, not Signals")
    for field in sorted(credits.NEEDS[plan.credit_name]):
        if getattr(signals, field) is None:
            raise ScorerFailed(
                f"{scorer} gave no {field}, which credit `{plan.credit_name}` is made of"
            )
    for field in ("values", "weights"):
        vector = getattr(signals, field)
        if vector is not None and vector.shape != (num_tokens,):
            raise ScorerFailed(
                f"{scorer} gave {field} {list(vector.shape)} for {num_tokens} tokens"
            )
    for name, table in signals.tables.items():
        if name not in TABLES or len(table) != num_tokens:
            raise ScorerFailed(f"{scorer} gave a table `{name}` {list(table.shape)}")
    if signals.step_scores is None and signals.step_ends is None:
        return
    if signals.step_scores is None or signals.step_ends is None:
        raise ScorerFailed(f"{scorer} gave one of `step_scores` and `step_ends` without the other")
    edges = np.append(-1, signals.step_ends)
    divides = edges[-1] == num_tokens - 1 and (np.diff(edges) >= 1).all()
    if signals.step_scores.shape != signals.step_ends.shape or not divides:
        raise ScorerFailed(f"{scorer} gave steps that do not divide {num_tokens} tokens")


def _in_units(signals: Signals, job: Job) -> Signals:
    """The signals with numbers per unit, not per token.

    Increments and weights are summed over a unit. For levels, a unit takes the value of its last
    token.
    """
    num_units = len(job.scored)
    score, values, weights = signals.score, signals.values, signals.weights
    if score is not None:
        score = float(score)  # not every writer of replies takes a numpy scalar
    if values is not None:
        reduce = sum_over_units if signals.kind == "increments" else last_of_units
        values = reduce(values, job.unit_of_token, num_units)
    if weights is not None:
        weights = sum_over_units(weights, job.unit_of_token, num_units)
    return Signals(score=score, values=values, weights=weights)


def _step_ids(step_ends: Int64[np.ndarray, " k"], job: Job) -> Int64[np.ndarray, " u"]:
    """The step of each unit's last token; of a unit without tokens, the step of the token before
    it."""
    step_ids = np.zeros(len(job.scored), dtype=np.int64)
    step_ids[job.unit_of_token] = np.searchsorted(step_ends, np.arange(len(job.unit_of_token)))
    return np.maximum.accumulate(step_ids)


def _tokens(job: Job, tokenizer: Tokenizer) -> list[Token]:
    """The tokens that were scored. Tokens of a text carry their characters and their span; an
    end-of-turn that was appended has an empty span at the end of the text. A sequence that is
    scored as a whole has all of its tokens here, the first one, too."""
    ids, ends = job.sample.response_ids, job.sample.ends
    if job.sample.item.whole == "sequence":
        ids = np.concatenate([job.sample.prompt_ids, ids])
    text = job.sample.item.response
    if not isinstance(text, str) or ends is None:
        texts = tokenizer.texts(ids)
        return [Token(id=int(id_), text=text) for id_, text in zip(ids, texts, strict=True)]
    tokens, start = [], 0
    for token_id, end in zip(ids[: len(ends)].tolist(), ends.tolist(), strict=True):
        tokens.append(Token(id=token_id, text=text[start:end], span=(start, end)))
        start = end
    appended = ids[len(ends) :]
    for token_id, name in zip(appended.tolist(), tokenizer.texts(appended), strict=True):
        tokens.append(Token(id=token_id, text=name, span=(len(text), len(text))))
    return tokens

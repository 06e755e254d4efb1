"""What a caller gets per item: Rewards, read from a reply and checked against what was promised.

It knows no HTTP. A vector that is not finite or not of the promised length is an error here, and
never repaired.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from tokenreward.wire import (
    ErrorDetail,
    ItemResult,
    ModelVersion,
    Reply,
    ScorerResult,
    Token,
    decode_rewards,
    decode_table,
    renumbered,
)
from tokenreward.wire.reply import INTEGER_TABLES, TABLES
from tokenreward_client.errors import BadReply, ItemFailed

ResultT = TypeVar("ResultT", bound=ScorerResult)


@dataclass(frozen=True, slots=True, eq=False)
class Rewards:
    """The answer for one item.

    Attributes:
        rewards: float32 [units], one per token or span of the response. None if `error` is set, or
            if several scorers were asked and not combined.
        score: The scorer's number for the whole response; None if it has none.
        tokens: The tokens that were scored, with `return_tokens`.
        model: The model that computed the rewards.
        version: The version of that model's weights.
        error: Why the item has no rewards; set only with `on_error="return"`.
        scorers: The answers of several scorers by name; None if the call named a single one.
        scores: By name, all labels of a reward model with several; None of any other scorer.
        step_scores: float32 [steps], of a scorer that finds reasoning steps; None of any other.
        step_ids: int64 [units]: the step, from 0, in which each unit ends; None as `step_scores`.
        top_logprobs: float32 [tokens, top_k], of the scorer `logprob` with `top_k`: the largest
            log-probs at each response token, in descending order.
        top_token_ids: int32 [tokens, top_k], the tokens that they are of.
        ranks: int32 [tokens], the rank of the response token itself, 1 for the most likely.
        candidate_logprobs: float32 [tokens, candidates], of `logprob` with `candidates`.
        sources: Model and version of the scorers that the gateway asked on behalf of others, by
            name (`credit.kl.reference`, `score_from`); empty if it asked none.
        request_id: The id under which the service's log has the request; None where no answer came.
    """

    rewards: npt.NDArray[np.float32] | None
    score: float | None = None
    tokens: tuple[Token, ...] | None = None
    model: str | None = None
    version: int | None = None
    error: ErrorDetail | None = None
    scorers: Mapping[str, Rewards] | None = None
    scores: Mapping[str, float] | None = None
    step_scores: npt.NDArray[np.float32] | None = None
    step_ids: npt.NDArray[np.int64] | None = None
    top_logprobs: npt.NDArray[np.float32] | None = None
    top_token_ids: npt.NDArray[np.int32] | None = None
    ranks: npt.NDArray[np.int32] | None = None
    candidate_logprobs: npt.NDArray[np.float32] | None = None
    sources: Mapping[str, ModelVersion] = field(default_factory=dict)
    request_id: str | None = None


def read_single(item: ItemResult, reply: Reply, *, num_units: int | None, where: str) -> Rewards:
    """The answer for one item of a request with `scorer`.

    Args:
        item: What the reply has for the item.
        reply: The reply. It names the weights, unless the item does.
        num_units: The number of rewards that was promised; None if the tokens decide.
        where: The item's path, for messages.

    Raises:
        BadReply: A promise is broken.
    """
    if item.error is None and item.rewards is None:
        raise BadReply(f"{where} has neither rewards nor an error")
    tokens = None if item.tokens is None else tuple(item.tokens)
    # The first token of a whole sequence, which is no text of the response, may have no reward.
    if num_units is None and tokens and tokens[0].span is not None:
        num_units = len(tokens)
    answer = _read_result(item, num_units=num_units, where=where)
    version = reply.version if answer.version is None else answer.version
    return replace(answer, tokens=tokens, model=answer.model or reply.model, version=version)


def read_keyed(
    item: ItemResult, names: list[str], *, is_combined: bool, num_units: int | None, where: str
) -> Rewards:
    """The answer for one item of a request with `scorers`.

    Args:
        item: What the reply has for the item.
        names: The scorers of the request.
        is_combined: Whether the request asked for a weighted sum.
        num_units: The number of rewards that was promised; None if the tokens decide.
        where: The item's path, for messages.

    Raises:
        BadReply: A promise is broken.
    """
    results = item.scorers or {}
    if item.error is None and set(results) != set(names):
        raise BadReply(f"{where} answers for scorers {sorted(results)}, asked were {sorted(names)}")
    answers = {}
    has_error = item.error is not None
    for name, result in results.items():
        path = f"{where}.scorers.{name}"
        if result.error is None and result.rewards is None:
            raise BadReply(f"{path} has neither rewards nor an error")
        has_error = has_error or result.error is not None
        answers[name] = _read_result(result, num_units=num_units, where=path)
    if is_combined and not has_error and item.rewards is None:
        raise BadReply(f"{where} has no combined rewards and no error")
    tokens = None if item.tokens is None else tuple(item.tokens)
    answer = _read_result(item, num_units=num_units, where=where)
    return replace(answer, tokens=tokens, scorers=answers)


def errors_of(rewards: Rewards) -> list[tuple[str | None, ErrorDetail]]:
    """The errors of an item, each with the name of the scorer that failed; None if the item itself
    did."""
    errors: list[tuple[str | None, ErrorDetail]] = []
    if rewards.error is not None:
        errors.append((None, rewards.error))
    for name, result in (rewards.scorers or {}).items():
        if result.error is not None:
            errors.append((name, result.error))
    return errors


def retryable_codes(rewards: Rewards) -> set[str]:
    """The codes of an item's errors that another try may cure."""
    return {error.code for _, error in errors_of(rewards) if error.retryable}


def item_failed(
    index: int, rewards: Rewards, *, num_others: int, num_answered: int = 0
) -> ItemFailed:
    """The exception for an item that has an error.

    Args:
        index: The item's place among the caller's.
        rewards: The item's answer.
        num_others: How many more items failed.
        num_answered: How many items have rewards, which the exception takes from the caller.
    """
    scorer, error = errors_of(rewards)[0]
    message = error.param or f"items[{index}]"
    if scorer is not None:
        message += f" ({scorer})"
    message += f": {error.code}: {error.message}"
    if num_others:
        message += f"; and {num_others} more items failed"
    if num_answered:
        message += f' (on_error="return" gives the answers of the other {num_answered})'
    return ItemFailed(message, index=index, code=error.code, param=error.param, scorer=scorer)


def keep_good_results(old: Rewards, new: Rewards) -> Rewards:
    """The answer for an item that was sent again. A scorer that was good before and has failed now
    keeps its result.

    The new answer stands as it is where a scorer that the gateway asked has other weights now: the
    results of the two replies do not belong together.
    """
    if old.scorers is None or new.scorers is None or new.error is not None:
        return new
    for name in old.sources.keys() & new.sources.keys():
        if old.sources[name] != new.sources[name]:
            return new
    results = dict(new.scorers)
    for name, result in new.scorers.items():
        before = old.scorers.get(name)
        if before is not None and before.error is None and result.error is not None:
            results[name] = before
    return replace(new, scorers=results, sources={**old.sources, **new.sources})


def renumber(result: ResultT, positions: Sequence[int]) -> ResultT:
    """The same result, whose errors count the caller's items: `items[0]` of a request is the item
    at `positions[0]`."""
    if isinstance(result, ItemResult) and result.scorers is not None:
        scorers = {name: renumber(each, positions) for name, each in result.scorers.items()}
        result = replace(result, scorers=scorers)
    if result.error is not None and result.error.param is not None:
        param = renumbered(result.error.param, positions)
        result = replace(result, error=replace(result.error, param=param))
    return result


def _read_result(result: ScorerResult, *, num_units: int | None, where: str) -> Rewards:
    """What one result says, checked. Raises BadReply."""
    answer = Rewards(None, model=result.model, version=result.version, error=result.error)
    if result.error is not None:
        return answer
    if result.score is not None and not math.isfinite(result.score):
        raise BadReply(f"{where}.score is not finite")
    vector = None
    if result.rewards is not None:
        vector = _read_vector(result.rewards, num_units=num_units, where=f"{where}.rewards")
    for name, number in (result.scores or {}).items():
        if not math.isfinite(number):
            raise BadReply(f"{where}.scores.{name} is not finite")
    answer = replace(answer, rewards=vector, score=result.score, scores=result.scores)
    if vector is not None:
        tables: Mapping[str, Any] = _read_tables(result, num_tokens=len(vector), where=where)
        answer = replace(answer, **tables)
    if result.step_scores is None and result.step_ids is None:
        return answer
    if result.step_scores is None or result.step_ids is None:
        raise BadReply(f"{where} has only one of step_scores and step_ids")
    ids = np.asarray(result.step_ids, dtype=np.int64)
    num_rewards = 0 if vector is None else len(vector)
    if len(ids) != num_rewards:
        raise BadReply(f"{where}.step_ids has {len(ids)} entries for {num_rewards} rewards")
    num_steps = len(result.step_scores)
    if (np.diff(ids, prepend=0, append=num_steps - 1) < 0).any():
        raise BadReply(f"{where}.step_ids do not ascend from 0 to below {num_steps}")
    scores = _read_vector(result.step_scores, num_units=None, where=f"{where}.step_scores")
    return replace(answer, step_scores=scores, step_ids=ids)


def _read_tables(
    result: ScorerResult, *, num_tokens: int, where: str
) -> dict[str, npt.NDArray[Any]]:
    """The tables that a result has, by name, with one row per token. Raises BadReply."""
    tables: dict[str, npt.NDArray[Any]] = {}
    for name in TABLES:
        value = getattr(result, name)
        if value is None:
            continue
        try:
            tables[name] = decode_table(
                value, num_rows=num_tokens, is_integer=name in INTEGER_TABLES
            )
            if name == "ranks":  # one to a token
                tables[name] = tables[name].reshape(num_tokens)
        except ValueError as error:
            raise BadReply(f"{where}.{name} is no table of {num_tokens} tokens: {error}") from None
        if not np.isfinite(tables[name]).all():
            raise BadReply(f"{where}.{name} has entries that are not finite")
    return tables


def _read_vector(
    value: npt.NDArray[np.float32] | list[float] | str | bytes,
    *,
    num_units: int | None,
    where: str,
) -> npt.NDArray[np.float32]:
    """A vector as float32 [n], finite and of the promised length. Raises BadReply."""
    try:
        # What overflows float32 becomes infinite, and is refused below.
        with np.errstate(over="ignore"):
            vector = decode_rewards(value)
    except ValueError:
        raise BadReply(f"{where} is not little-endian float32") from None
    if not np.isfinite(vector).all():
        num_wrong = int((~np.isfinite(vector)).sum())
        raise BadReply(f"{where} has {num_wrong} entries that are not finite")
    if num_units is not None and vector.shape != (num_units,):
        raise BadReply(f"{where} has {vector.size} entries, promised were {num_units}")
    return vector

"""What a caller gets per item: Rewards, read from the wire and checked against what was promised.

It knows no HTTP. A vector that is not finite or not of the promised length is an error here, never
repaired.
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
    renumbered,
)
from tokenreward_client.errors import BadReply, ItemFailed

ResultT = TypeVar("ResultT", bound=ScorerResult)


@dataclass(frozen=True, slots=True, eq=False)
class Rewards:
    """One item's answer.

    `rewards`: float32 [units], one per response token or span; None if `error` is set, or if
    several scorers were asked and not combined. `score`: the scorer's sequence-level number.
    `tokens`: what was scored, with `return_tokens`. `model` and `version` name the weights.
    `scorers`: the same per scorer, where `scorers=` asked for several. Of a scorer that finds
    reasoning steps: `step_scores`, float32 [steps], and `step_ids`, int64 [units], the step (from
    0) that each unit ends in; None of any other. `sources`: by name, model and version of the
    scorers that the front asked for `credit.kl.reference` or `score_from`; empty if it asked none.
    `request_id`: under which the service's log has the request; None where no answer came.
    """

    rewards: npt.NDArray[np.float32] | None
    score: float | None = None
    tokens: tuple[Token, ...] | None = None
    model: str | None = None
    version: int | None = None
    error: ErrorDetail | None = None
    scorers: Mapping[str, Rewards] | None = None
    step_scores: npt.NDArray[np.float32] | None = None
    step_ids: npt.NDArray[np.int64] | None = None
    sources: Mapping[str, ModelVersion] = field(default_factory=dict)
    request_id: str | None = None


def read_single(item: ItemResult, reply: Reply, *, units: int | None, where: str) -> Rewards:
    """The answer to a request with `scorer`. The reply names the weights, unless the item does.
    Raises BadReply."""
    if item.error is None and item.rewards is None:
        raise BadReply(f"{where} has neither rewards nor an error")
    if units is None and item.tokens is not None:
        units = len(item.tokens)
    return _read(item, units=units, where=where, weights=(reply.model, reply.version))


def read_keyed(
    item: ItemResult, names: list[str], *, combined: bool, units: int | None, where: str
) -> Rewards:
    """The answer to a request with `scorers`; `combined`: weighted rewards were asked for. Raises
    BadReply."""
    results = item.scorers or {}
    if item.error is None and set(results) != set(names):
        raise BadReply(f"{where} answers for scorers {sorted(results)}, asked were {sorted(names)}")
    for name, result in results.items():
        if result.error is None and result.rewards is None:
            raise BadReply(f"{where}.scorers.{name} has neither rewards nor an error")
    failed = item.error is not None or any(result.error is not None for result in results.values())
    if combined and not failed and item.rewards is None:
        raise BadReply(f"{where} has no combined rewards and no error")
    top = _read(item, units=units, where=where)
    each = {
        name: _read(result, units=units, where=f"{where}.scorers.{name}")
        for name, result in results.items()
    }
    return replace(top, scorers=each)


def first_error(rewards: Rewards) -> tuple[str | None, ErrorDetail] | None:
    """The first error of an item and the scorer it belongs to (None: the item itself)."""
    if rewards.error is not None:
        return None, rewards.error
    for name, result in (rewards.scorers or {}).items():
        if result.error is not None:
            return name, result.error
    return None


def retryable_codes(rewards: Rewards) -> set[str]:
    """The codes of the errors that another try may cure, of an item and its scorers."""
    errors = [rewards.error, *(result.error for result in (rewards.scorers or {}).values())]
    return {error.code for error in errors if error is not None and error.retryable}


def item_failed(position: int, rewards: Rewards, *, num_others: int) -> ItemFailed:
    """The exception for an item that has an error.

    Args:
        position: The item's place among the caller's.
        rewards: The item's answer.
        num_others: How many more items failed.
    """
    failure = first_error(rewards)
    if failure is None:
        raise BadReply(f"items[{position}] failed without an error")
    scorer, detail = failure
    message = f"{detail.param or f'items[{position}]'}"
    if scorer is not None:
        message += f" ({scorer})"
    message += f": {detail.code}: {detail.message}"
    if num_others:
        message += f"; and {num_others} more items failed"
    return ItemFailed(message, index=position, code=detail.code, param=detail.param, scorer=scorer)


def keep_good_results(old: Rewards, new: Rewards) -> Rewards:
    """The answer of an item that was sent again. A scorer that was good before and has failed now
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
    changes: dict[str, Any] = {}
    if isinstance(result, ItemResult) and result.scorers is not None:
        changes["scorers"] = {
            name: renumber(each, positions) for name, each in result.scorers.items()
        }
    if result.error is not None and result.error.param is not None:
        param = renumbered(result.error.param, positions)
        changes["error"] = replace(result.error, param=param)
    return replace(result, **changes) if changes else result


def _read(
    result: ScorerResult,
    *,
    units: int | None,
    where: str,
    weights: tuple[str | None, int | None] = (None, None),
) -> Rewards:
    model = result.model or weights[0]
    version = weights[1] if result.version is None else result.version
    tokens = result.tokens if isinstance(result, ItemResult) else None
    kept = tuple(tokens) if tokens is not None else None
    if result.error is not None:
        return Rewards(None, tokens=kept, model=model, version=version, error=result.error)
    vector = None if result.rewards is None else _vector(result.rewards, units=units, where=where)
    if result.score is not None and not math.isfinite(result.score):
        raise BadReply(f"{where}.score is not finite")
    step_scores, step_ids = _steps(
        result, num_units=None if vector is None else len(vector), where=where
    )
    return Rewards(
        vector, result.score, kept, model, version, step_scores=step_scores, step_ids=step_ids
    )


def _steps(
    result: ScorerResult, *, num_units: int | None, where: str
) -> tuple[npt.NDArray[np.float32] | None, npt.NDArray[np.int64] | None]:
    if result.step_scores is None and result.step_ids is None:
        return None, None
    if result.step_scores is None or result.step_ids is None:
        raise BadReply(f"{where} has only one of step_scores and step_ids")
    ids = np.asarray(result.step_ids, dtype=np.int64)
    if len(ids) != num_units:
        raise BadReply(f"{where}.step_ids has {len(ids)} entries for {num_units} rewards")
    if (np.diff(ids, prepend=0, append=len(result.step_scores) - 1) < 0).any():
        raise BadReply(f"{where}.step_ids do not ascend from 0 to below {len(result.step_scores)}")
    return _vector(result.step_scores, units=None, where=where, name="step_scores"), ids


def _vector(
    value: npt.NDArray[np.float32] | list[float] | str | bytes,
    *,
    units: int | None,
    where: str,
    name: str = "rewards",
) -> npt.NDArray[np.float32]:
    try:
        with np.errstate(
            over="ignore"
        ):  # what overflows float32 is not finite, and is refused below
            vector = decode_rewards(value)
    except ValueError:
        raise BadReply(f"{where}.{name} is not little-endian float32") from None
    if not np.isfinite(vector).all():
        raise BadReply(
            f"{where}.{name} has {int((~np.isfinite(vector)).sum())} entries that are not finite"
        )
    if units is not None and vector.shape != (units,):
        raise BadReply(f"{where}.{name} has {vector.size} entries, promised were {units}")
    return vector

"""The weighted sum of several scorers' rewards, which a request's `combine` asks for; and whether
the scorers' units are the same.

A replica combines the results of its own reply, and the gateway the results that it has merged.
This module knows no HTTP and runs no model.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np

from tokenreward.errors import InvalidField, NonFinite, RequestError, UnitsDiffer, quotable
from tokenreward.wire import (
    ErrorDetail,
    Item,
    ItemResult,
    Message,
    RewardsRequest,
    ScorerResult,
    decode_rewards,
)


def refuse_unequal_units(request: RewardsRequest, fingerprints: Mapping[str, str]) -> None:
    """Refuses a `combine` over scorers whose units differ.

    Units are equal if each item has spans, or ids of one tokenizer.

    Args:
        request: The request.
        fingerprints: The fingerprint of each scorer's tokenizer, by the scorer's name.

    Raises:
        InvalidField: `combine` has a name that `scorers` lacks.
        UnitsDiffer: Names the item.
    """
    weights = request.combine or {}
    for name in weights:
        if name not in request.names:
            raise InvalidField(
                f"`{quotable(name)}` is named, which `scorers` does not name", param="combine"
            )
    for index, item in enumerate(request.items):
        if has_token_units(item) and not has_id_units(item):
            raise UnitsDiffer(
                "`combine` needs equal units: give `spans`, or token ids of one tokenizer",
                param=f"items[{index}].spans",
            )
    refuse_two_tokenizers(
        request.items,
        {fingerprints[name] for name in weights},
        concerned=has_id_units,
        message=(
            "`combine` needs equal units: these scorers' tokenizers differ, so token ids cannot "
            "be combined"
        ),
    )


def refuse_two_tokenizers(
    items: Sequence[Item],
    fingerprints: Collection[str],
    *,
    concerned: Callable[[Item], bool],
    message: str,
) -> None:
    """Refuses items whose meaning depends on the tokenizer, where there are several.

    Args:
        items: The request's items.
        fingerprints: Of the tokenizers.
        concerned: Whether an item's meaning depends on the tokenizer.
        message: What is wrong, for the error.

    Raises:
        UnitsDiffer: Names the first item that is concerned.
    """
    if len(set(fingerprints)) < 2:
        return
    for index, item in enumerate(items):
        if concerned(item):
            raise UnitsDiffer(message, param=f"items[{index}]")


def has_ids(item: Item) -> bool:
    """Whether prompt or response are token ids, which have a meaning for one tokenizer only."""
    prompt = item.prompt
    is_text = isinstance(prompt, str) or (
        isinstance(prompt, list) and bool(prompt) and isinstance(prompt[0], Message)
    )
    return has_id_units(item) or not is_text


def has_id_units(item: Item) -> bool:
    """Whether the item's units are token ids of the caller."""
    return not isinstance(item.response, str)


def has_token_units(item: Item) -> bool:
    """Whether the item's units are tokens: its own ids, or the tokens of its text."""
    return item.spans is None


def combine(
    items: Sequence[ItemResult], weights: Mapping[str, float], *, doubt: RequestError | None = None
) -> list[str]:
    """Gives each item the weighted sum of its scorers' rewards and scores.

    An error of any scorer in `weights` leaves both None; a sum that is not finite is the item's
    own error. The sum of scores is None if one of the scorers has none.

    Args:
        items: Results by scorer, changed in place. Rewards become float32 arrays [units].
        weights: The factor of each scorer.
        doubt: Why nobody knows whether the scorers' units are equal. Then nothing is added up, and
            this is the error of each item that has no other one.

    Returns:
        The codes of the errors that were made here, for the metrics.
    """
    codes = []
    for item in items:
        results = [(item.scorers or {})[name] for name in weights]
        if any(result.rewards is None for result in results):
            continue
        if doubt is None:
            _add(item, results, list(weights.values()))
        else:
            item.error = replace(ErrorDetail.of(doubt), param="combine")
        if item.error is not None:
            codes.append(item.error.code)
    return codes


def _add(item: ItemResult, results: Sequence[ScorerResult], weights: Sequence[float]) -> None:
    """Gives one item the weighted sum of these results, or the error of a sum that is not
    finite."""
    with np.errstate(over="ignore", invalid="ignore"):
        vectors = []
        for weight, result in zip(weights, results, strict=True):
            assert result.rewards is not None
            vectors.append(weight * decode_rewards(result.rewards).astype(np.float64))
        rewards = np.asarray(np.sum(vectors, axis=0), dtype=np.float32)
        scores = [result.score for result in results if result.score is not None]
        score = float(np.dot(weights, scores)) if len(scores) == len(results) else None
    if not np.isfinite(rewards).all() or (score is not None and not np.isfinite(score)):
        item.error = ErrorDetail.of(NonFinite("the weighted sum is not finite", param="combine"))
        return
    item.rewards, item.score = rewards, score

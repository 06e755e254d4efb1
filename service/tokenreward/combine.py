"""The weighted sum of several scorers' rewards: `combine` of a request, over the replies' plain
objects; and when two scorers' units are the same.

Pure: one replica uses it on its own reply, the gateway on what it merged. It knows no HTTP and runs
no model.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from tokenreward.errors import InvalidField, NonFinite, UnitsDiffer, shown
from tokenreward.wire import Item, Message, RewardsRequest, decode_rewards, encode_rewards


def refuse_unequal_units(request: RewardsRequest, fingerprints: Mapping[str, str]) -> None:
    """Units are equal if each item has spans, or ids that one tokenizer stands for. `fingerprints`
    are by scorer.

    Raises InvalidField (a name that `scorers` lacks), UnitsDiffer.
    """
    weights = request.combine or {}
    for name in weights:
        if name not in request.names:
            raise InvalidField(
                f"`{shown(name)}` is named, which `scorers` does not name", param="combine"
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
    """Raises UnitsDiffer for the first item that is `concerned` if there is more than one
    tokenizer."""
    if len(set(fingerprints)) < 2:
        return
    for index, item in enumerate(items):
        if concerned(item):
            raise UnitsDiffer(message, param=f"items[{index}]")


def has_ids(item: Item) -> bool:
    """Whether prompt or response are token ids, which mean something to one tokenizer only."""
    prompt = item.prompt
    is_text = isinstance(prompt, str) or (
        isinstance(prompt, list) and bool(prompt) and isinstance(prompt[0], Message)
    )
    return has_id_units(item) or not is_text


def has_id_units(item: Item) -> bool:
    """Whether the item's units are the token ids it came with."""
    return not isinstance(item.response, str)


def has_token_units(item: Item) -> bool:
    """Whether the item's units are tokens: its own ids, or what a tokenizer makes of its text."""
    return item.spans is None


def combine(items: list[dict[str, Any]], request: RewardsRequest) -> list[str]:
    """Adds `rewards` and `score` to each keyed item; any error in what it combines leaves both
    null. Returns the codes of the errors that it made itself."""
    weights = request.combine or {}
    codes = []
    for item in items:
        results = [item["scorers"][name] for name in weights]
        item["rewards"], item["score"] = None, None
        if not results or any(result["rewards"] is None for result in results):
            continue
        _add(item, results, list(weights.values()))
        if item["rewards"] is None:
            codes.append(NonFinite.code)
        elif request.encoding_format == "base64":
            item["rewards"] = encode_rewards(item["rewards"])
    return codes


def _add(item: dict[str, Any], results: list[dict[str, Any]], weights: list[float]) -> None:
    rewards = [decode_rewards(result["rewards"]).astype(np.float64) for result in results]
    scores = [result.get("score") for result in results]
    with np.errstate(over="ignore", invalid="ignore"):
        total = np.sum(
            [weight * vector for weight, vector in zip(weights, rewards, strict=True)], axis=0
        )
        vector = np.asarray(total, dtype=np.float32)
    score = None if None in scores else float(np.dot(weights, np.asarray(scores, dtype=np.float64)))
    if not np.isfinite(vector).all() or (score is not None and not np.isfinite(score)):
        item["error"] = NonFinite("the weighted sum is not finite", param="combine").detail()
        return
    item["rewards"], item["score"] = vector, score

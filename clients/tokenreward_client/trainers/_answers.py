"""Which of a batch's items can be sent, and their answers back in the batch's places.

A trainer's batch has a place for every completion, so what has no reward needs one too: None, or an
error that ends the step. Never a number. This module knows no trainer.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from tokenreward_client.client import Client
from tokenreward_client.errors import BadArgument, ClientError
from tokenreward_client.items import ItemLike, check_item
from tokenreward_client.rewards import Rewards

OnError = Literal["raise", "none"]

logger = logging.getLogger(__name__)


def check_settings(settings: Mapping[str, Any], on_error: str) -> None:
    """Check the keywords of `client.score` and what becomes of a wrong item.

    Raises:
        BadArgument: `on_error` is none of the choices, or several scorers are asked and their
            rewards are not made one.
    """
    if on_error not in ("raise", "none"):
        message = f'must be "raise" or "none", got {on_error!r}'
        raise BadArgument(message, param="on_error")
    if settings.get("scorers") is not None and settings.get("combine") is None:
        message = "a trainer takes one reward: several scorers need weights"
        raise BadArgument(message, param="combine")


def check_one_reward(settings: Mapping[str, Any]) -> None:
    """Check the keywords of `client.score` where the trainer has no place for a missing reward.

    Raises:
        BadArgument: Errors of items are to be returned, or several scorers are not made one.
    """
    check_settings(settings, "raise")
    if settings.get("on_error", "raise") != "raise":
        message = 'a missing reward is an error here: leave it at "raise"'
        raise BadArgument(message, param="on_error")


def refuse_images(are_there: bool) -> None:
    """Raises BadArgument if a prompt has images, or videos. Its ids have only places for them, and
    a scorer would read these as text."""
    if are_there:
        raise BadArgument("scorers read text: a prompt with images cannot be scored")


def sendable(
    items: Sequence[ItemLike | ClientError | None], on_error: OnError
) -> dict[int, ItemLike]:
    """The items that can be sent, by their places.

    Args:
        items: The batch. An item that could not be made is the error that says why, and None is
            one that has nothing to score.
        on_error: "raise" raises what is wrong with the first item that cannot be sent; "none" logs
            it and leaves the item out.

    Raises:
        ClientError: An item cannot be sent.
    """
    good: dict[int, ItemLike] = {}
    for place, item in enumerate(items):
        try:
            if isinstance(item, ClientError):
                raise item
            if item is None:
                continue
            check_item(item)
        except ClientError as error:
            if on_error == "raise":
                error.add_note(f"completion {place} of the batch")
                raise
            logger.warning("completion %d of the batch has no reward: %s", place, error)
        else:
            good[place] = item
    return good


def score_batch(
    client: Client,
    scorer: str | None,
    settings: Mapping[str, Any],
    items: Sequence[ItemLike | ClientError | None],
    *,
    on_error: OnError,
) -> list[Rewards | None]:
    """The answers of a batch in its places, as `sendable` and `in_places` describe them."""
    good = sendable(items, on_error)
    keywords = call_settings(settings, on_error)
    answers = client.score(list(good.values()), scorer, **keywords)
    return in_places(answers, list(good), len(items))


def call_settings(settings: Mapping[str, Any], on_error: OnError) -> dict[str, Any]:
    """The keywords of `client.score` for a batch: a service that answers no item is an error, even
    where a single item may fail."""
    return {**settings, "on_error": "return" if on_error == "none" else "raise"}


def in_places(
    answers: Sequence[Rewards], places: Sequence[int], num_items: int
) -> list[Rewards | None]:
    """The answers of a batch of `num_items`, where `places` says which of its items were sent.

    None stands where an item was not sent, or has an error, which is logged.
    """
    batch: list[Rewards | None] = [None] * num_items
    for place, answer in zip(places, answers, strict=True):
        if answer.error is None:
            batch[place] = answer
            continue
        logger.warning("completion %d of the batch has no reward: %s", place, answer.error.message)
    return batch

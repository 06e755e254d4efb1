"""What TRL's GRPOTrainer generated, as items to score.

It reads the dict of padded tensors that `_generate_and_score_completions` returns: prompts are
padded on the left, completions on the right. It imports neither TRL nor torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from tokenreward_client.errors import BadArgument, ClientError, NotText
from tokenreward_client.items import ItemLike
from tokenreward_client.rewards import Rewards
from tokenreward_client.spans import text_and_spans
from tokenreward_client.trainers._advantages import Flags, Floats
from tokenreward_client.trainers._answers import refuse_images


def policy_mask(output: Mapping[str, Any]) -> Flags:
    """The tokens [B, T] that the policy wrote and the loss counts: no padding, no tool output."""
    mask: Flags = _array(output["completion_mask"]) != 0
    if "tool_mask" in output:
        mask &= _array(output["tool_mask"]) != 0
    return mask


def items_of_ids(output: Mapping[str, Any]) -> list[ItemLike | ClientError | None]:
    """Each completion as ids without padding; None for one that is masked whole."""
    prompts, completions = _array(output["prompt_ids"]), _array(output["completion_ids"])
    prompt_mask, completion_mask = _array(output["prompt_mask"]), _array(output["completion_mask"])
    mask = policy_mask(output)
    refuse_images("pixel_values" in output)
    items: list[ItemLike | ClientError | None] = []
    for row in range(len(completions)):
        is_there = completion_mask[row] != 0
        if not mask[row].any():
            items.append(None)
            continue
        item = {
            "prompt": prompts[row][prompt_mask[row] != 0],
            "response": completions[row][is_there],
        }
        if not mask[row][is_there].all():
            item["mask"] = mask[row][is_there].astype(np.int64)
        items.append(item)
    return items


def items_of_text(
    output: Mapping[str, Any], prompts: Sequence[Any], tokenizer: Any
) -> list[ItemLike | ClientError | None]:
    """Each completion as text with a span per id, for a scorer with another tokenizer; None for one
    that is masked whole, and an error for ids that are no text.

    Args:
        output: The trainer's tensors.
        prompts: Each completion's prompt, as text or messages [B].
        tokenizer: The policy's.

    Raises:
        BadArgument: There are tool turns, whose text is not one response.
    """
    if "tool_mask" in output:
        raise BadArgument('turns of tools can be scored by their ids alone: by="ids"', param="by")
    refuse_images("pixel_values" in output)
    ids, mask = _array(output["completion_ids"]), policy_mask(output)
    items: list[ItemLike | ClientError | None] = []
    for row, prompt in enumerate(prompts):
        if not mask[row].any():
            items.append(None)
            continue
        try:
            text, spans, finished = text_and_spans(tokenizer, ids[row][mask[row]])
        except NotText as error:
            items.append(error)
            continue
        item = {"prompt": prompt, "response": text, "spans": spans, "finished": finished}
        items.append(item)
    return items


def rewards_of(answers: Sequence[Rewards | None], mask: Flags) -> Floats:
    """The rewards [B, T] of a batch, padded on the right; NaN in the rows that have none."""
    rewards = np.zeros(mask.shape)
    for row, answer in enumerate(answers):
        if answer is None:
            rewards[row] = np.nan
            continue
        assert answer.rewards is not None  # one scorer, or several combined
        rewards[row, : len(answer.rewards)] = answer.rewards
    return rewards


def gathered_rows(accelerator: Any, like: Any, rows: npt.NDArray[Any]) -> Floats:
    """The rows [B, T] of all processes in the order of the processes, padded to the longest T.
    `like` is a float tensor on the trainer's device."""
    tensor = accelerator.pad_across_processes(like.new_tensor(rows), dim=1)
    return _array(accelerator.gather(tensor)).astype(np.float64)


@contextmanager
def raised_together(accelerator: Any, like: Any) -> Iterator[None]:
    """If the body raises a ClientError in any process, every process raises. One that went on alone
    would wait in the next gather until its time is up."""
    failure = None
    try:
        yield
    except ClientError as error:
        failure = error
    is_failed = _array(accelerator.gather(like.new_tensor([float(failure is not None)]))) != 0
    if failure is not None:
        raise failure
    if is_failed.any():
        places = ", ".join(map(str, np.flatnonzero(is_failed)))
        raise ClientError(f"no rewards: scoring failed in process {places}, whose log says why")


def dense_metrics(rewards: Floats, mask: Floats, advantages: Floats) -> dict[str, float]:
    """What is logged of a step, by name; NaN, which TRL skips, where there are no rewards."""
    w = (mask != 0) & ~np.isnan(rewards).any(axis=1, keepdims=True)
    has_rewards = w.any(axis=1)
    metrics = {"dense/missing": 1.0 - float(has_rewards.mean())}
    names = ("dense/reward", "dense/reward_std", "dense/token_reward", "dense/advantage_std")
    if not has_rewards.any():
        return metrics | dict.fromkeys(names, math.nan)
    sums = np.where(w, rewards, 0.0).sum(axis=1)[has_rewards]
    numbers = (sums.mean(), sums.std(), rewards[w].mean(), advantages[w].std())
    return metrics | dict(zip(names, map(float, numbers), strict=True))


def _array(tensor: Any) -> npt.NDArray[Any]:
    array: npt.NDArray[Any] = tensor.cpu().numpy()
    return array

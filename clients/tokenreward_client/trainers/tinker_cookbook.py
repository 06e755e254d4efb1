"""tinker-cookbook (0.6): adds an advantage per token to the data of a step.

It imports neither the cookbook nor tinker. The loss takes `advantages` per token as they are; the
cookbook's own estimator spreads one number per trajectory over them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tokenreward_client.trainers._advantages import check_form, dense_advantages
from tokenreward_client.trainers._token_reward import TokenReward, padded


async def add_advantages(
    reward: TokenReward, data: Sequence[Any], *, gamma: float = 1.0, scale: float = 1.0
) -> None:
    """Add to `datum.loss_fn_inputs["advantages"]`, as `incorporate_kl_penalty` does.

        data_D, metadata_D = assemble_training_data(trajectory_groups_P, advantages_P)
        await add_advantages(reward, data_D)

    A token gets the discounted sum of the rewards from it to the end of its datum, times `scale`.
    Targets are the input shifted by one, so place t has the advantage of token t + 1. No baseline
    of a group is taken off: log-probabilities then pay for brevity.

    Args:
        reward: Asks the service by ids. What the mask leaves out (prompts, tools) has reward 0.
        data: tinker's `Datum`s. Those in which nothing was sampled stay as they are.
        gamma: The discount, in [0, 1].
        scale: What advantages are multiplied with.

    Raises:
        ClientError: A datum has no rewards. No datum is changed.
    """
    check_form(gamma=gamma)
    items, places = [], []
    for datum in data:
        targets, mask = (datum.loss_fn_inputs[key].data for key in ("target_tokens", "mask"))
        if not any(mask):
            continue
        ids = [*datum.model_input.to_ints(), int(targets[-1])]
        start = next(place for place, flag in enumerate(mask) if flag)
        items.append(reward.item(ids[: start + 1], ids[start + 1 :], mask[start:]))
        places.append((datum.loss_fn_inputs, start))
    vectors = await reward(items)
    masks = [item.get("mask", [1] * len(item["response"])) for item in items]
    rewards, mask_matrix = padded(vectors, masks)
    advantages = scale * dense_advantages(
        rewards, mask_matrix, num_generations=1, gamma=gamma, baseline="none", scale="none"
    )
    for (inputs, start), row, vector in zip(places, advantages, vectors, strict=True):
        values = np.array(inputs["advantages"].data)
        values[start:] += row[: len(vector)]
        inputs["advantages"] = type(inputs["advantages"]).from_numpy(values.astype(np.float32))

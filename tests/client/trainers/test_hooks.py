"""The adapters' hooks with objects shaped like the trainers': what goes to the service, and what
comes back to the trainer. The trainers' own code is in tests/trainers."""

from __future__ import annotations

import sys
import types
from types import SimpleNamespace as Shape
from typing import Any

import numpy as np
import pytest
import torch

from fakes.token_service import TokenService
from tokenreward_client import AsyncClient, BadArgument, Client, Rewards
from tokenreward_client.trainers import TokenReward, areal, prime_rl, rllm, skyrl, slime, verl
from tokenreward_client.trainers.openrlhf import reward_function
from tokenreward_client.trainers.tinker_cookbook import add_advantages
from tokenreward_client.trainers.verifiers import trace_score

PLAIN = {"baseline": "none", "scale": "none"}


@pytest.fixture
def reward(monkeypatch: pytest.MonkeyPatch) -> TokenReward:
    TokenService(monkeypatch)
    return TokenReward(AsyncClient("http://127.0.0.1:9"), "dense")


def sample(index: int, response: list[int], **changes: Any) -> Any:
    fields = {
        "group_index": 0,
        "index": index,
        "prompt": "text",
        "tokens": [1 + index, 2, *response],
        "response_length": len(response),
        "loss_mask": None,
        "remove_sample": False,
        "multimodal_inputs": {"images": None},
        "reward": None,
    }
    return Shape(**{**fields, **changes})


async def test_slime_gets_scores_to_log_and_a_tensor_per_sample(reward: TokenReward) -> None:
    hooks = slime.DenseHooks(reward, PLAIN)
    samples = [sample(0, [7, 8, 9]), sample(1, [7, 8], loss_mask=[0, 1])]
    for each in samples:
        each.reward = await hooks.rm(None, each)
    assert samples[0].reward == {"score": 33.0, "token_rewards": [10.0, 11.0, 12.0]}
    assert samples[1].reward["token_rewards"] == [0.0, 21.0]
    scores, tensors = hooks.post_process(Shape(n_samples_per_prompt=2), samples)
    assert scores == [33.0, 21.0]
    assert [tensor.tolist() for tensor in tensors] == [[33.0, 23.0, 12.0], [0.0, 21.0]]
    assert all(tensor.dtype == torch.float32 for tensor in tensors)


async def test_slime_baseline_is_of_the_group_and_not_of_a_removed_sample(
    reward: TokenReward,
) -> None:
    hooks = slime.DenseHooks(reward, {"baseline": "sequence", "scale": "none"})
    samples = [sample(0, [7]), sample(1, [7]), sample(2, [7], remove_sample=True)]
    replies = await hooks.rm(None, samples)
    for each, reply in zip(samples, replies, strict=True):
        each.reward = reply
    _, tensors = hooks.post_process(Shape(n_samples_per_prompt=3), samples)
    assert [tensor.tolist() for tensor in tensors] == [[-5.0], [5.0], [0.0]]


def test_slime_samples_that_do_not_fit_are_refused(reward: TokenReward) -> None:
    hooks = slime.DenseHooks(reward)
    short = sample(0, [7, 8], reward={"score": 1.0, "token_rewards": [1.0]})
    with pytest.raises(BadArgument, match="sample 0 has no reward for each of its tokens"):
        hooks.post_process(Shape(n_samples_per_prompt=1), [short])
    mixed = [sample(0, [7]), sample(1, [7], group_index=1)]
    with pytest.raises(BadArgument, match="whole groups of 2"):
        hooks.post_process(Shape(n_samples_per_prompt=2), mixed)


def node(ids: list[int], mask: list[int], advantages: list[float] | None = None) -> Any:
    return Shape(token_ids=ids, mask=[bool(flag) for flag in mask], advantages=advantages)


def branch(*nodes: Any) -> Any:
    ids = [id_ for each in nodes for id_ in each.token_ids]
    mask = [flag for each in nodes for flag in each.mask]
    return Shape(nodes=list(nodes), token_ids=ids, sampled_mask=mask, mm_token_type_ids=None)


async def test_prime_rl_assigns_a_value_to_each_sampled_token(
    reward: TokenReward, monkeypatch: pytest.MonkeyPatch
) -> None:
    values: dict[str, list[float]] = {}
    routing = types.ModuleType("prime_rl.orchestrator.algo.routing")
    assign = lambda trace, row: values.__setitem__(trace.id, row)  # noqa: E731
    monkeypatch.setattr(routing, "assign_advantages", assign, raising=False)
    for name in ("prime_rl", "prime_rl.orchestrator", "prime_rl.orchestrator.algo"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, routing.__name__, routing)

    class Base:
        async def score_group(self, episodes: Any) -> None:
            """Assigned its numbers already."""

    body = {"reward": reward, "dense": PLAIN, "outcome_weight": 2.0}
    dense = type("Dense", (prime_rl.DenseAlgorithm, Base), body)()
    prompt, first = node([1, 2], [0, 0]), node([3, 4, 5], [0, 1, 1], [0.5, 0.5])
    left, right = node([6], [1], [0.5]), node([7, 8], [0, 1], [0.5])
    branches = [branch(prompt, first, left), branch(prompt, first, right)]
    nodes = [prompt, first, left, right]
    scored = Shape(id="scored", nodes=nodes, branches=branches)
    other = Shape(id="other", nodes=[node([1], [0]), node([2], [1])], branches=[])
    await dense.score_group([Shape(traces=[scored, other])])
    # Rewards 10, 11 | 12 | 13: the response begins with the first sampled token.
    assert list(values) == ["scored"]
    np.testing.assert_allclose(values["scored"], [47.0, 37.0, 26.0, 14.0])


async def test_rllm_steps_get_discounted_sums(reward: TokenReward) -> None:
    steps = [
        Shape(prompt_ids=[1], response_ids=[7, 8, 9], advantage=None),
        Shape(prompt_ids=[2], response_ids=[7], advantage=None),
    ]
    episode = Shape(trajectories=[Shape(steps=steps)])
    await rllm.set_advantages(reward, episode, gamma=0.5, scale=2.0)
    assert steps[0].advantage == [2 * (10 + 5.5 + 3), 2 * (11 + 6), 24.0]
    assert steps[1].advantage == [40.0]


class Numbers:
    """Shaped like tinker's TensorData."""

    def __init__(self, data: list[Any]) -> None:
        self.data = data

    @classmethod
    def from_numpy(cls, array: Any) -> Numbers:
        assert array.dtype == np.float32
        return cls(array.tolist())


async def test_tinker_cookbook_data_get_the_advantages_of_their_targets(
    reward: TokenReward,
) -> None:
    inputs = {
        "target_tokens": Numbers([2, 3, 4, 5]),
        "mask": Numbers([0.0, 1.0, 0.0, 1.0]),
        "advantages": Numbers([0.0, 0.5, 0.0, 0.5]),
    }
    datum = Shape(model_input=Shape(to_ints=lambda: [1, 2, 3, 4]), loss_fn_inputs=inputs)
    prompt_alone = Shape(loss_fn_inputs={"target_tokens": Numbers([1]), "mask": Numbers([0.0])})
    await add_advantages(reward, [datum, prompt_alone], gamma=0.5)
    # Rewards 10 and 12 of tokens 3 and 5; a masked token costs no discount.
    assert inputs["advantages"].data == [0.0, 0.5 + 10 + 6, 0.0, 12.5]


async def test_skyrl_rewards_are_lists_and_the_outcome_goes_on_the_policys_last_token(
    reward: TokenReward,
) -> None:
    class Base:
        tokenizer = None

        async def generate(self, batch: Any) -> Any:
            return {
                "prompt_token_ids": [[1], [2]],
                "response_ids": [[7, 8, 9], [7]],
                "loss_masks": [[1, 1, 0], [1]],
                "rewards": [[0.0, 0.25, 0.25], 1.0],
            }

    dense = type("Dense", (skyrl.DenseGenerator, Base), {"reward": reward, "outcome_weight": 2.0})()
    output = await dense.generate({"batch_metadata": None})
    assert output["rewards"] == [[10.0, 12.0, 0.0], [22.0]]


def verl_output(**multi_modal_data: Any) -> Any:
    ids: dict[str, Any] = {"prompt_ids": [1], "response_ids": [7, 8], "response_mask": [1, 0]}
    return Shape(**ids, multi_modal_data=multi_modal_data)


def verl_loop(reward: TokenReward) -> Any:
    """Gives as verl's output what it is run with."""

    class Base:
        config, tokenizer = Shape(trainer=Shape(use_v1=True)), None

        async def run(self, sampling_params: Any, **_: Any) -> Any:
            return sampling_params

    return type("Loop", (verl.DenseAgentLoop, Base), {"reward": reward})()


async def test_verl_loop_scores_each_output_and_keeps_a_list_a_list(
    reward: TokenReward, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verl, "with_rewards", lambda output, rewards: rewards.tolist())
    loop = verl_loop(reward)
    output = verl_output()
    assert await loop.run(output, raw_prompt=[]) == [10.0, 0.0]
    assert await loop.run([output, output], raw_prompt=[]) == [[10.0, 0.0]] * 2


async def test_prompts_with_images_are_refused(
    reward: TokenReward, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Generator:
        tokenizer = None

        async def generate(self, batch: Any) -> Any:
            lists = {key: [[1]] for key in ("prompt_token_ids", "response_ids", "loss_masks")}
            return {**lists, "rewards": [0.0], "pixel_values": [torch.ones(1)]}

    class Algorithm:
        async def score_group(self, episodes: Any) -> None: ...

    class Workflow:
        async def sample(self, resp: Any, data: Any) -> Any:
            return await self._compute_rewards(resp, "a prompt", data)  # type: ignore[attr-defined]

    name = "prime_rl.orchestrator.algo.routing"
    for place, char in enumerate(f"{name}."):
        if char == ".":
            monkeypatch.setitem(sys.modules, name[:place], types.ModuleType(name[:place]))
    monkeypatch.setattr(sys.modules[name], "assign_advantages", None, raising=False)
    seen = branch(node([1], [0]), node([2], [1], [0.5]))
    seen.mm_token_type_ids = [1, 0]
    algorithm = type("Dense", (prime_rl.DenseAlgorithm, Algorithm), {"reward": reward})()
    generator = type("Dense", (skyrl.DenseGenerator, Generator), {"reward": reward})()
    workflow = type("Scored", (areal.ScoredWorkflow, Workflow), {"client": reward.client})()
    response = Shape(input_tokens=[1], output_tokens=[2])
    trace = Shape(nodes=seen.nodes, branches=[seen])
    for asking in (
        verl_loop(reward).run(verl_output(images=["an image"]), raw_prompt=[]),
        slime.DenseHooks(reward).rm(None, sample(0, [7], multimodal_inputs={"images": ["one"]})),
        generator.generate({"batch_metadata": None}),
        algorithm.score_group([Shape(traces=[trace])]),
        workflow.sample(response, {"images": ["an image"]}),
    ):
        with pytest.raises(BadArgument, match="with images"):
            await asking


async def test_trace_with_tool_calls_is_refused(reward: TokenReward) -> None:
    reply = Shape(role="assistant", content="It is 4.", tool_calls=None)
    user = Shape(role="user", content="2+2?")
    assert await trace_score(reward.client, Shape(messages=[user, reply])) == sum(range(8))
    reply.tool_calls = [object()]
    with pytest.raises(BadArgument, match="calls tools"):
        await trace_score(reward.client, Shape(messages=[user, reply]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"on_error": "return"}, 'leave it at "raise"'), ({"scorers": ["a", "b"]}, "need weights")],
)
async def test_what_takes_one_number_refuses_settings_that_give_none(
    reward: TokenReward, settings: Any, message: str
) -> None:
    class Workflow:
        async def sample(self) -> Any:
            resp = Shape(input_tokens=[1], output_tokens=[2])
            return await self._compute_rewards(resp, "a prompt", {})  # type: ignore[attr-defined]

    reply = Shape(role="assistant", content="It is 4.", tool_calls=None)
    body = {"client": reward.client, "settings": settings}
    workflow = type("Scored", (areal.ScoredWorkflow, Workflow), body)()
    with pytest.raises(BadArgument, match=message):
        await workflow.sample()
    with pytest.raises(BadArgument, match=message):
        await trace_score(reward.client, Shape(messages=[reply]), **settings)
    with pytest.raises(BadArgument, match=message):
        verl.score_function(reward.client, **settings)
    with pytest.raises(BadArgument, match=message):
        areal.RewardFunction("http://127.0.0.1:9", **settings)
    with pytest.raises(BadArgument, match=message):
        reward_function(Client("http://127.0.0.1:9"), **settings)


def test_no_adapter_of_numbers_makes_one_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Client, "score", lambda self, items, *a, **k: [Rewards(np.ones(1))])
    with pytest.raises(BadArgument, match="gives no score"):
        areal.RewardFunction("http://127.0.0.1:9")("p", "c", [1], [2])
    with pytest.raises(BadArgument, match="gives no score"):
        reward_function(Client("http://127.0.0.1:9"))(["ab"], ["a"], [None])

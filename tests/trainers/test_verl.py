"""verl's own types with our agent loop, reward manager and score function, and its own client of a
reward model."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from fakes import published, vocabularies
from tokenreward.demo import checkpoint_path
from tokenreward_client import AsyncClient, BadArgument, Client
from tokenreward_client.trainers import TokenReward
from tokenreward_client.trainers.verl import DenseAgentLoop, DenseRewardManager, score_function

SITE = published.site()
MISSING = [
    "PIL",
    "cachetools",
    "codetiming",
    "hydra",
    "omegaconf",
    "tensordict",
    "torchdata",
    "transfer_queue",
    "pylatexenc",
]
PROMPT, RESPONSE, MASK = [5, 6, 7, 8], [9, 10, 11, 12, 13], [1, 1, 0, 1, 1]


@pytest.fixture(scope="module")
def verl() -> Iterator[Any]:
    """Gives a module of verl by its name."""
    with published.importable(SITE, missing=MISSING):
        yield lambda name: importlib.import_module(f"verl.{name}")


@pytest.fixture
async def asking(url: str) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(url) as client:
        yield client


def native(client: Client, scorer: str, mask: list[int] | None = None) -> Any:
    item = {"prompt": PROMPT, "response": RESPONSE, "mask": mask}
    return client.score([item], scorer)[0].rewards


def loop_of(verl: Any, reward: TokenReward, *, use_v1: bool = True) -> Any:
    """Our loop before one of verl's that generates the response above."""
    output_kind = verl("experimental.agent_loop.agent_loop").AgentLoopOutput

    class Generated:
        config = SimpleNamespace(trainer=SimpleNamespace(use_v1=use_v1))
        tokenizer = None

        async def run(self, sampling_params: Any, priority: int = 0, **kwargs: Any) -> Any:
            return output_kind(
                prompt_ids=PROMPT,
                response_ids=RESPONSE,
                response_mask=MASK,
                response_logprobs=[-0.5] * len(RESPONSE),
                num_turns=2,
                metrics={},
                extra_fields={"turn_scores": []},
            )

    class Loop(DenseAgentLoop, Generated):
        pass

    Loop.reward = reward
    return Loop()


async def test_the_output_of_an_agent_loop_has_dense_rm_scores(
    verl: Any, asking: AsyncClient, client: Client
) -> None:
    loop = loop_of(verl, TokenReward(asking, "attention_dense"))
    output = await loop.run({}, raw_prompt=[])
    rewards = native(client, "attention_dense", MASK)
    entries = output.as_dict()
    assert entries["rm_scores"].dtype == torch.float32
    np.testing.assert_allclose(entries["rm_scores"].numpy(), rewards, atol=1e-5)
    assert entries["rm_scores"][2] == 0
    assert output.reward_score == pytest.approx(float(rewards.sum()), abs=1e-6)
    stock = (await super(DenseAgentLoop, loop).run({})).as_dict()
    assert set(entries) == {*stock, "rm_scores"}
    assert entries["responses"].tolist() == RESPONSE


async def test_the_estimators_of_verl_take_the_vector_or_sum_it(
    verl: Any, asking: AsyncClient, client: Client
) -> None:
    output = await loop_of(verl, TokenReward(asking, "attention_dense")).run({}, raw_prompt=[])
    algorithms = verl("trainer.ppo.core_algos")
    rewards, mask = output.as_dict()["rm_scores"][None], torch.tensor([MASK])
    function = inspect.unwrap(algorithms.compute_reinforce_plus_plus_outcome_advantage)
    config = SimpleNamespace(gamma=1.0)
    _, returns = function(token_level_rewards=rewards, response_mask=mask, config=config)
    own = native(client, "attention_dense", MASK)
    np.testing.assert_allclose(returns[0, 0].item(), own.sum(), atol=1e-5)
    np.testing.assert_allclose(returns[0, -1].item(), own[-1], atol=1e-5)


def test_the_loop_stands_before_verls_own(verl: Any, asking: AsyncClient) -> None:
    own = verl("experimental.agent_loop.single_turn_agent_loop").SingleTurnAgentLoop

    class Loop(DenseAgentLoop, own):
        reward = TokenReward(asking)

    assert Loop.run is DenseAgentLoop.run
    assert inspect.iscoroutinefunction(inspect.unwrap(own.run))


async def test_the_trainer_before_v1_is_refused(verl: Any, asking: AsyncClient) -> None:
    loop = loop_of(verl, TokenReward(asking, "attention_dense"), use_v1=False)
    with pytest.raises(BadArgument, match="use_v1"):
        await loop.run({}, raw_prompt=[])


async def test_levels_are_refused(verl: Any, asking: AsyncClient) -> None:
    loop = loop_of(verl, TokenReward(asking, "reward_model", credit={"name": "values"}))
    with pytest.raises(BadArgument, match="levels"):
        await loop.run({}, raw_prompt=[])


async def test_a_colocated_manager_assembles_dense_rm_scores(
    verl: Any, asking: AsyncClient, client: Client
) -> None:
    base = verl("experimental.reward_loop.reward_manager.base").RewardManagerBase

    class Manager(DenseRewardManager, base):
        reward = TokenReward(asking, "attention_dense")

    manager = Manager(config=SimpleNamespace(), tokenizer=None, compute_score=None)
    prompts, responses = torch.tensor([[0, 0, *PROMPT]]), torch.tensor([[*RESPONSE, 0, 0, 0]])
    there = torch.tensor([[0, 0, *[1] * 9, 0, 0, 0]])
    batch = {"prompts": prompts, "responses": responses, "attention_mask": there}
    sample = SimpleNamespace(
        batch={name: tensor[0] for name, tensor in batch.items()},
        non_tensor_batch={"raw_prompt": []},
    )
    result = await manager.run_single([sample])
    data = SimpleNamespace(batch=batch)
    rm_scores = Manager.assemble_rm_scores(data, [result["reward_score"]])
    assert rm_scores.shape == responses.shape
    expected = [*native(client, "attention_dense"), 0, 0, 0]
    np.testing.assert_allclose(rm_scores[0].numpy(), expected, atol=1e-5)
    # Of a number verl makes the same places, all but the last of them 0.
    stock = base.assemble_rm_scores(data, [float(rm_scores.sum())])
    assert stock.shape == rm_scores.shape
    assert stock.dtype == rm_scores.dtype
    # The trainer before v1 hands over what tools wrote.
    sample.batch["response_mask"] = torch.tensor([*MASK, 0, 0, 0])
    result = await manager.run_single([sample])
    expected = native(client, "attention_dense", MASK)
    np.testing.assert_allclose(result["reward_score"], expected, atol=1e-5)


async def test_a_score_function_is_what_verl_awaits(asking: AsyncClient, client: Client) -> None:
    function = score_function(asking, "reward_model", prompt="question")
    assert inspect.iscoroutinefunction(function)
    info = {"question": "When?", "num_turns": 2}
    score = await function(
        data_source="d", solution_str="On 27 May.", ground_truth="", extra_info=info
    )
    [answer] = client.score([("When?", "On 27 May.")], "reward_model")
    assert score == pytest.approx(answer.score, abs=1e-6)
    with pytest.raises(BadArgument, match="no `question`"):
        await function(data_source="d", solution_str="", ground_truth="", extra_info={})


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
async def test_verls_own_client_of_a_reward_model_gets_the_native_score(
    verl: Any, url: str, client: Client, engine: str
) -> None:
    kind = verl("experimental.reward_loop.reward_loop").RewardLoopWorker
    worker = kind.__new__(kind)
    worker.reward_router_address = url.removeprefix("http://")
    rollout = SimpleNamespace(name=engine)
    model = SimpleNamespace(rollout=rollout, model_path="/a/path/of/theirs")
    worker.config = SimpleNamespace(reward=SimpleNamespace(reward_model=model))
    tokenizer = AutoTokenizer.from_pretrained(str(checkpoint_path("rm")))
    worker.input_tokenizer = worker.reward_model_tokenizer = tokenizer
    ids = tokenizer("On 27 May.", add_special_tokens=False)["input_ids"]
    ids.append(tokenizer.eos_token_id)
    prompt = [{"role": "user", "content": "When?"}]
    sample = SimpleNamespace(
        non_tensor_batch={"raw_prompt": prompt},
        batch={
            "responses": torch.tensor(ids),
            "attention_mask": torch.ones(4 + len(ids), dtype=torch.int64),
        },
    )
    result = await worker.compute_score_disrm([sample])
    [answer] = client.score([(prompt, "On 27 May.")], "reward_model")
    assert result["reward_score"] == pytest.approx(answer.score, abs=1e-6)


async def test_what_is_no_conversation_is_a_4xx_which_verl_does_not_try_again(
    verl: Any, url: str
) -> None:
    import aiohttp

    kind = verl("experimental.reward_loop.reward_loop").RewardLoopWorker
    worker = kind.__new__(kind)
    worker.reward_router_address = url.removeprefix("http://") + "/d/rm"
    with pytest.raises(aiohttp.ClientResponseError) as raised:
        await worker._post_request({"model": "m", "input": "no conversation"}, "classify")
    assert 400 <= raised.value.status < 500


async def test_where_the_tokenizers_differ_each_token_of_the_policy_has_its_reward(
    verl: Any, asking: AsyncClient, client: Client
) -> None:
    tokenizer = vocabularies.byte_level()
    text = "On 27 May."
    ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    output_kind = verl("experimental.agent_loop.agent_loop").AgentLoopOutput
    loop = loop_of(verl, TokenReward(asking, "attention_dense", by="spans"))
    loop.tokenizer = tokenizer
    output = output_kind(prompt_ids=[1], response_ids=ids, response_mask=[1] * len(ids), metrics={})
    messages = [{"role": "user", "content": "When?"}]

    async def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        return output

    base = type(loop).__mro__[2]
    base.run = run
    entries = (await loop.run({}, raw_prompt=np.array(messages, dtype=object))).as_dict()
    [whole] = client.score([(messages, text)], "attention_dense")
    assert len(entries["rm_scores"]) == len(ids) != len(whole.rewards)
    # Spans move the rewards to other tokens and lose none.
    assert entries["rm_scores"].sum().item() == pytest.approx(whole.score, abs=1e-5)

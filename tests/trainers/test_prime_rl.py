"""prime-rl's own credit assignment on traces of verifiers, with our algorithm, and its own client
of a teacher.

It runs from the checkout that `PRIME_RL_CHECKOUT` names; verifiers is unpacked from PyPI.
"""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest

from fakes import published
from tokenreward_client import AsyncClient, Client
from tokenreward_client.trainers import TokenReward
from tokenreward_client.trainers._advantages import dense_advantages
from tokenreward_client.trainers.prime_rl import DenseAlgorithm
from trainers import checkouts

SITE, SOURCE = published.site(), published.checkout("prime-rl") / "src"
MISSING = (
    "acp", "anthropic", "fastmcp", "gepa", "jiter", "math_verify", "mcp", "msgpack",
    "prime_sandboxes", "rich", "textual", "tomli_w", "zmq",
)  # fmt: skip
DENSE = {"gamma": 1.0, "baseline": "sequence", "scale": "none"}


@pytest.fixture(scope="module")
def graph() -> Iterator[Any]:
    """The messages of verifiers' traces. Its package would load all of its clients and servers, so
    the package is left empty, and its modules are its own."""
    with published.importable(SITE, SOURCE, missing=MISSING):
        package = types.ModuleType("verifiers.v1")
        package.__path__ = [str(SITE / "verifiers" / "v1")]
        importlib.import_module("verifiers")
        sys.modules["verifiers.v1"] = package
        module = importlib.import_module("verifiers.v1.graph")
        trace = importlib.import_module("verifiers.v1.trace")
        package.Trace, package.Branch = trace.Trace, trace.Branch  # type: ignore[attr-defined]
        yield module
        del sys.modules["verifiers.v1"]


@pytest.fixture(scope="module")
def routing(graph: Any) -> Iterator[Any]:
    """prime-rl's `routing`, without the `__init__` of its package, which wants vLLM and more."""
    name = "prime_rl.orchestrator.algo.routing"
    file = SOURCE.joinpath(*name.split(".")).with_suffix(".py")
    stand_ins = {
        "prime_rl__configs__algorithm": published.stand_in("a"),
        "prime_rl__transports__rollouts": published.stand_in("b"),
    }
    module = published.loaded(file, name, **stand_ins)
    packages = ["prime_rl", "prime_rl.orchestrator", "prime_rl.orchestrator.algo"]
    before = {key: sys.modules.get(key) for key in (*packages, name)}
    sys.modules.update({key: types.ModuleType(key) for key in packages})
    sys.modules[name] = module
    yield module
    for key, value in before.items():
        if value is None:
            del sys.modules[key]


@pytest.fixture
async def asking(url: str) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(url) as client:
        yield client


def node(graph: Any, parent: int | None, ids: list[int], mask: list[int]) -> Any:
    role = "assistant" if any(mask) else "user"
    return graph.MessageNode(
        parent=parent,
        message={"role": role, "content": "text"},
        sampled=any(mask),
        token_ids=ids,
        mask=[bool(flag) for flag in mask],
    )


def trace_of(graph: Any, *nodes: Any) -> Any:
    kind = sys.modules["verifiers.v1.trace"].Trace
    return kind.model_construct(nodes=list(nodes), calls=[], mm_token_type_id_map={}, id="a trace")


def algorithm(routing: Any, reward: TokenReward, **attributes: Any) -> Any:
    class Scalar:
        """As prime-rl's GRPO assigns: one number, spread by its own function."""

        async def score_group(self, episodes: Any) -> None:
            for episode in episodes:
                for place, trace in enumerate(episode.traces):
                    routing.assign_advantages(trace, float(place))

    body = {"reward": reward, "dense": DENSE, **attributes}
    return type("Dense", (DenseAlgorithm, Scalar), body)()


async def test_each_sampled_token_gets_its_advantage(
    graph: Any, routing: Any, asking: AsyncClient, client: Client
) -> None:
    turns = trace_of(
        graph,
        node(graph, None, [5, 6, 7], [0, 0, 0]),
        node(graph, 0, [8, 9, 10], [0, 1, 1]),
        node(graph, 1, [11, 12], [0, 0]),
        node(graph, 2, [13, 14, 15], [0, 1, 1]),
    )
    short = trace_of(graph, node(graph, None, [5, 6], [0, 0]), node(graph, 0, [7, 8], [0, 1]))
    dense = algorithm(routing, TokenReward(asking, "attention_dense"))
    await dense.score_group([SimpleNamespace(traces=[turns, short])])
    ids = list(range(5, 16))
    items = [
        {"prompt": ids[:4], "response": ids[4:], "mask": [1, 1, 0, 0, 0, 1, 1]},
        {"prompt": [5, 6, 7], "response": [8]},
    ]
    first, second = (answer.rewards for answer in client.score(items, "attention_dense"))
    rewards = np.zeros((2, 4))
    rewards[0], rewards[1, 0] = first[[0, 1, 5, 6]], second[0]
    mask = [[1, 1, 1, 1], [1, 0, 0, 0]]
    expected = dense_advantages(rewards, mask, num_generations=2, **DENSE)
    own = [value for each in turns.nodes for value in each.advantages or []]
    np.testing.assert_allclose(own, expected[0], atol=1e-5)
    np.testing.assert_allclose(short.nodes[1].advantages, expected[1, :1], atol=1e-5)
    assert routing.is_trainable(turns)
    # As the branch carries them to the trainer: 0 where nothing was sampled.
    spread = turns.branches[0].advantages
    np.testing.assert_allclose(np.asarray(spread)[[4, 5, 9, 10]], expected[0], atol=1e-5)


async def test_a_message_on_two_branches_has_one_value_per_token(
    graph: Any, routing: Any, asking: AsyncClient
) -> None:
    trace = trace_of(
        graph,
        node(graph, None, [5, 6, 7], [0, 0, 0]),
        node(graph, 0, [8, 9], [1, 1]),
        node(graph, 1, [10, 11], [0, 1]),
        node(graph, 1, [12, 13, 14], [0, 1, 1]),
    )
    assert len(trace.branches) == 2
    dense = algorithm(routing, TokenReward(asking, "logprob"))
    await dense.score_group([SimpleNamespace(traces=[trace, trace.model_copy(deep=True)])])
    assert [len(each.advantages or []) for each in trace.nodes] == [0, 2, 1, 2]


async def test_the_algorithms_own_advantages_are_added_with_their_weight(
    graph: Any, routing: Any, asking: AsyncClient
) -> None:
    def group() -> list[Any]:
        return [
            trace_of(graph, node(graph, None, [5, 6], [0, 0]), node(graph, 0, [7, 8], [0, 1]))
            for _ in range(2)
        ]

    plain, both = group(), group()
    reward = TokenReward(asking, "attention_dense")
    await algorithm(routing, reward).score_group([SimpleNamespace(traces=plain)])
    weighted = algorithm(routing, reward, outcome_weight=3.0)
    await weighted.score_group([SimpleNamespace(traces=both)])
    for place in range(2):
        difference = both[place].nodes[1].advantages[0] - plain[place].nodes[1].advantages[0]
        assert difference == pytest.approx(3.0 * place, abs=1e-5)


async def test_prefill_logprobs_gets_log_pi_of_every_id(
    graph: Any, url: str, client: Client
) -> None:
    """With the OpenAI SDK, as prime-rl makes its client."""
    from openai import AsyncOpenAI

    name = "vllm.entrypoints.scale_out.token_in_token_out.protocol"
    parts = name.split(".")
    names = [".".join(parts[: end + 1]) for end in range(len(parts))]
    sys.modules.update({each: types.ModuleType(each) for each in names[:-1]})
    sys.modules[name] = published.stand_in(name, GenerateResponse=checkouts.GenerateResponse)
    try:
        prefill = published.definition(
            SOURCE / "prime_rl/utils/client.py", "prefill_logprobs", httpx=httpx
        )
        ids = [5, 6, 7, 8, 9, 10, 11]
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="EMPTY") as openai:
            values = await prefill(openai, "any name", ids)
    finally:
        for each in names:
            del sys.modules[each]
    [answer] = client.score([(ids[:1], ids[1:])], "logprob")
    assert values[0] == 0.0
    np.testing.assert_allclose(values[1:], answer.rewards, atol=1e-5)

"""NeMo-Gym's own agent with this service as its resources server: it opens a session, asks its
model, and has the rollout verified. Its classes read what comes back."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from fakes import published, web
from tokenreward_client import Client

SITE = published.site()
MISSING = (
    "devtools", "gprof2dot", "gradio", "hydra", "itsdangerous", "jiter", "mcp", "mlflow",
    "omegaconf", "opentelemetry", "pydot", "scipy", "wandb", "yappi",
)  # fmt: skip
PROMPT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}]
RESPONSE = {
    "id": "resp_1",
    "created_at": 0.0,
    "model": "policy",
    "object": "response",
    "parallel_tool_calls": False,
    "tool_choice": "auto",
    "tools": [],
}
CALL = {"type": "function_call", "call_id": "c1", "name": "add", "arguments": '{"a": 2}'}
CALLED = {"type": "function_call_output", "call_id": "c1", "output": "4"}


@pytest.fixture(scope="module")
def gym() -> Iterator[Any]:
    """Modules of NeMo-Gym by the last part of their names."""
    names = ("nemo_gym.server_utils", "responses_api_agents.simple_agent.app")
    with published.importable(SITE, missing=MISSING), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydantic sees the mocks in annotations
        modules = [importlib.import_module(name) for name in names]
        yield SimpleNamespace(server_utils=modules[0], agent=modules[1])


def message(text: str) -> dict[str, Any]:
    part = {"type": "output_text", "text": text, "annotations": []}
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [part],
    }


class Policy:
    """Answers the agent's request to itself with a rollout, in the place of its model."""

    output: list[dict[str, Any]]

    async def answer(self, _: Request) -> Response:
        return JSONResponse({**RESPONSE, "output": self.output})


@pytest.fixture
async def run(gym: Any, url: str) -> AsyncIterator[Any]:
    """Runs the agent's rollout with this output."""
    policy = Policy()
    client = gym.server_utils.ServerClient.model_construct(
        head_server_config=None, global_config_dict={}
    )
    session = gym.server_utils.set_global_aiohttp_client(
        gym.server_utils.GlobalAIOHTTPAsyncClientConfig()
    )
    ref = SimpleNamespace(name="resources")
    config = SimpleNamespace(
        name="agent", resources_server=ref, execute_tools=True, skip_verification=False
    )
    agent = gym.agent.SimpleAgent.model_construct(config=config, server_client=client)

    async def run(output: list[dict[str, Any]], **params: Any) -> Any:
        policy.output = output
        body = gym.agent.SimpleAgentRunRequest.model_validate(
            {"responses_create_params": {"input": PROMPT, **params}, "expected_answer": "4"}
        )
        return await agent.run(SimpleNamespace(cookies={}), body)

    app = Starlette(routes=[Route("/v1/responses", policy.answer, methods=["POST"])])
    with web.serving(app) as model_url:
        client._server_base_urls.update(resources=url, agent=model_url)
        yield run
    await session.close()
    gym.server_utils._GLOBAL_AIOHTTP_CLIENT = None


def native(client: Client, prompt: list[dict[str, Any]], response: str) -> float:
    [answer] = client.score([(prompt, response)], "reward_model")
    assert answer.score is not None
    return answer.score


async def test_an_agent_gets_the_native_score_of_its_rollout(run: Any, client: Client) -> None:
    verified = await run([message("It is 4.")])
    assert verified.reward == pytest.approx(native(client, PROMPT, "It is 4."), abs=1e-6)
    assert verified.reward_components == {"reward_model": verified.reward}
    assert (verified.mask_sample, verified.failure_kind) == (False, None)
    assert verified.response.output[0].content[0].text == "It is 4."
    assert verified.expected_answer == "4"  # the caller's own fields come back


async def test_instructions_are_the_system_turn(run: Any, client: Client) -> None:
    user = PROMPT[1:]
    verified = await run([message("Five.")], input=user, instructions=PROMPT[0]["content"])
    assert verified.reward == pytest.approx(native(client, PROMPT, "Five."), abs=1e-6)


async def test_a_rollout_without_an_answer_is_refused_and_gets_no_reward(
    run: Any, gym: Any
) -> None:
    with pytest.raises(gym.server_utils.ClientResponseError, match="422") as raised:
        await run([CALL, CALLED])
    assert b"must end with the assistant's message" in raised.value.response_content

"""How a protocol is answered: by which scorer, at which routes, and what happens under load."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from fakes import tiny
from fakes.web import until
from tokenreward.config import parse_settings
from tokenreward.deployment.plan import protocol_plans, serve_config
from tokenreward.errors import InternalError, InvalidField, Overloaded, RequestError
from tokenreward.http.gateway.scorer_routes import ScorerRoute
from tokenreward.http.held_requests import HeldRequests
from tokenreward.http.plans import check_plans
from tokenreward.http.request_limits import Limits
from tokenreward.settings import ProtocolSettings, Settings, SettingsError
from tokenreward.wire.paths import HOLD_HEADER, REWARDS_PATH

PAIR = {"prompt": "2+2?", "response": "It is 4."}
BODY = {"query": ["2+2?It is 4."], "prompts": ["2+2?"]}
PLACES = pytest.mark.parametrize("place", ["replica", "gateway"])


def settings(**plans: Any) -> Settings:
    lm = {"name": "lm", "checkpoint": "x", "task": "causal_lm", "scorers": [{"type": "endogenous"}]}
    scorers = [{"type": "reward_model"}, {"type": "constant", "name": "two"}]
    rm = {"name": "rm", "checkpoint": "x", "task": "reward_model", "scorers": scorers}
    return parse_settings({"deployments": [lm, rm], "protocols": plans})


def refusal(**plans: Any) -> str:
    with pytest.raises(SettingsError) as failure:
        check_plans(settings(**plans))
    return str(failure.value)


def test_settings_of_a_protocol_name_a_scorer_with_options_and_credit_that_it_takes() -> None:
    check_plans(settings(openrlhf={"scorer": "two", "options": {"value": 3.0}}))
    check_plans(settings(openrlhf={"options": {"red": True}, "credit": {"name": "values"}}))
    check_plans(settings(slime={"options": {"red": True}, "credit": {"name": "values"}}))
    check_plans(settings(slime={"scorer": "two"}))  # whose credit is `values`, of increments
    check_plans(settings(pooling={"credit": {"name": "values"}}))  # levels are what vLLM gives


@pytest.mark.parametrize(
    ("plans", "message"),
    [
        ({"openrhlf": {}}, "`protocols.openrhlf`: no such protocol; there are"),
        ({"native": {}}, "`protocols.native`: no such protocol"),
        ({"openrlhf": {"scorer": "nobody"}}, "`protocols.openrlhf.scorer` names `nobody`"),
        ({"openrlhf": {"colour": 1}}, "protocols.openrlhf.colour"),
        ({"openrlhf": {"options": {"colour": 1}}}, "`options.colour`: unknown option"),
        ({"openrlhf": {"credit": {"name": "attention"}}}, "needs weights"),
        ({"openrlhf": {"credit": {"gamma": 2}}}, "`credit.gamma`"),
        ({"openrlhf": {"credit": {"kl": {"coef": 1, "reference": "me"}}}}, "no scorer `me`"),
        (
            {"slime": {"credit": {"name": "values"}}},
            "gives levels, whose sum grows with the length",
        ),
        ({"slime": {"credit": {"name": "discount"}}}, "gives returns, which must not be added up"),
    ],
)
def test_settings_that_no_request_could_be_answered_with_are_refused_at_start(
    plans: Any, message: str
) -> None:
    assert message in refusal(**plans)


def test_a_protocol_is_not_set_up_where_no_scorer_gives_what_it_asks_for() -> None:
    lm = {"name": "lm", "checkpoint": "x", "task": "causal_lm", "scorers": [{"type": "endogenous"}]}
    with pytest.raises(SettingsError, match=r"`protocols\.openrlhf`: no scorer of type"):
        check_plans(parse_settings({"deployments": [lm], "protocols": {"openrlhf": {}}}))


def test_an_application_is_told_of_the_protocols_that_its_scorers_answer() -> None:
    config = serve_config(settings(openrlhf={"scorer": "two", "credit": {"scale": 2.0}}))
    plans = {app["name"]: protocol_plans(app["args"]) for app in config["applications"]}
    expected = ProtocolSettings(scorer="two", credit={"scale": 2.0})
    assert plans == {"Gateway": {"openrlhf": expected}, "lm": {}, "rm": {"openrlhf": expected}}


RM = {
    "name": "rm",
    "task": "reward_model",
    "max_queued_tokens": 24,
    "scorers": [
        {"type": "reward_model"},
        {"type": "constant", "name": "two"},
        {"type": "process", "options": {"layout": "skywork"}},
    ],
}
ROUTES = {
    "reward_model": ScorerRoute("rm", "reward_model"),
    "two": ScorerRoute("rm", "constant"),
    "process": ScorerRoute("rm", "process"),
}
PLANS = {
    "openrlhf": ProtocolSettings(
        scorer="two", options={"value": 3.0}, credit={"name": "last", "scale": 2.0}
    )
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("rm"), task="reward_model")


@pytest.fixture
def opened(checkpoint: Path, serve: Any, open_gateway: Any) -> Any:
    """Opens a client of a reward model's replica, or of the gateway, under settings of
    protocols. `client.slots`: the engines."""

    @asynccontextmanager
    async def opened(place: str, plans: Any = None, **changes: Any) -> AsyncIterator[Any]:
        with serve((RM, checkpoint), plans=plans) as replicas:
            opened.engine = replicas["slots"]["rm"].engine  # type: ignore[attr-defined]
            opened.backend = replicas["backends"]["rm"]  # type: ignore[attr-defined]
            if place == "gateway":
                async with open_gateway(replicas, ROUTES)(plans=plans, **changes) as client:
                    yield client
                return
            async with httpx.AsyncClient(base_url=replicas["url"] + "/d/rm", timeout=20) as client:
                yield client

    return opened


@PLACES
async def test_the_settings_say_which_scorer_answers_and_how_it_is_asked(
    opened: Any, place: str
) -> None:
    async with opened(place, PLANS) as client:
        answer = await client.post("/get_reward", json=BODY)
    (score,) = answer.json()["rewards"]
    assert score == 2.0 * 3.0 * 5  # five tokens, end-of-turn among them


@PLACES
async def test_without_settings_the_reward_model_answers_and_a_slash_at_the_end_is_fine(
    opened: Any, place: str
) -> None:
    async with opened(place) as client:
        native = await client.post(REWARDS_PATH, json={"scorer": "reward_model", "items": [PAIR]})
        answers = [await client.post(f"/get_reward{end}", json=BODY) for end in ("", "/")]
    for answer in answers:
        assert answer.json()["rewards"] == [native.json()["items"][0]["score"]]


@PLACES
@pytest.mark.parametrize("path", ["/classify", "/v1/embeddings", "/pooling"])
async def test_ids_are_refused_by_name_where_the_scorer_that_answers_reads_no_sequences(
    opened: Any, place: str, path: str
) -> None:
    plan = ProtocolSettings(scorer="process")
    plans = dict.fromkeys(("classify", "embeddings", "pooling"), plan)
    fields = {"model": "rm", **({"task": "classify"} if path == "/pooling" else {})}
    text = "<|user|>2+2?<|end|><|assistant|>It is 4.<|end|>"
    async with opened(place, plans) as client:
        ids = await client.post(path, json={**fields, "input": [[4, 40, 50], [4, 41, 51]]})
        chat = await client.post(path, json={**fields, "input": text})
    error = ids.json()["error"]
    assert (ids.status_code, error["param"]) == (422, "input[0]")
    assert "`whole: sequence`" in error["message"]
    assert chat.status_code == 200


async def test_settings_for_a_scorer_of_another_deployment_do_not_count_on_this_one(
    opened: Any,
) -> None:
    plans = {"openrlhf": ProtocolSettings(scorer="elsewhere", credit={"scale": 9.0})}
    async with opened("replica", plans) as client:
        plain = await client.post(REWARDS_PATH, json={"scorer": "reward_model", "items": [PAIR]})
        answer = await client.post("/get_reward", json=BODY)
    assert answer.json()["rewards"] == [plain.json()["items"][0]["score"]]


@PLACES
@pytest.mark.parametrize("end", ["", "/"])
async def test_health_is_200_wherever_the_models_are_told(
    opened: Any, place: str, end: str, checkpoint: Path
) -> None:
    async with opened(place) as client:
        health = await client.get(f"/health{end}")
        models = await client.get(f"/v1/models{end}")
    assert (health.status_code, models.status_code) == (200, 200)
    (model,) = models.json()["data"]
    assert model["id"] == str(checkpoint)
    assert model["max_model_len"] == 512


async def test_models_are_not_told_where_nothing_is_loaded_and_health_says_the_same(
    opened: Any,
) -> None:
    async with opened("gateway", loaded={"rm": []}) as client:
        statuses = [(await client.get(path)).status_code for path in ("/health", "/v1/models")]
    assert statuses == [503, 503]


@PLACES
async def test_tokenize_answers_as_vllm_does(opened: Any, place: str) -> None:
    own = tiny.tokenizer()
    turns = [{"role": "user", "content": "2+2?"}]
    async with opened(place) as client:
        text = (await client.post("/tokenize", json={"model": "x", "prompt": "2+2?"})).json()
        chat = (await client.post("/tokenize", json={"messages": turns})).json()
        closed = {"messages": turns, "add_generation_prompt": False, "return_token_strs": True}
        whole = (await client.post("/tokenize", json=closed)).json()
        wrong = await client.post("/tokenize", json={"prompt": "a", "messages": turns})
    assert text["tokens"] == own("2+2?")["input_ids"]
    assert (text["count"], text["max_model_len"], text["token_strs"]) == (4, 512, None)
    for answer, opens in ((chat, True), (whole, False)):
        rendered = own.apply_chat_template(turns, tokenize=False, add_generation_prompt=opens)
        assert answer["tokens"] == own(rendered, add_special_tokens=False)["input_ids"]
    assert "".join(whole["token_strs"]) == "<|user|>2+2?<|end|>\n"
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (422, "prompt")


UNHELD = {HOLD_HEADER: "0"}  # of callers who try again by themselves
HELD = {HOLD_HEADER: "1000"}  # a protocol's own patience is shorter


async def fill(client: httpx.AsyncClient) -> list[asyncio.Task[Any]]:
    """Sends requests until one is refused."""
    tasks = []
    body = {"scorer": "reward_model", "items": [PAIR]}
    while True:
        task = asyncio.ensure_future(client.post(REWARDS_PATH, json=body, headers=UNHELD))
        await asyncio.wait({task}, timeout=0.3)
        if task.done():
            assert task.result().status_code == 503, task.result().text
            return tasks
        tasks.append(task)


@PLACES
async def test_a_protocol_with_patience_is_held_while_the_queue_is_full_and_then_answered(
    opened: Any, place: str
) -> None:
    free = threading.Event()
    async with opened(place) as client:
        opened.engine.device_thread.submit(free.wait)
        try:
            others = await fill(client)
            held = asyncio.ensure_future(client.post("/get_reward", json=BODY, headers=HELD))
            await asyncio.wait({held}, timeout=0.5)
            assert not held.done()
        finally:
            free.set()
        answer = await held
        scores = [(await other).json()["items"][0]["score"] for other in others]
    assert answer.status_code == 200
    assert answer.json()["rewards"] == [pytest.approx(scores[0], abs=1e-5)]


@PLACES
async def test_patience_ends_with_the_callers_deadline_and_the_reason_is_told(
    opened: Any, place: str
) -> None:
    free = threading.Event()
    async with opened(place) as client:
        opened.engine.device_thread.submit(free.wait)
        try:
            others = await fill(client)
            began = time.monotonic()
            headers = {**HELD, "x-request-timeout-seconds": "1"}
            late = await client.post("/get_reward", json=BODY, headers=headers)
            took_s = time.monotonic() - began
        finally:
            free.set()
        await asyncio.gather(*others)
    assert (late.status_code, late.json()["detail"]["code"]) == (503, "overloaded")
    assert 0.3 < took_s < 1


async def test_what_waits_counts_as_held_and_is_refused_where_no_room_is_left(
    opened: Any,
) -> None:
    free = threading.Event()
    limits = Limits(
        max_body_bytes=1000,
        max_request_items=8,
        request_timeout_s=20,
        max_body_memory_bytes=1000,
    )
    async with opened("gateway", limits=limits) as client:
        opened.engine.device_thread.submit(free.wait)
        try:
            others = await fill(client)
            padded = {**BODY, "labels": ["x" * 200]}
            tasks = [
                asyncio.ensure_future(client.post("/get_reward", json=padded, headers=HELD))
                for _ in range(4)
            ]
            await asyncio.wait(tasks, timeout=1.0)
            codes = [task.result().status_code for task in tasks if task.done()]
            held = [task for task in tasks if not task.done()]
            assert held  # those that found room wait
            assert set(codes) <= {503}
        finally:
            free.set()
        answers = await asyncio.gather(*held)
        await asyncio.gather(*others)
    assert {answer.status_code for answer in answers} == {200}


async def test_a_caller_who_hangs_up_while_held_frees_what_is_held_for_it(opened: Any) -> None:
    free = threading.Event()
    async with opened("replica") as client:
        opened.engine.device_thread.submit(free.wait)
        try:
            others = await fill(client)
            bodies = opened.backend.bodies
            num_held = bodies.num_held
            held = asyncio.ensure_future(client.post("/get_reward", json=BODY, headers=HELD))
            await until(lambda: bodies.num_held > num_held)
            held.cancel()
            await until(lambda: bodies.num_held == num_held)
        finally:
            free.set()
        await asyncio.gather(*others)


async def test_a_fault_is_tried_again_a_few_times_and_a_wrong_request_never() -> None:
    tries: list[type[RequestError]] = []

    def failing(kind: type[RequestError]) -> Any:
        async def work() -> None:
            tries.append(kind)
            raise kind("no")

        return work

    for kind in (InternalError, InvalidField, Overloaded):
        with pytest.raises(kind):
            await HeldRequests().hold(failing(kind), give_up_at=time.monotonic() + 0.3)
    assert tries.count(InternalError) == 3
    assert tries.count(InvalidField) == 1
    assert tries.count(Overloaded) in (3, 4)  # at about 0, 0.04, 0.12 and 0.27 s
    with pytest.raises(Overloaded):
        await HeldRequests().hold(failing(Overloaded), give_up_at=time.monotonic())
    assert tries.count(Overloaded) in (4, 5)


async def test_a_protocols_scorer_that_takes_its_score_from_another_is_answered_by_the_gateway(
    sourced_gateway: Any,
) -> None:
    plans = {"openrlhf": ProtocolSettings(scorer="spread")}  # whose score is `reward_model`'s
    async with sourced_gateway(plans=plans) as client:
        native = await client.post(REWARDS_PATH, json={"scorer": "spread", "items": [PAIR]})
        answer = await client.post("/get_reward", json=BODY)
        wrong = await client.post("/get_reward", json={"query": ["ab"], "prompts": ["c"]})
        empty = await client.post("/get_reward", json={"query": ["ab"], "prompts": ["ab"]})
    (item,) = native.json()["items"]
    assert item["score"] is not None
    assert answer.json()["rewards"] == [pytest.approx(item["score"], abs=1e-6)]
    for refusal in (wrong, empty):
        assert (refusal.status_code, refusal.json()["detail"]["param"]) == (422, "query[0]")

"""msgpack through the gateway: forwarded as it came, split where several deployments answer, with
the numbers of JSON."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tokenreward.wire import decode_rewards, read_reply
from tokenreward.wire.media import JSON, MSGPACK, Media
from tokenreward.wire.msgpack import pack, unpack
from tokenreward_client import Client

IDS = np.array([8, 90, 31], np.int32)
LISTED: dict[str, Any] = {
    "prompt": [5, 6, 7],
    "response": IDS.tolist(),
    "mask": [1, 0, 1],
    "policy_logprobs": [-1, -2.5, -3],
}
PACKED: dict[str, Any] = {
    "prompt": np.array([5, 6, 7], np.int32),
    "response": IDS,
    "mask": np.array([1, 0, 1], np.int32),
    "policy_logprobs": np.array([-1, -2.5, -3], np.float32),
}
SPANNED: dict[str, Any] = {"prompt": "2+2?", "response": "It is 4.", "spans": [[0, 3], [3, 8]]}
PACKED_SPANS = {**SPANNED, "spans": np.array([[0, 3], [3, 8]], np.int32)}

BODIES: dict[str, dict[str, Any]] = {
    "one deployment": {"scorer": "endogenous"},
    "a reference": {"scorer": "endogenous", "credit": {"kl": {"coef": 0.3, "reference": "sft"}}},
    "a score source": {"scorer": "spread"},
    "two deployments": {"scorers": ["endogenous", "reward_model"]},
    "combined": {
        "scorers": ["endogenous", "reward_model"],
        "combine": {"endogenous": 0.5, "reward_model": -2.0},
    },
}


async def ask(
    client: Any, body: dict[str, Any], sent: Media = JSON, accept: str = "*/*", status: int = 200
) -> Any:
    """The plain objects of the answer, with every vector of rewards as an array."""
    headers = {"content-type": sent.name, "accept": accept}
    response = await client.post("/v1/rewards", content=sent.dump(body), headers=headers)
    assert response.status_code == status, response.content
    wanted = {JSON.name: JSON, MSGPACK.name: MSGPACK}.get(accept, sent)
    assert response.headers["content-type"] == wanted.name
    reply = wanted.load(response.content)
    if status == 200:
        read_reply(reply)
        for result in (
            each
            for item in reply["items"]
            for each in (item, *(item.get("scorers") or {}).values())
        ):
            if result["rewards"] is not None:
                assert isinstance(result["rewards"], bytes if wanted is MSGPACK else (list, str))
                result["rewards"] = decode_rewards(result["rewards"])
    return reply


def same(first: dict[str, Any], second: dict[str, Any]) -> None:
    """Two replies but for their ids and times, and rewards that another batch may round
    otherwise."""
    assert first["usage"] == second["usage"]
    assert first["sources"] == second["sources"] if "sources" in first else "sources" not in second
    for one, other in zip(first["items"], second["items"], strict=True):
        same_result(one, other)
        assert (one.get("scorers") or {}).keys() == (other.get("scorers") or {}).keys()
        for name, result in (one.get("scorers") or {}).items():
            same_result(result, other["scorers"][name])


def same_result(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one["error"] == other["error"]
    assert (one["rewards"] is None) == (other["rewards"] is None)
    if one["rewards"] is not None:
        np.testing.assert_allclose(one["rewards"], other["rewards"], rtol=1e-5, atol=1e-5)
        assert one["score"] == pytest.approx(other["score"], rel=1e-5)


@pytest.mark.parametrize("asked", BODIES)
@pytest.mark.parametrize(
    ("listed", "packed"), [(LISTED, PACKED), (SPANNED, PACKED_SPANS)], ids=["ids", "spans"]
)
@pytest.mark.parametrize("encoding", ["float", "base64"])
async def test_msgpack_and_json_give_the_same_answers_in_every_mix(
    sourced_gateway: Any, asked: str, listed: dict[str, Any], packed: dict[str, Any], encoding: str
) -> None:
    if asked == "a reference" and listed is SPANNED:
        listed, packed = ({**item, "policy_logprobs": [-1.0, -2.0]} for item in (listed, packed))
    wrong = {"prompt": "2+2?", "response": ""}
    body = {
        **BODIES[asked],
        "items": [listed, wrong] if "combine" not in BODIES[asked] else [listed],
    }
    binary = {**body, "items": [packed, *body["items"][1:]]}
    async with sourced_gateway() as client:
        expected = await ask(client, body)
        same(await ask(client, binary, MSGPACK), expected)
        same(
            await ask(client, {**binary, "encoding_format": encoding}, MSGPACK, MSGPACK.name),
            expected,
        )
        same(
            await ask(client, {**binary, "encoding_format": encoding}, MSGPACK, JSON.name), expected
        )
        same(await ask(client, {**body, "encoding_format": encoding}, JSON, MSGPACK.name), expected)


@pytest.mark.parametrize("asked", ["one deployment", "two deployments"])
async def test_bin_reaches_the_deployments_as_bin(
    sourced_gateway: Any, sourced: Any, asked: str
) -> None:
    body = {**BODIES[asked], "items": [PACKED]}
    async with sourced_gateway() as client:
        await ask(client, body, MSGPACK)
    assert sourced["asked"]
    for _, headers, forwarded in sourced["asked"]:
        assert headers[b"content-type"] == MSGPACK.name.encode()
        assert forwarded["items"] == unpack(pack([PACKED]))


@pytest.mark.parametrize("sent", [JSON, MSGPACK])
@pytest.mark.parametrize("accept", ["*/*", JSON.name, MSGPACK.name])
@pytest.mark.parametrize(
    ("fields", "status", "code"),
    [
        ({"scorer": "nobody"}, 404, "unknown_scorer"),
        ({"scorer": "endogenous", "zzz": 1}, 422, "unknown_field"),
        ({"scorers": ["endogenous", "reward_model"], "zzz": 1}, 422, "unknown_field"),
        (
            {"scorers": ["endogenous", "reward_model"], "options": {"reward_model": {"zzz": 1}}},
            422,
            "unknown_option",
        ),
        (
            {"scorer": "endogenous", "credit": {"kl": {"coef": 1, "reference": "reward_model"}}},
            422,
            "invalid_field",
        ),
    ],
)
async def test_a_refusal_is_the_one_body_in_what_the_caller_reads(
    sourced_gateway: Any, sent: Media, accept: str, fields: dict[str, Any], status: int, code: str
) -> None:
    async with sourced_gateway() as client:
        reply = await ask(client, {"items": [SPANNED], **fields}, sent, accept, status)
    assert reply["error"]["code"] == code
    assert set(reply["error"]) == {"code", "message", "param", "retryable"}


@pytest.mark.parametrize(
    "body", [b"", b"\xc1", b"{}", pack([1]), pack({"scorer": "one"})[:-1], b"\x91" * 10_000]
)
async def test_what_is_no_msgpack_is_a_malformed_body_in_msgpack(
    sourced_gateway: Any, body: bytes
) -> None:
    async with sourced_gateway() as client:
        response = await client.post(
            "/v1/rewards", content=body, headers={"content-type": MSGPACK.name}
        )
    assert (response.status_code, response.headers["content-type"]) == (400, MSGPACK.name)
    assert unpack(response.content)["error"]["code"] == "malformed_body"


async def test_another_content_type_is_a_malformed_body_in_json(sourced_gateway: Any) -> None:
    async with sourced_gateway() as client:
        response = await client.post(
            "/v1/rewards", content=b"x", headers={"content-type": "text/plain"}
        )
    assert (response.status_code, response.json()["error"]["code"]) == (400, "malformed_body")


@pytest.mark.parametrize("field", ["options", "credit"])
async def test_bin_in_options_is_refused_whether_forwarded_or_split(
    sourced_gateway: Any, field: str
) -> None:
    body = {"items": [SPANNED], field: {"endogenous": {"a": b"x"}}}
    async with sourced_gateway() as client:
        alone = await ask(client, {**body, "scorers": ["endogenous"]}, MSGPACK, status=422)
        split = await ask(
            client, {**body, "scorers": ["endogenous", "reward_model"]}, MSGPACK, status=422
        )
    assert alone == split
    assert alone["error"]["param"] == f"{field}.endogenous.a"


@pytest.mark.parametrize("asked", BODIES)
async def test_the_client_gets_the_same_over_both_wires(sourced_gateway: Any, asked: str) -> None:
    """Through the gateway's own address, in a thread: the gateway lives on this test's loop."""
    import asyncio

    body = BODIES[asked]

    def over(url: str, wire: Any) -> Any:
        with Client(url, wire=wire) as client:
            return client.score([{**PACKED, "policy_logprobs": [-1.0, -2.5, -3.0]}], **body)[0]

    async with sourced_gateway() as client:
        listed, packed = [
            await asyncio.to_thread(over, str(client.base_url), wire)
            for wire in ("json", "msgpack")
        ]
    results = [(listed, packed)]
    if listed.scorers is not None:
        results = [(listed.scorers[name], packed.scorers[name]) for name in body["scorers"]]
    for one, other in results:
        assert other.rewards.dtype == np.float32
        np.testing.assert_allclose(one.rewards, other.rewards, rtol=1e-5, atol=1e-5)
        assert (one.version, one.model) == (other.version, other.model)

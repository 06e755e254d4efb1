"""msgpack over one replica's real HTTP: the numbers and the refusals of JSON, in what the caller
reads."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fakes.pages import code_blocks, page
from tokenreward.wire import decode_rewards, read_reply
from tokenreward.wire.limits import MAX_PLAIN_BYTES
from tokenreward.wire.media import JSON, MSGPACK, Media
from tokenreward.wire.msgpack import pack, unpack
from tokenreward_client import AsyncClient, Client, ServerRefused

PAGE = page("docs/http.md")

IDS: dict[str, Any] = {"prompt": [5, 6, 7], "response": [8, 90, 31]}
PACKED = {name: np.array(ids, np.int32) for name, ids in IDS.items()}
TEXT: dict[str, Any] = {"prompt": "2+2?", "response": "It is 4."}
BODY = {"scorer": "endogenous", "items": [IDS]}
KL = {"kl": {"coef": 0.5}}


@pytest.fixture
async def client(served: Any) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=served.url, timeout=20) as client:
        yield client


async def post(
    client: httpx.AsyncClient, body: Any, sent: Media, accept: str = "*/*"
) -> httpx.Response:
    content = body if isinstance(body, bytes) else sent.dump(body)
    return await client.post(
        "/v1/rewards", content=content, headers={"content-type": sent.name, "accept": accept}
    )


async def rewards(
    client: httpx.AsyncClient, body: Any, sent: Media, accept: str = "*/*"
) -> np.ndarray:
    response = await post(client, body, sent, accept)
    assert response.status_code == 200, response.content
    answered = MSGPACK if MSGPACK.name in (accept, sent.name) and accept != JSON.name else JSON
    assert response.headers["content-type"] == answered.name
    reply = read_reply(answered.load(response.content))
    assert reply.items[0].error is None
    assert isinstance(reply.items[0].rewards, bytes if answered is MSGPACK else (str, list))
    return decode_rewards(reply.items[0].rewards or b"")


@pytest.mark.parametrize("accept", ["*/*", JSON.name, MSGPACK.name])
@pytest.mark.parametrize("encoding", ["float", "base64"])
async def test_rewards_are_the_same_whatever_is_sent_and_whatever_is_asked_for(
    client: httpx.AsyncClient, accept: str, encoding: str
) -> None:
    expected = await rewards(client, BODY, JSON)
    for sent, item in ((JSON, IDS), (MSGPACK, IDS), (MSGPACK, PACKED)):
        got = await rewards(
            client, {**BODY, "items": [item], "encoding_format": encoding}, sent, accept
        )
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, expected, rtol=1e-5)


async def test_every_binary_vector_means_what_its_list_means(client: httpx.AsyncClient) -> None:
    item = {**TEXT, "spans": [[0, 2], [2, 8]], "mask": [1, 1]}
    item |= {"policy_logprobs": [-0.5, -1.25], "ref_logprobs": [-0.25, -2.0]}
    kinds = {
        "spans": np.int32,
        "mask": np.int32,
        "policy_logprobs": np.float32,
        "ref_logprobs": np.float32,
    }
    packed = {
        name: np.array(value, kinds[name]) if name in kinds else value
        for name, value in item.items()
    }
    body = {**BODY, "credit": KL}
    expected = await rewards(client, {**body, "items": [item]}, JSON)
    np.testing.assert_allclose(
        await rewards(client, {**body, "items": [packed]}, MSGPACK), expected, rtol=1e-5
    )
    masked = {**packed, "mask": np.array([1, 0], np.int32)}
    assert (await rewards(client, {**body, "items": [masked]}, MSGPACK))[1] == 0
    without = await rewards(client, {**BODY, "items": [packed]}, MSGPACK)
    np.testing.assert_allclose(without - expected, 0.5 * np.array([-0.25, 0.75]), atol=1e-4)


async def test_an_item_that_fails_fails_alone(client: httpx.AsyncClient) -> None:
    short = {**PACKED, "policy_logprobs": np.array([1.0], np.float32)}
    outside = {**PACKED, "response": np.array([-1], np.int32)}
    response = await post(client, {**BODY, "items": [short, PACKED, outside]}, MSGPACK)
    items = unpack(response.content)["items"]
    assert [item["error"] and item["error"]["code"] for item in items] == [
        "length_mismatch",
        None,
        "token_out_of_vocabulary",
    ]


async def test_several_scorers_and_their_sum_are_bin(client: httpx.AsyncClient) -> None:
    body = {
        "scorers": ["endogenous", "one"],
        "combine": {"endogenous": 2.0, "one": -1.0},
        "items": [PACKED],
    }
    (item,) = unpack((await post(client, {**body, "encoding_format": "base64"}, MSGPACK)).content)[
        "items"
    ]
    first, second = (decode_rewards(item["scorers"][name]["rewards"]) for name in body["scorers"])
    assert isinstance(item["rewards"], bytes)
    np.testing.assert_allclose(decode_rewards(item["rewards"]), 2 * first - second, rtol=1e-6)


@pytest.mark.parametrize("sent", [JSON, MSGPACK])
@pytest.mark.parametrize("accept", ["*/*", JSON.name, MSGPACK.name])
@pytest.mark.parametrize(
    ("fields", "status", "code"),
    [
        ({"scorer": "nobody"}, 404, "unknown_scorer"),
        ({"zzz": 1}, 422, "unknown_field"),
        ({"items": [{**IDS, "score": "x"}]}, 422, "invalid_field"),
        ({"items": [IDS] * 9}, 413, "too_many_items"),
        ({"min_version": 9}, 409, "version_not_reached"),
        ({"options": {"a": "x" * 30_000}}, 413, "body_too_large"),
    ],
)
async def test_a_refusal_has_the_one_body_in_what_the_caller_reads(
    client: httpx.AsyncClient,
    sent: Media,
    accept: str,
    fields: dict[str, Any],
    status: int,
    code: str,
) -> None:
    response = await post(client, {**BODY, **fields}, sent, accept)
    wanted = {JSON.name: JSON, MSGPACK.name: MSGPACK}.get(accept, sent)
    assert (response.status_code, response.headers["content-type"]) == (status, wanted.name)
    error = wanted.load(response.content)["error"]
    assert error["code"] == code
    assert set(error) == {"code", "message", "param", "retryable"}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        b"{}",
        pack([1]),
        pack(BODY)[:-1],
        pack(BODY) + b"\0",
        b"\x91" * 10_000,
        b"\xdd\xff\xff\xff\xff",
    ],
)
async def test_what_is_no_msgpack_is_refused_and_the_replica_lives_on(
    client: httpx.AsyncClient, body: bytes
) -> None:
    response = await post(client, body, MSGPACK)
    assert (response.status_code, response.headers["content-type"]) == (400, MSGPACK.name)
    assert unpack(response.content)["error"]["code"] == "malformed_body"
    assert len(await rewards(client, BODY, MSGPACK)) == 3


@pytest.mark.parametrize(
    "given", ["text/plain", "application/x-www-form-urlencoded", "application/cbor"]
)
async def test_another_content_type_is_a_malformed_body_in_json(
    client: httpx.AsyncClient, given: str
) -> None:
    response = await client.post(
        "/v1/rewards", content=JSON.dump(BODY), headers={"content-type": given}
    )
    assert (response.status_code, response.headers["content-type"]) == (400, JSON.name)
    error = response.json()["error"]
    assert error["code"] == "malformed_body"
    assert JSON.name in error["message"]
    assert MSGPACK.name in error["message"]


async def test_a_body_without_content_type_is_json(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/rewards", content=JSON.dump(BODY))
    assert response.status_code == 200
    assert response.json()["items"][0]["error"] is None


async def test_the_client_gets_the_same_over_both_wires(served: Any) -> None:
    items = [
        {
            **PACKED,
            "policy_logprobs": np.array([-1, -2, -3], np.float32),
            "ref_logprobs": [-1.1, -2.2, -3.3],
        },
        {**TEXT, "spans": np.array([[0, 2], [2, 8]]), "mask": [True, False]},
        TEXT,
    ]
    answers = []
    for wire in ("json", "msgpack"):
        async with AsyncClient(served.url, wire=wire) as client:  # type: ignore[arg-type]
            answers.append(
                await client.score(items[:2], return_tokens=True) + await client.score(items[2:])
            )
    for listed, packed in zip(*answers, strict=True):
        np.testing.assert_allclose(listed.rewards, packed.rewards, rtol=1e-5)
        assert (listed.model, listed.version) == (packed.model, packed.version)
        assert [token.id for token in listed.tokens or ()] == [
            token.id for token in packed.tokens or ()
        ]
        packed.rewards[...] = 0  # it is the caller's own


async def test_the_client_reads_a_refusal_over_msgpack(served: Any) -> None:
    async with AsyncClient(served.url, wire="msgpack") as client:
        with pytest.raises(ServerRefused) as caught:
            await client.score([TEXT], scorer="nobody")
    assert (caught.value.status, caught.value.code) == (404, "unknown_scorer")


WHOLE = pack(
    {
        "scorer": "endogenous",
        "items": [
            {**TEXT, "spans": np.array([[0, 2], [2, 8]], np.int32), "mask": np.ones(2, np.int32)},
            PACKED,
        ],
        "options": {"form": "logprob", "temperature": 0.5},
        "credit": {"name": "values", "scale": 2.0},
    }
)
EXT, NAN, DEEP = b"\xd4\x05a", b"\xcb\x7f\xf8" + bytes(6), b"\x91" * 300
ODD = [
    EXT,
    NAN,
    DEEP,
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\xc1",
    b"\x81\x01\x02",
]
ODD += [
    b"\xc0",
    b"\x90",
    b"\x80",
    b"\xa0",
    b"\xc4\x00",
    b"\xcf" + b"\xff" * 8,
    b"\xd3\x80" + bytes(7),
    b"\xa1\xff",
]
PLACE = st.integers(0, len(WHOLE))
EDITS = st.lists(
    st.tuples(PLACE, st.integers(0, 9), st.sampled_from(ODD) | st.binary(max_size=9)),
    min_size=1,
    max_size=3,
)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(edits=EDITS, end=st.none() | PLACE, repeats=st.sampled_from([1, 1, 1, 2]))
@example(edits=[(0, 0, b"")], end=None, repeats=1)
@example(edits=[(WHOLE.index(b"\xcb"), 9, NAN)], end=None, repeats=1)
def test_a_body_that_is_cut_or_changed_anywhere_is_answered_or_refused_and_never_a_failure(
    served: Any, edits: list[Any], end: int | None, repeats: int
) -> None:
    body = WHOLE
    for place, width, put in edits:
        body = body[:place] + put + body[place + width :]
    body = body[:end] * repeats
    with httpx.Client(base_url=served.url, timeout=20) as client:
        response = client.post("/v1/rewards", content=body, headers={"content-type": MSGPACK.name})
    assert response.headers["content-type"] == MSGPACK.name
    content = unpack(response.content)
    if response.status_code == 200:
        assert read_reply(content).items is not None
        return
    assert response.status_code in (400, 404, 413, 422)
    assert content["error"].keys() == {"code", "message", "param", "retryable"}
    assert content["error"]["retryable"] is False


def doubled(key: str, first: Any, second: Any) -> bytes:
    entries = b"".join(pack(part) for part in ("prompt", "2+2?", key, first, key, second))
    item = b"\x83" + entries
    return b"\x82" + pack("scorer") + pack("endogenous") + pack("items") + b"\x91" + item


async def test_of_a_key_that_comes_twice_the_last_counts_as_in_json(
    client: httpx.AsyncClient,
) -> None:
    as_json = (
        b'{"scorer":"endogenous","items":[{"prompt":"2+2?","response":"It","response":"It is 4."}]}'
    )
    expected = await rewards(client, as_json, JSON)
    np.testing.assert_allclose(
        await rewards(client, doubled("response", "It", "It is 4."), MSGPACK), expected, rtol=1e-5
    )


async def test_the_pages_example_runs_as_it_stands(client: httpx.AsyncClient, served: Any) -> None:
    (code,) = (text for text in code_blocks(PAGE, "python") if "msgspec" in text)
    found: dict[str, Any] = {}
    # One word is not the reader's: where the service is.
    await asyncio.to_thread(exec, code.replace("http://127.0.0.1:8000", served.url), found)
    assert found["rewards"].dtype == np.float32
    np.testing.assert_allclose(found["rewards"], await rewards(client, BODY, JSON), rtol=1e-5)
    assert len(found["rewards"]) == 3


def test_the_page_names_the_wire_that_the_client_speaks_unless_told() -> None:
    default = inspect.signature(Client.__init__).parameters["wire"].default
    assert f'Its default is `wire="{default}"`' in " ".join(PAGE.split())
    assert f"more than {MAX_PLAIN_BYTES // 2**20} MiB" in PAGE

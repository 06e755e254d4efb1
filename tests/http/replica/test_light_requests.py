"""What others wait for while a request is read: much of it is refused before it is read, or is read
on another thread."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import httpx
import msgspec
import pytest

from tokenreward.engine.slot import Slot
from tokenreward.errors import RequestError
from tokenreward.http.app import build_app
from tokenreward.http.body import LARGE_BODY_BYTES, parsed_size
from tokenreward.http.protocols import Protocol, find_protocols
from tokenreward.http.replica import ReplicaBackend
from tokenreward.http.request_limits import Limits
from tokenreward.metrics import Metrics
from tokenreward.settings import ProtocolSettings
from tokenreward.wire import media

NUM_BYTES = 16 * 2**20
LIMITS = Limits(max_body_bytes=NUM_BYTES, max_request_items=9, request_timeout_s=20)


class Serves:
    """An engine with a reward model that nobody asks."""

    def __init__(self) -> None:
        self.scorers: dict[str, Any] = {"reward_model": self}
        self.type = "reward_model"


async def client_of() -> httpx.AsyncClient:
    slot = Slot()
    await slot.put(Serves())  # type: ignore[arg-type]
    backend = ReplicaBackend("rm", slot, metrics=Metrics(), limits=LIMITS)
    transport = httpx.ASGITransport(build_app(backend))
    return httpx.AsyncClient(transport=transport, base_url="http://replica")


def filled(head: str, entry: str, tail: str) -> bytes:
    """As many entries as make a body of the largest size."""
    return (head + ",".join([entry] * (NUM_BYTES // (len(entry) + 1) - 99)) + tail).encode()


DIGITS = "7" * 4000
LARGE = {
    "ids": ("/classify", filled('{"input":[', "1", "]}")),
    "ids before a text": ("/classify", filled('{"input":[', "1", ',"a"]}')),
    "numbers": ("/pooling", filled('{"input":[', "1.5", "]}")),
    "values of a message": ("/classify", filled('{"messages":[{"x":[', "1", "]}]}")),
    "variables": ("/v1/embeddings", filled('{"chat_template_kwargs":{"a":[', "1", "]}}")),
    "unknown values": ("/score", filled('{"text_1":"a","text_2":"b","x":[', "true", "]}")),
    "labels": ("/get_reward", filled('{"query":["a"],"labels":[', "1", "]}")),
    "a label": ("/remote_rm", filled('{"prompt":"a","response":"b","label":[', "[]", "]}")),
    "images": ("/infer/", filled('{"infer_requests":[{"messages":[{}],"images":[', "1", "]}]}")),
    "flags": ("/generate", filled('{"input_ids":[1],"return_logprob":[', "true", "]}")),
    "lengths": (
        "/get_sequence_logprobs/",
        filled('{"sequences":[[1]],"prompt_lengths":[', "1", "]}"),
    ),
    "tokens": ("/inference/v1/generate", filled('{"token_ids":[', "1", "]}")),
    "sequences": ("/v1/completions", filled('{"prompt":[[', "1", "]]}")),
    "long numbers": ("/inference/v1/generate", filled('{"token_ids":[', DIGITS, "]}")),
    "a rollout of long numbers": ("/verify", filled('{"x":[', DIGITS, "]}")),
    "a rollout of values": ("/verify", filled('{"x":[', "1", "]}")),
    "texts": ("/v1/score/evaluation", filled('{"messages":[', '"a"', "]}")),
    "options of long numbers": ("/v1/rewards", filled('{"options":{"a":[', DIGITS, "]}}")),
    "many objects": (
        "/v1/rewards",
        filled('{"scorer":"a","items":[{"response":"a","prompt":[', '{"role":"u"}', "]}]}"),
    ),
}


@pytest.mark.parametrize("name", LARGE)
def test_a_body_of_many_values_is_refused_before_any_of_it_is_read(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Reading them keeps all other threads waiting, for up to a second."""

    def parse(*_: Any) -> None:
        raise AssertionError("it is read")

    monkeypatch.setattr(media, "parse_json", parse)
    path, body = LARGE[name]
    with pytest.raises(RequestError) as caught:
        protocol_at(path).parse(body)
    assert caught.value.status in (400, 413)
    assert len(caught.value.message) < 200


def protocol_at(path: str) -> Protocol:
    protocol = find_protocols()[path]({})
    protocol.plan = ProtocolSettings(scorer="reward_model")
    return protocol


MANY_ITEMS = {
    "JSON": (
        "/v1/rewards",
        {},
        json.dumps({"scorer": "a", "items": [{"prompt": "", "response": "a"}] * 5000}).encode(),
    ),
    "msgpack": (
        "/v1/rewards",
        {"content-type": "application/msgpack"},
        msgspec.msgpack.encode({"scorer": "a", "items": [{"prompt": "", "response": "a"}] * 5000}),
    ),
    "texts": ("/v1/score/evaluation", {}, json.dumps({"messages": ["a"] * 5000}).encode()),
}


@pytest.mark.parametrize("name", MANY_ITEMS)
async def test_a_small_body_of_many_items_is_read_on_another_thread(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """65,000 items have room in 250 kB. On the event loop they kept all others for a second."""
    threads: list[threading.Thread] = []
    path, headers, body = MANY_ITEMS[name]
    protocol = find_protocols()[path]
    read = protocol.read

    def noted(self: Protocol, content: bytes) -> Any:
        threads.append(threading.current_thread())
        return read(self, content)

    monkeypatch.setattr(protocol, "read", noted)
    async with await client_of() as client:
        answer = await client.post(path, content=body, headers=headers)
    assert len(body) < LARGE_BODY_BYTES
    assert answer.status_code == 413
    assert [thread.name[:6] for thread in threads] == ["bodies"]


def test_the_usual_request_is_read_at_once() -> None:
    text = "The answer is 4, because 2 and 2 are 4, as everybody knows. " * 8
    items = [{"prompt": text, "response": text}] * 64
    assert parsed_size(json.dumps({"scorer": "a", "items": items}).encode()) < LARGE_BODY_BYTES


HEADS = {
    "many headers": [(f"x-{number}", "") for number in range(3000)],
    "a long value": [("accept", "," * 2**17)],
    "a long name": [("a" * 2**17, "")],
}


@pytest.mark.parametrize("name", HEADS)
async def test_headers_of_many_bytes_are_refused_unread(name: str) -> None:
    async with await client_of() as client:
        usual = await client.get("/healthz", headers=[("accept", ", ".join(["text/html"] * 500))])
        answer = await asyncio.wait_for(client.get("/healthz", headers=HEADS[name]), 5)
    assert usual.status_code == 200
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (422, "invalid_field", "headers")
    assert "the limit is 65536" in error["message"]

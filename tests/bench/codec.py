"""The wire's figures: one reply of 64 vectors of 1,024 float32, written and read again, beside
lists in stdlib JSON.

What is timed is a body from float32 arrays and float32 arrays from the body: the service's own
writing, the client's own reading. No HTTP, no models.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from bench.figure import Figure
from bench.timing import in_turns
from tokenreward.wire import decode_rewards, encode_rewards
from tokenreward.wire.media import JSON, MSGPACK, Media
from tokenreward_client.call import Call
from tokenreward_client.media import WireName

NUM_VECTORS, LENGTH = 64, 1024
TARGETS: dict[WireName, int] = {"json": 40, "msgpack": 500}
MEDIA: dict[WireName, Media] = {"json": JSON, "msgpack": MSGPACK}
NAMES = {"json": "base64 in JSON", "msgpack": "msgpack"}
TIMES = {
    "lists": 1,
    "json": 10,
    "msgpack": 50,
}  # a measured slice takes milliseconds, however fast a call is
# per round; what is moved here fits a cache, and a neighbour's turn empties it: so the best slice
# counts
SLICES = 4

Reply = dict[str, Any]
Vectors = list[np.ndarray]


def codec(*, rounds: int) -> Iterator[Figure]:
    """Both encodings: the bytes and arrays alone, and with all that the client checks of a
    reply."""
    reply = a_reply()
    agree(reply)
    work = {"lists": lambda: lists(reply)}
    for name in TARGETS:
        work[name] = lambda name=name: ours(name, reply)  # type: ignore[misc]
        call = Call(
            [{"prompt": "", "response": np.arange(LENGTH)}] * NUM_VECTORS,
            "rm",
            {},
            name,
        )
        work[f"{name}, checked"] = lambda name=name, call=call: checked(name, call, reply)  # type: ignore[misc]
    clocked = {
        name: partial(milliseconds, function, TIMES[name.split(",")[0]])
        for name, function in work.items()
    }
    taken = in_turns(clocked, rounds=SLICES * rounds, num_unmeasured=1)
    best = {name: min(each) for name, each in taken.items()}
    for name, target in TARGETS.items():
        for suffix, bound in (("", target), (", checked", 0)):
            mine = best[name + suffix]
            title = (
                f"{NUM_VECTORS * LENGTH:,} rewards, "
                f"{NAMES[name]}{' and checks' if suffix else ''} / lists in json"
            )
            yield Figure(
                title,
                mine,
                best["lists"],
                best["lists"] / mine,
                bound,
                "CPU ms",
                note="best of all rounds",
            )


def a_reply() -> Reply:
    """As the engine gives it."""
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(NUM_VECTORS, LENGTH)).astype(np.float32)
    items = [
        {
            "index": index,
            "rewards": vector,
            "score": float(vector.sum()),
            "error": None,
            "tokens": None,
        }
        for index, vector in enumerate(vectors)
    ]
    head = {"id": "0" * 32, "scorer": "rm", "model": "a-model", "version": 1, "items": items}
    timing = {"queue_s": 0.001, "tokenize_s": 0.0, "compute_s": 0.012}
    return {
        **head,
        "usage": {"prompt_tokens": 64, "response_tokens": NUM_VECTORS * LENGTH},
        "timing": timing,
    }


def lists(reply: Reply) -> Vectors:
    """The rival: what a service and a client without a codec of their own would do."""
    items = [{**item, "rewards": item["rewards"].tolist()} for item in reply["items"]]
    body = json.dumps({**reply, "items": items}).encode()
    return [np.array(item["rewards"], dtype=np.float32) for item in json.loads(body)["items"]]


def ours(name: WireName, reply: Reply) -> Vectors:
    items = MEDIA[name].load(written(name, reply))["items"]
    return [decode_rewards(item["rewards"]) for item in items]


def checked(name: WireName, call: Call, reply: Reply) -> Vectors:
    """With indices, lengths and finite numbers checked, into what a caller of the client gets."""
    answers = call.read(written(name, reply), range(NUM_VECTORS))
    return [answer.rewards for answer in answers.values() if answer.rewards is not None]


def written(name: WireName, reply: Reply) -> bytes:
    """As the engine and the ingress do."""
    if name == "json":
        reply = {
            **reply,
            "items": [
                {**item, "rewards": encode_rewards(item["rewards"])} for item in reply["items"]
            ],
        }
    return MEDIA[name].dump(reply)


def agree(reply: Reply) -> None:
    """Every way gives the same bits, before anything is timed."""
    truth = np.stack([item["rewards"] for item in reply["items"]])
    for vectors in (lists(reply), ours("json", reply), ours("msgpack", reply)):
        assert np.stack(vectors).tobytes() == truth.tobytes()


def milliseconds(function: Callable[[], object], times: int) -> float:
    """CPU time of one call."""
    began = time.process_time()
    for _ in range(times):
        function()
    return (time.process_time() - began) / times * 1000

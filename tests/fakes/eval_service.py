"""A service over real HTTP whose answers are known, and a real one around real engines."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

from fakes import web
from fakes.edge import Edge, b64

ENTRY = {
    "name": "known",
    "type": "fake",
    "deployment": None,
    "model": "m",
    "version": 3,
    "options": {"a": {"default": 1}},
}


class Known(Edge):
    """Score: the number of digits in the response. Tokens: characters and end-of-turn; a digit's
    reward is its value.

    The response `fail` is an item error. `responses` has the response of every item that arrived,
    in order.
    """

    @property
    def responses(self) -> list[str]:
        return [item["response"] for body in self.bodies for item in body["items"]]

    def ok(self, body: dict[str, Any]) -> Response:
        return self.reply(
            [self.answer(index, item, body) for index, item in enumerate(body["items"])]
        )

    def answer(self, index: int, item: dict[str, Any], body: dict[str, Any]) -> dict[str, Any]:
        """The result of an item. Scorers that are asked together all say the same."""
        result = self.result(index, item, body)
        if "scorers" not in body:
            return result
        tokens = result.pop("tokens", None)
        del result["index"]
        own = {**result, "model": "m", "version": 3}
        return {"index": index, "tokens": tokens, "scorers": dict.fromkeys(body["scorers"], own)}

    def result(self, index: int, item: dict[str, Any], body: dict[str, Any]) -> dict[str, Any]:
        text = item["response"]
        if text == "fail":
            error = {
                "code": "sequence_too_long",
                "message": "it is too long",
                "param": f"items[{index}].response",
            }
            return {"index": index, "error": error}
        rewards = [float(char) if char.isdigit() else 0.0 for char in text] + [0.0]
        answer = {
            "index": index,
            "rewards": b64(rewards),
            "score": float(sum(map(str.isdigit, text))),
        }
        if body["return_tokens"]:
            ends = [*range(1, len(text) + 1), len(text)]
            tokens = zip([*text, "<|end|>"], [0, *ends[:-1]], ends, strict=True)
            answer["tokens"] = [
                {"id": 0, "text": char, "span": [start, end]} for char, start, end in tokens
            ]
        return answer


@contextmanager
def known() -> Iterator[Known]:
    """A Known that answers, in a thread of its own."""
    service = Known(listing={"scorers": [{**ENTRY}, {**ENTRY, "name": "second"}]})
    routes = [
        Route("/v1/rewards", service.post, methods=["POST"]),
        Route("/v1/scorers", service.list_scorers),
    ]
    with web.serving(Starlette(routes=routes)) as url:
        service.url = url
        yield service


@contextmanager
def replica(
    checkpoint: str, task: str, scorers: Sequence[dict[str, Any]], **settings: Any
) -> Iterator[str]:
    """The URL of one replica's application around a real engine."""
    from tokenreward.engine import Engine
    from tokenreward.engine.slot import Slot
    from tokenreward.http.app import build_app
    from tokenreward.http.replica import ReplicaBackend
    from tokenreward.http.request_limits import Limits
    from tokenreward.metrics import Metrics
    from tokenreward.settings import DeploymentSettings

    entry = {
        "name": "one",
        "checkpoint": checkpoint,
        "task": task,
        "device": "cpu",
        "scorers": scorers,
        **settings,
    }
    slot = Slot()
    engine = Engine.load(DeploymentSettings.model_validate(entry), say=lambda line: None)
    asyncio.run(slot.put(engine))
    limits = Limits(max_body_bytes=2**26, max_request_items=4096, request_timeout_s=300.0)
    backend = ReplicaBackend("one", slot, metrics=Metrics(), limits=limits)
    with web.serving(build_app(backend)) as url:
        yield url

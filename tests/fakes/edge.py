"""A real HTTP server on a free port whose replies a test scripts, one per POST."""

from __future__ import annotations

import asyncio
import base64
import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from fakes import web
from tokenreward_client import Rewards

Answer = Callable[[dict[str, Any]], Response]


def b64(rewards: list[float]) -> str:
    return base64.b64encode(np.asarray(rewards, dtype="<f4").tobytes()).decode()


@dataclass
class Edge:
    """A service that scores an item with spans and the response "r7" with 7 on every unit.

    Attributes:
        url: Where it answers.
        listing: The body of `GET /v1/scorers`; None for a 404.
        listing_status: The status of that reply.
        listing_delay_s: Seconds before that reply.
        script: Replies to the next POSTs. Without any left, the rule above answers.
        num_listed: How often the listing was asked for.
        listing_headers: The headers of those requests.
        seen: Path, headers and body of each POST.
        delay_s: Seconds before the reply to a POST.
        in_flight: One mark for each POST that is not answered yet.
        most_in_flight: The most of these at a time.
    """

    url: str = ""
    listing: dict[str, Any] | None = None
    listing_status: int = 200
    listing_delay_s: float = 0.0
    script: deque[Answer] = field(default_factory=deque)
    num_listed: int = 0
    listing_headers: list[dict[str, str]] = field(default_factory=list)
    seen: list[tuple[str, dict[str, str], dict[str, Any]]] = field(default_factory=list)
    delay_s: float = 0.0
    in_flight: set[object] = field(default_factory=set)
    most_in_flight: int = 0

    @property
    def bodies(self) -> list[dict[str, Any]]:
        return [body for _, _, body in self.seen]

    @property
    def paths(self) -> list[str]:
        return [path for path, _, _ in self.seen]

    def items(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        return [self.item(index, item) for index, item in enumerate(body["items"])]

    def item(self, index: int, item: dict[str, Any]) -> dict[str, Any]:
        value = float(item["response"][1:])
        return {"index": index, "rewards": b64([value] * len(item["spans"])), "score": value}

    def reply(self, items: list[dict[str, Any]], **fields: Any) -> Response:
        usage = {"prompt_tokens": 1, "response_tokens": 1}
        timing = {"queue_s": 0.0, "tokenize_s": 0.0, "compute_s": 0.0}
        body = {
            "id": "x",
            "scorer": "endogenous",
            "model": "m",
            "version": 3,
            "usage": usage,
            "timing": timing,
        }
        return Response(
            json.dumps({**body, "items": items, **fields}), media_type="application/json"
        )

    def ok(self, body: dict[str, Any]) -> Response:
        return self.reply(self.items(body))

    def changed(self, index: int, /, **fields: Any) -> Answer:
        """The reply of the rule, in which item `index` has these fields."""

        def answer(body: dict[str, Any]) -> Response:
            items = self.items(body)
            items[index] |= fields
            return self.reply(items)

        return answer

    def says(
        self, status: int, code: str, *, retryable: bool, param: str = "items", **headers: str
    ) -> Answer:
        """A reply with the service's error body. `Retry_After="0"` becomes a header."""
        error = {"code": code, "message": "as scripted", "param": param, "retryable": retryable}
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return lambda body: JSONResponse({"error": error}, status, named)

    def html(self, status: int) -> Answer:
        return lambda body: Response("<html>Bad Gateway</html>", status, media_type="text/html")

    def broken(self, body: dict[str, Any]) -> Response:
        """Promises more bytes than it sends: the server then closes the connection in the middle of
        the body."""
        return Response(b'{"id', headers={"content-length": "1000"})

    async def post(self, request: Request) -> Response:
        body = await request.json()
        self.seen.append((request.url.path, dict(request.headers), body))
        answer = self.script.popleft() if self.script else self.ok
        mark = object()
        self.in_flight.add(mark)
        self.most_in_flight = max(self.most_in_flight, len(self.in_flight))
        await asyncio.sleep(self.delay_s)
        self.in_flight.discard(mark)
        return answer(body)

    async def list_scorers(self, request: Request) -> Response:
        self.num_listed += 1
        self.listing_headers.append(dict(request.headers))
        await asyncio.sleep(self.listing_delay_s)
        if self.listing is None:
            return Response("not here", 404)
        return JSONResponse(self.listing, self.listing_status)


def keyed(index: int, **scorers: dict[str, Any]) -> dict[str, Any]:
    """An item of the reply to a request with `scorers`."""
    return {"index": index, "scorers": scorers}


def scores(answers: Sequence[Rewards]) -> list[float | None]:
    return [answer.score for answer in answers]


@contextmanager
def serving() -> Iterator[Edge]:
    """An Edge that answers on a thread of its own."""
    edge = Edge()
    routes = [
        Route("/v1/rewards", edge.post, methods=["POST"]),
        Route("/{prefix}/{deployment}/v1/rewards", edge.post, methods=["POST"]),
        Route("/v1/scorers", edge.list_scorers),
    ]
    with web.serving(Starlette(routes=routes)) as url:
        edge.url = url
        yield edge

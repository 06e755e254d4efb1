"""A deployment whose answers a test writes, as the gateway meets it over HTTP."""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

Answering = Callable[[Request], Awaitable[Response]]
LOG_PROBS = base64.b64encode(np.array([-2.0, -3.0], dtype="<f4").tobytes()).decode()
LISTING = {
    "scorers": [
        {"name": name, "tokenizer": "t", "log_probs_options": {"form": "logprob"}}
        for name in ("endogenous", "one", "two")
    ]
}


class ScriptedDeployment:
    """A deployment whose answer the test writes, and its listing, too, if `listing` is None."""

    def __init__(self) -> None:
        self.answer: Answering | None = None
        self.listing: dict[str, Any] | None = LISTING
        self.num_listed = 0
        self.requests: list[Request] = []
        self.bodies: list[bytes] = []
        self.is_waiting = False
        self.hung_up = False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        request = Request(scope, receive)
        if request.method == "GET" and self.listing is not None:
            self.num_listed += 1
            await JSONResponse(self.listing)(scope, receive, send)
            return
        self.requests.append(request)
        self.bodies.append(await request.body())
        assert self.answer is not None
        response = await self.answer(request)
        await response(scope, receive, send)

    async def hang(self, request: Request) -> Response:
        """Answers nothing until the caller hangs up."""
        self.is_waiting = True
        while (await request.receive())["type"] != "http.disconnect":
            pass
        self.hung_up = True
        return Response()


def reply(items: list[dict[str, Any]], *, seconds: float = 0.5, **fields: Any) -> dict[str, Any]:
    usage = dict.fromkeys(("prompt_tokens", "response_tokens"), len(items))
    timing = dict.fromkeys(("queue_s", "tokenize_s", "compute_s"), seconds)
    body = {"id": "x", "model": "m", "version": 1, "usage": usage, "timing": timing}
    return {
        **body,
        "items": [{"index": i, "error": None, **item} for i, item in enumerate(items)],
        **fields,
    }


def answers(*, lm: Any, rm: Any) -> Answering:
    """What each deployment answers: plain objects, a Response, or a function that gives either."""

    async def answer(request: Request) -> Response:
        content = lm if "/d/lm/" in request.url.path else rm
        if callable(content) and not isinstance(content, Response):
            content = await content(request)
        return content if isinstance(content, Response) else JSONResponse(content)

    return answer

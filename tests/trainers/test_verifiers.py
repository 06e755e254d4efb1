"""verifiers' own traces and scoring decorators with our score."""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from fakes import published
from tokenreward_client import AsyncClient, BadArgument, Client
from tokenreward_client.trainers.verifiers import trace_score

SITE = published.site()
MISSING = (
    "acp", "anthropic", "fastmcp", "gepa", "jiter", "math_verify", "mcp", "msgpack",
    "prime_sandboxes", "rich", "textual", "tomli_w", "zmq",
)  # fmt: skip
USER, REPLY = {"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "It is 4."}


@pytest.fixture(scope="module")
def verifiers() -> Iterator[Any]:
    """Gives a module of verifiers by its name; its package's `__init__` would load its servers."""
    with published.importable(SITE, missing=MISSING):
        package = types.ModuleType("verifiers.v1")
        package.__path__ = [str(SITE / "verifiers" / "v1")]
        importlib.import_module("verifiers")
        sys.modules["verifiers.v1"] = package
        yield lambda name: importlib.import_module(f"verifiers.v1.{name}")
        del sys.modules["verifiers.v1"]


@pytest.fixture
async def asking(url: str) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(url) as client:
        yield client


def trace_of(verifiers: Any, *messages: dict[str, Any]) -> Any:
    node = verifiers("graph").MessageNode
    nodes = [
        node(parent=place - 1 if place else None, message=message, sampled=place > 0)
        for place, message in enumerate(messages)
    ]
    kind = verifiers("trace").Trace
    return kind.model_construct(nodes=nodes, calls=[], mm_token_type_id_map={}, id="a trace")


async def test_a_reward_method_gives_the_native_score(
    verifiers: Any, asking: AsyncClient, client: Client
) -> None:
    decorators = verifiers("utils.decorators")

    class Task:
        @decorators.reward(weight=1.0)
        async def helpful(self, trace: Any) -> float:
            return await trace_score(asking, trace, "reward_model")

    (method,) = decorators.discover_decorated(Task(), "reward")
    [value] = await decorators.invoke_all([method], {"trace": trace_of(verifiers, USER, REPLY)})
    [answer] = client.score([([USER], "It is 4.")], "reward_model")
    assert value == pytest.approx(answer.score, abs=1e-6)


async def test_a_trace_without_a_reply_is_refused(verifiers: Any) -> None:
    with pytest.raises(BadArgument, match="does not end in a reply"):
        await trace_score(AsyncClient("http://x"), trace_of(verifiers, USER))

"""How each server is asked for an item's numbers, and how they are read out of its reply. It sends
nothing.

What they are called: `endogenous`, the soft-Bellman reward of each response token; `logprob`, its
log-probability; `reward_model`, the score; `values`, the reward model's value at each response
token.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from bench.server import Server
from bench.workload import Item

Numbers = Literal["endogenous", "logprob", "reward_model", "values"]
DEPLOYMENT = {"endogenous": "lm", "logprob": "lm", "reward_model": "rm", "values": "rm"}
TASK: dict[str, str] = {"lm": "causal_lm", "rm": "reward_model"}


@dataclass(frozen=True)
class Side:
    """One server, asked for one kind of numbers. `read(reply, item)` gives a vector."""

    name: str
    server: Server
    url: str
    body: Callable[[Item], dict[str, Any]]
    read: Callable[[Any, Item], np.ndarray]

    def bodies(self, items: list[Item]) -> list[str]:
        return [json.dumps(self.body(item)) for item in items]

    def numbers(self, replies: list[str], items: list[Item]) -> list[np.ndarray]:
        """One vector per item. Raises if a reply has none."""
        pairs = zip(replies, items, strict=True)
        return [
            np.atleast_1d(self.read(json.loads(reply), item)).astype(np.float64)
            for reply, item in pairs
        ]


def ours(server: Server, url: str, numbers: Numbers) -> Side:
    """Straight to the deployment, as our client goes."""
    scorer = "reward_model" if numbers == "values" else numbers
    credit = {"credit": {"name": "values"}} if numbers == "values" else {}

    def body(item: Item) -> dict[str, Any]:
        ids = {"prompt": _packed(item.prompt), "response": _packed(item.response)}
        return {"scorer": scorer, "items": [ids], "encoding_format": "base64", **credit}

    def read(reply: Any, item: Item) -> np.ndarray:
        (answer,) = reply["items"]
        return (
            np.asarray(answer["score"]) if numbers == "reward_model" else _floats(answer["rewards"])
        )

    return Side("ours", server, f"{url}/d/{DEPLOYMENT[numbers]}/v1/rewards", body, read)


def serve_rm(server: Server, url: str) -> Side:
    """One sequence per request, whatever it computes."""

    def body(item: Item) -> dict[str, Any]:
        return {"query": [item.ids.tolist()], "start": [len(item.prompt)]}

    return Side(
        "serve_rm",
        server,
        f"{url}/get_reward",
        body,
        lambda reply, item: np.asarray(reply["rewards"][0]),
    )


def lit_server(server: Server, url: str) -> Side:
    def body(item: Item) -> dict[str, Any]:
        return {"query": item.ids.tolist(), "start": len(item.prompt)}

    return Side(
        "LitServe", server, f"{url}/predict", body, lambda reply, item: np.asarray(reply["rewards"])
    )


def vllm(server: Server, url: str, numbers: Numbers) -> Side:
    """The response's tokens of what it gives for every token."""
    if numbers == "values":
        return Side("vLLM", server, f"{url}/pooling", _pooling_body, _pooled_values)
    return Side("vLLM", server, f"{url}/v1/completions", _completion_body, _prompt_log_probs)


def _pooling_body(item: Item) -> dict[str, Any]:
    how = {"task": "token_classify", "use_activation": False, "encoding_format": "base64"}
    return {"model": "model", "input": item.ids.tolist(), **how}


def _pooled_values(reply: Any, item: Item) -> np.ndarray:
    (answer,) = reply["data"]
    return _floats(answer["data"])[len(item.prompt) :]


def _completion_body(item: Item) -> dict[str, Any]:
    """It must write a token to be asked at all."""
    return {
        "model": "model",
        "prompt": item.ids.tolist(),
        "max_tokens": 1,
        "prompt_logprobs": 0,
        "temperature": 0,
    }


def _prompt_log_probs(reply: Any, item: Item) -> np.ndarray:
    (choice,) = reply["choices"]
    found = choice["prompt_logprobs"][len(item.prompt) :]
    return np.asarray(
        [each[str(token)]["logprob"] for each, token in zip(found, item.response, strict=True)]
    )


def _packed(ids: np.ndarray) -> dict[str, str]:
    return {"ids_b64": base64.b64encode(ids.astype("<i4").tobytes()).decode()}


def _floats(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype="<f4")

"""What the callers of the soak ask: items of many shapes, and which requests are made of them."""

from __future__ import annotations

from random import Random
from typing import Any

from tokenreward.wire import encode_ids

SFT, RM = "sft", "rm"
DEPLOYMENTS: dict[str, dict[str, Any]] = {
    SFT: {
        "name": SFT,
        "checkpoint": "demo:sft",
        "task": "causal_lm",
        "scorers": [{"type": "logprob"}, {"type": "entropy"}],
    },
    RM: {
        "name": RM,
        "checkpoint": "demo:rm",
        "task": "reward_model",
        "scorers": [{"type": "reward_model"}, {"type": "attention_dense"}],
    },
}
SCORERS = {"logprob": SFT, "entropy": SFT, "reward_model": RM, "attention_dense": RM}
SETS = [*([name] for name in SCORERS), ["logprob", "entropy"], ["entropy", "reward_model"]]
SIZES = (1, 1, 2, 5, 20, 60)

_QUESTION = [{"role": "user", "content": "Who is the manager, and since when?"}]
_GOOD: list[dict[str, Any]] = [
    {"prompt": "2+2?", "response": "It is 4."},
    {"prompt": _QUESTION, "response": "The manager is Helga Wold.\nSince May."},
    {
        "prompt": [{"role": "system", "content": "Be brief."}, *_QUESTION],
        "response": "Ask me. " * 9,
    },
    {"prompt": "Who?", "response": "I do not know.", "finished": False},
    {"prompt": "Who?", "response": "It is 4.", "spans": [[0, 3], [3, 6], [6, 8]]},
    {"prompt": "Who?", "response": "It is 4.", "spans": [[0, 3], [3, 8]], "mask": [1, 0]},
    {"prompt": "Grüße, 東京?", "response": "Ja, здравствуйте \U0001f468\u200d\U0001f469!"},
    {"prompt": [5, 6, 7], "response": [8, 9, 10, 11]},
    {"prompt": encode_ids([5] * 40), "response": encode_ids(range(5, 90))},
    {"prompt": "Why? " * 30, "response": "Because of the rain. " * 12},
]
_BAD: list[tuple[str, dict[str, Any]]] = [
    ("token_out_of_vocabulary", {"prompt": [5], "response": [6, 10**6]}),
    ("spans_do_not_tile", {"prompt": "Who?", "response": "It is 4.", "spans": [[0, 3], [4, 8]]}),
    ("length_mismatch", {"prompt": [5], "response": [6, 7], "mask": [1]}),
    ("empty_response", {"prompt": [5], "response": []}),
    ("sequence_too_long", {"prompt": [5], "response": [6] * 5000}),
]
_VARIED = [
    {
        "prompt": f"Question {number}: who is the manager of team {number % 7}, and since when?",
        "response": "The manager is Helga Wold. " * (1 + number % 6),
    }
    for number in range(40)
]
ITEMS: list[dict[str, Any]] = [*_GOOD, *(item for _, item in _BAD), *_VARIED]
ERRORS = {len(_GOOD) + place: code for place, (code, _) in enumerate(_BAD)}

# Requests that are wrong as a whole, with the error that each deserves.
REFUSED: list[tuple[bytes, int, str]] = [
    (b"{", 400, "malformed_json"),
    (b'{"scorer": "nobody", "items": []}', 404, "unknown_scorer"),
    (
        b'{"scorer": "logprob", "items": [{"prompt": [5], "response": [6]}], "colour": 1}',
        422,
        "unknown_field",
    ),
    (b'{"scorer": "logprob", "items": [{"prompt": 5}]}', 422, "invalid_field"),
]


def body(scorers: list[str], places: list[int]) -> dict[str, Any]:
    """A request for these items."""
    items = [ITEMS[place] for place in places]
    if len(scorers) == 1:
        return {"scorer": scorers[0], "items": items}
    return {"scorers": scorers, "items": items}


def route(scorers: list[str], random: Random) -> str:
    """The gateway, or the deployment where one has all of the scorers."""
    deployments = {SCORERS[name] for name in scorers}
    if len(deployments) == 1 and random.random() < 0.5:
        return f"/d/{deployments.pop()}/v1/rewards"
    return "/v1/rewards"

"""OpenRLHF's remote reward model, `POST /get_reward`: `--reward.remote_url` may name this service.

    {"query": ["2+2?4"], "prompts": ["2+2?"], "labels": ["4"]}
    -> {"rewards": [0.7], "scores": [0.7], "extra_logs": {"version": [1]}}

`query` is the prompt and the response behind it, as the trainer's tokenizer decodes them with their
special tokens. Both are read as raw text. `rewards` has the score of the first scorer of type
`reward_model`, once for each query, and `scores` has the same. OpenRLHF sends `labels` to servers
that compare responses with them; a reward model does not.

The trainer sends one query at a time. With several URLs it sends empty batches to all but the
first, so an empty batch is answered with empty lists. Any status but 2xx is a failure, which it
tries again. It knows no errors of single queries: one query that fails is the failure of the
request.

Client: openrlhf/utils/agent.py and (to version 0.9) openrlhf/utils/remote_rm_utils.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

from tokenreward.errors import InternalError, InvalidField, RequestError, UnknownScorer
from tokenreward.http.protocols import Protocol
from tokenreward.wire import Item, Reply, RewardsRequest
from tokenreward.wire.media import JSON

_TYPE = "reward_model"


class _Batch(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    query: list[str]
    prompts: list[str]
    labels: Any = None


class OpenRlhf(Protocol):
    """A score per query."""

    path = "/get_reward"

    def read(self, body: bytes, scorers: Mapping[str, str]) -> RewardsRequest | None:
        batch = JSON.parse(_Batch, body)
        if len(batch.prompts) != len(batch.query):
            raise InvalidField(
                f"there are {len(batch.prompts)} prompts for {len(batch.query)} queries",
                param="prompts",
            )
        scorer = next((name for name, type_ in scorers.items() if type_ == _TYPE), None)
        if scorer is None:
            raise UnknownScorer(f"no scorer of type `{_TYPE}` is served")
        items = []
        for index, (query, prompt) in enumerate(zip(batch.query, batch.prompts, strict=True)):
            if not query.startswith(prompt):
                raise InvalidField(
                    f"it must begin with `prompts[{index}]`: what follows is the response",
                    param=f"query[{index}]",
                )
            items.append(Item(prompt=prompt, response=query.removeprefix(prompt)))
        if not items:
            return None
        return RewardsRequest(scorer=scorer, items=items)

    def write(self, reply: Reply) -> bytes:
        scores = []
        for item in reply.items:
            if item.error is not None:
                kind = InternalError if item.error.retryable else InvalidField
                message = f"{item.error.message} ({item.error.code})"
                raise kind(message, param=f"query[{item.index}]")
            if item.score is None:
                raise InternalError("the scorer gives no score", param=f"query[{item.index}]")
            scores.append(item.score)
        logs = {}
        if reply.version is not None:
            # The trainer makes tensors of its logs: numbers alone, one for each query.
            logs["version"] = [reply.version] * len(scores)
        return JSON.dump({"rewards": scores, "scores": scores, "extra_logs": logs})

    def write_error(self, error: RequestError) -> tuple[int, bytes]:
        """As FastAPI says it, which OpenRLHF's own server is made with."""
        param = (error.param or "").replace("items[", "query[", 1)
        detail = {"code": error.code, "message": error.message, "param": param or None}
        return error.status, JSON.dump({"detail": detail})

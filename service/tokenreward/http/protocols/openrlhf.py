"""OpenRLHF's remote reward model, `POST /get_reward`: `--reward.remote_url` may name this service.

    {"query": ["2+2?4"], "prompts": ["2+2?"], "labels": ["4"]}
    -> {"rewards": [0.7], "scores": [0.7], "extra_logs": {"version": [1]}}

`query` is the prompt and the response behind it, as the trainer's tokenizer decodes them with their
special tokens. Both are read as raw text. Without `prompts` a query is the text of a whole
conversation, and the response is the last assistant turn in it. `rewards` has a score for each
query, and `scores` has the same. OpenRLHF sends `labels` to servers that compare responses with
them; a reward model does not.

The trainer sends one query at a time. With several URLs, versions before 0.11.1 send empty batches
to all but the first, so an empty batch is answered with empty lists. Any status but 2xx is a
failure, which it tries again, five times in as many seconds. It knows no errors of single queries:
one query that fails is the failure of the request.

Client: openrlhf/utils/agent.py and (to version 0.9) openrlhf/utils/remote_rm_utils.py.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict

from tokenreward.errors import InvalidField, RequestError
from tokenreward.http.protocols import Protocol
from tokenreward.http.protocols._answers import ListOf, as_list, detail_of, refuse_many, scores_of
from tokenreward.wire import Item, Reply, RewardsRequest
from tokenreward.wire.media import JSON

_Texts = Annotated[ListOf[str], BeforeValidator(as_list)]


class _Batch(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    query: _Texts
    prompts: _Texts | None = None
    labels: Any = None


class OpenRlhf(Protocol):
    """A score per query."""

    paths = ("/get_reward", "/get_reward/")
    example = '{"query": ["2+2?It is 4."], "prompts": ["2+2?"], "labels": ["4"]}'
    patience_s = 150.0  # of the 180 s after which a try ends; five tries are over within seconds

    def read(self, body: bytes) -> RewardsRequest | None:
        batch = JSON.parse(_Batch, body)
        queries, prompts = batch.query, batch.prompts
        refuse_many(queries, "query")
        if prompts is None:
            return self.request(
                [Item(prompt="", response=query, whole="conversation") for query in queries]
            )
        if len(prompts) != len(queries):
            raise InvalidField(
                f"there are {len(prompts)} prompts for {len(queries)} queries", param="prompts"
            )
        items = []
        for index, (query, prompt) in enumerate(zip(queries, prompts, strict=True)):
            if not query.startswith(prompt):
                raise InvalidField(
                    f"it must begin with `prompts[{index}]`: what follows is the response",
                    param=f"query[{index}]",
                )
            items.append(Item(prompt=prompt, response=query.removeprefix(prompt)))
        return self.request(items)

    def write(self, reply: Reply) -> bytes:
        scores = scores_of(reply, "query")
        logs = {}
        if scores and reply.version is not None:
            # The trainer makes tensors of its logs: numbers alone, one for each query.
            logs["version"] = [reply.version] * len(scores)
        return JSON.dump({"rewards": scores, "scores": scores, "extra_logs": logs})

    def write_error(self, error: RequestError) -> tuple[int, bytes]:
        """As FastAPI says it, which OpenRLHF's own server is made with."""
        return error.status, JSON.dump({"detail": detail_of(error, "query")})

"""LLaMA-Factory's reward server, `POST /v1/score/evaluation`: `reward_model_type: api`.

    {"model": "model", "messages": ["<prompt and response>", ...]}
    -> {"id": "...", "object": "score.evaluation", "model": "...", "scores": [1.25, ...]}

A message is one text, as the trainer's tokenizer decodes it, special tokens included. What is
scored is the last assistant turn in it, as the reward model's chat template writes turns; a text
without one is refused. The trainer's template must write turns in the same way. End-of-turn counts
where the text has it.

The trainer has no time limit, never tries again, and does not look at the status: it fails on
`scores` missing from an error's body. So requests are held while the service is overloaded.

Client: src/llamafactory/train/ppo/ppo_utils.py, `get_rewards_from_server`.
"""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict

from tokenreward.errors import InvalidField, RequestError
from tokenreward.http.protocols import Protocol
from tokenreward.http.protocols._answers import ListOf, as_list, param_of, refuse_many, scores_of
from tokenreward.wire import Item, Reply, RewardsRequest
from tokenreward.wire.media import JSON


class _Evaluation(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    model: str | None = None
    messages: Annotated[ListOf[str], BeforeValidator(as_list)]
    max_length: int | None = None


class LlamaFactory(Protocol):
    """A score per message."""

    paths = ("/v1/score/evaluation", "/v1/score/evaluation/")
    example = (
        '{"model": "model", "messages": ["<|bos|><|user|>2+2?<|end|><|assistant|>It is 4.<|end|>"]}'
    )
    patience_s = math.inf  # to the deadline

    def read(self, body: bytes) -> RewardsRequest | None:
        content = JSON.parse(_Evaluation, body)
        if not content.messages:
            raise InvalidField("there are no messages", param="messages")
        refuse_many(content.messages, "messages")
        if content.max_length is not None:
            raise InvalidField("nothing is truncated here", param="max_length")
        self._model = content.model
        return self.request(
            [
                Item(prompt="", response=text, finished=False, whole="conversation")
                for text in content.messages
            ]
        )

    def write(self, reply: Reply) -> bytes:
        return JSON.dump(
            {
                "id": f"scoreval-{reply.id}",
                "object": "score.evaluation",
                "model": self._model or reply.model,
                "scores": scores_of(reply, "messages"),
            }
        )

    def write_error(self, error: RequestError) -> tuple[int, bytes]:
        """As FastAPI says it, which LLaMA-Factory's own server is made with."""
        where = param_of(error, "messages")
        detail = error.message if where is None else f"{where}: {error.message}"
        return error.status, JSON.dump({"detail": detail})

"""slime's remote reward model, `POST /remote_rm`: `--rm-type remote_rm --rm-url` may name it.

    {"prompt": "2+2?", "response": "4", "label": "4"}          to /remote_rm
    -> 0.7
    the same, with `--reward-key score`                         to /remote_rm/score
    -> {"score": 0.7, "token_rewards": [0.0, 0.7], "token_ids": [19, 1], "version": 1}

`prompt` is raw text or chat messages, `response` is text, which ends its turn. slime takes the
whole answer as the sample's reward: a bare number, or with `--reward-key` an object in which it
reads that key. `token_rewards` has one number per token of `token_ids`, which are the reward
model's tokens; credit, and options such as `red`, come from the settings. `label` is for servers
that compare responses with it.

slime tries any failure ten times and waits 120 s for each. miles, which sends the same, never tries
again: requests are held while the service is overloaded.

Client: slime/rollout/rm_hub/__init__.py, `remote_rm`.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from tokenreward.errors import InternalError, RequestError
from tokenreward.http.protocols import Protocol
from tokenreward.http.protocols._answers import ListOf, own_param, scores_of
from tokenreward.wire import Item, Reply, RewardsRequest, parse
from tokenreward.wire.media import JSON


class _RemoteSample(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    prompt: str | ListOf[dict[str, Any]]
    response: str
    label: Any = None


class Slime(Protocol):
    """A score, or a score with rewards of tokens, for one sample."""

    paths = ("/remote_rm", "/remote_rm/", "/remote_rm/score", "/remote_rm/score/")
    example = (
        '{"prompt": [{"role": "user", "content": "2+2?"}], "response": "It is 4.", "label": "4"}'
    )
    gives_token_rewards = True
    patience_s = 90.0

    @property
    def _has_key(self) -> bool:
        """Whether the caller reads a key of an object, and no bare number."""
        return self.path.rstrip("/").endswith("/score")

    def read(self, body: bytes) -> RewardsRequest | None:
        sample = JSON.parse(_RemoteSample, body)
        item = parse(Item, {"prompt": sample.prompt, "response": sample.response})
        return self.request([item], return_tokens=self._has_key)

    def write(self, reply: Reply) -> bytes:
        (score,) = scores_of(reply, None)
        if not self._has_key:
            return JSON.dump(score)
        (item,) = reply.items
        if item.rewards is None or item.tokens is None:
            raise InternalError("the scorer gives no rewards")
        content: dict[str, Any] = {"score": score, "token_rewards": item.rewards}
        content |= {"token_ids": [token.id for token in item.tokens], "version": reply.version}
        return JSON.dump(content)

    def write_error(self, error: RequestError) -> tuple[int, bytes]:
        detail = {"code": error.code, "message": error.message, "param": own_param(error) or None}
        return error.status, JSON.dump({"error": detail})

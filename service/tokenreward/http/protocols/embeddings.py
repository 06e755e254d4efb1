"""SGLang's reward models, `POST /v1/embeddings`: an embedding of one number, the score.

    {"model": "rm", "input": "<templated conversation>"}
    -> {"data": [{"object": "embedding", "index": 0, "embedding": [-3.28]}], ...}

Inputs are those of `/classify`. With `encoding_format: base64` an embedding is base64 of a
little-endian float32, as the OpenAI SDK asks for it by default.

Client: verl/experimental/reward_loop/reward_loop.py, `compute_score_disrm`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tokenreward.errors import InvalidField, RequestError
from tokenreward.http.protocols import Protocol
from tokenreward.http.protocols._answers import scores_of
from tokenreward.http.protocols._vllm import frame, openai_error, parse_body, whole_items
from tokenreward.wire import Reply, RewardsRequest, encode_rewards
from tokenreward.wire.media import JSON


class Embeddings(Protocol):
    """A score per input."""

    paths = ("/v1/embeddings",)
    example = '{"model": "rm", "input": "<|user|>2+2?<|end|><|assistant|>It is 4.<|end|>"}'

    def read(self, body: bytes) -> RewardsRequest | None:
        content = parse_body(body)
        if content.encoding_format not in ("float", "base64"):
            raise InvalidField("must be `float` or `base64`", param="encoding_format")
        self._model, self._encoding = content.model, content.encoding_format
        return self.request(whole_items(content))

    def write(self, reply: Reply) -> bytes:
        data = []
        for index, score in enumerate(scores_of(reply, "input")):
            embedding: Any = [score]
            if self._encoding == "base64":
                embedding = encode_rewards(np.array([score], dtype=np.float32))
            data.append({"object": "embedding", "index": index, "embedding": embedding})
        return JSON.dump(frame("embd", self._model, reply, data))

    def write_error(self, error: RequestError) -> tuple[int, bytes]:
        return openai_error(error, "input")

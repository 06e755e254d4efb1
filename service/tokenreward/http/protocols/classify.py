"""vLLM's reward models, `POST /classify`: what verl asks of a discriminative reward model.

    {"model": "rm", "input": "<templated conversation>", "use_activation": false}
    -> {"data": [{"index": 0, "label": "LABEL_0", "probs": [-3.28], "num_classes": 1}], ...}

`probs` has the raw score. An input is the text of a whole conversation, in which the last assistant
turn is scored; or ids, which are read as they are; or `messages`, whose last one is scored. A text
without an assistant turn, and a request for an activation or a truncation, is refused.

verl sends one input at a time, tries a 5xx up to 16 times, and takes a 4xx as final.

Client: verl/experimental/reward_loop/reward_loop.py, `compute_score_disrm`.
"""

from __future__ import annotations

from tokenreward.errors import RequestError
from tokenreward.http.protocols import Protocol
from tokenreward.http.protocols._answers import scores_of
from tokenreward.http.protocols._vllm import frame, openai_error, parse_body, whole_items
from tokenreward.wire import Reply, RewardsRequest
from tokenreward.wire.media import JSON


class Classify(Protocol):
    """A score per input."""

    paths = ("/classify", "/v1/classify")
    example = (
        '{"model": "rm", "input": "<|user|>2+2?<|end|><|assistant|>It is 4.<|end|>", '
        '"use_activation": false}'
    )

    def read(self, body: bytes) -> RewardsRequest | None:
        content = parse_body(body)
        self._model = content.model
        return self.request(whole_items(content))

    def write(self, reply: Reply) -> bytes:
        data = [
            {"index": index, "label": "LABEL_0", "probs": [score], "num_classes": 1}
            for index, score in enumerate(scores_of(reply, "input"))
        ]
        return JSON.dump(frame("classify", self._model, reply, data))

    def write_error(self, error: RequestError) -> tuple[int, bytes]:
        return openai_error(error, "input")

"""SGLang's input log-probs, `POST /generate`: with them slime's and miles' on-policy distillation
takes this service as its teacher (`--rm-url http://host/generate`).

    {"input_ids": [5, 6, 7], "sampling_params": {"temperature": 1.0, "max_new_tokens": 0},
     "return_logprob": true, "logprob_start_len": 0}
    -> {"text": "", "meta_info": {"input_token_logprobs": [[null, 5, null], [-2.1, 6, null], ...],
        "prompt_tokens": 3, "completion_tokens": 0, ...}}

An entry is [log-prob, id, text]; the texts are null. The entries begin at `logprob_start_len`, and
the first is a placeholder that has no number. -1, SGLang's default, is the last token. A list of
sequences gets a list of such objects. `top_logprobs_num` adds `input_top_logprobs`, and
`token_ids_logprob` adds `input_token_ids_logprobs`, lists of such entries in each place.

`temperature` divides the logits, as slime means it, whose student has the rollout's temperature; 0
leaves them as they are. SGLang itself leaves the log-probs of inputs as they are.

Clients: slime/rollout/on_policy_distillation.py, miles/rollout/on_policy_distillation.py. Both give
a request up at the first refusal, and after 300 s.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from tokenreward.errors import InvalidField, RequestError
from tokenreward.http.protocols._answers import ListOf, refuse_many
from tokenreward.http.protocols._log_probs import (
    GENERATES_NOTHING,
    LogProbProtocol,
    PromptTable,
    text_item,
    texts_of,
)
from tokenreward.wire import Item, Reply, RewardsRequest
from tokenreward.wire.media import JSON

# What would make other numbers of the same tokens.
_UNSUPPORTED = (
    "image_data",
    "audio_data",
    "video_data",
    "input_embeds",
    "lora_path",
    "token_ids_logprob_positions",
)


class _SamplingParams(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    max_new_tokens: int | None = None
    temperature: FiniteFloat | None = None


class _Generate(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)

    input_ids: ListOf[int] | ListOf[ListOf[int]] | None = None
    text: str | ListOf[str] | None = None
    sampling_params: _SamplingParams | ListOf[_SamplingParams] = Field(
        default_factory=_SamplingParams
    )
    return_logprob: bool | ListOf[bool] = False
    logprob_start_len: int | ListOf[int] = -1
    top_logprobs_num: Annotated[int, Field(ge=0)] | ListOf[int] | None = None
    token_ids_logprob: ListOf[int] | ListOf[ListOf[int]] | None = None
    stream: bool = False


class SgLang(LogProbProtocol):
    """An object with log-probs per sequence."""

    paths = ("/generate",)
    example = (
        '{"input_ids": [0, 50, 60, 1], "sampling_params": {"temperature": 1.0, '
        '"max_new_tokens": 0, "skip_special_tokens": false}, "return_logprob": true, '
        '"logprob_start_len": 0}'
    )
    items = "input_ids"
    top_k_field = "top_logprobs_num"
    temperature_field = "sampling_params.temperature"

    def read(self, body: bytes) -> RewardsRequest | None:
        content = JSON.parse(_Generate, body)
        _refuse(content)
        sequences = self._read_sequences(content)
        num = len(sequences)
        sampling = _common(content.sampling_params, "sampling_params")
        if sampling is None or sampling.max_new_tokens != 0:
            raise InvalidField(
                f"{GENERATES_NOTHING}: send 0", param="sampling_params.max_new_tokens"
            )
        starts = content.logprob_start_len
        if isinstance(starts, int):
            starts = [starts] * num
        if len(starts) != num:
            raise InvalidField(f"there are {num} sequences", param="logprob_start_len")
        # The placeholder of each sequence, which the tokens with numbers follow.
        self._first = [
            self._first_place(sequence, start)
            for sequence, start in zip(sequences, starts, strict=True)
        ]
        self._num_top = _common(content.top_logprobs_num, "top_logprobs_num") or None
        self._candidates = _candidates(content.token_ids_logprob)
        return self.ask(
            sequences,
            starts=[first + 1 for first in self._first],
            top_k=self._num_top,
            candidates=self._candidates,
            temperature=sampling.temperature,
        )

    def write(self, reply: Reply) -> bytes:
        version = None if reply.version is None else str(reply.version)
        objects = []
        for index, table in enumerate(self.tables(reply)):
            meta = {
                "id": reply.id,
                "finish_reason": {"type": "length", "length": 0},
                "prompt_tokens": len(table.ids),
                "completion_tokens": 0,
                "cached_tokens": 0,
                "weight_version": version,
                "output_token_logprobs": [],
            }
            lists = self._lists(table, self._first[index])
            raw = JSON.dump(meta)[:-1].decode("ascii")
            raw += "".join(f',"{name}":[{",".join(entries)}]' for name, entries in lists.items())
            objects.append(f'{{"text":"","output_ids":[],"meta_info":{raw}}}}}')
        text = objects[0] if self._is_single else "[" + ",".join(objects) + "]"
        return text.encode("ascii")

    @staticmethod
    def error_content(error: RequestError, param: str | None) -> dict[str, Any]:
        return {"error": {"message": error.message, "code": error.code, "param": param}}

    def _read_sequences(self, content: _Generate) -> list[list[int] | Item]:
        """The sequences of a body, each of them ids or a text. Raises InvalidField."""
        if (content.input_ids is None) == (content.text is None):
            raise InvalidField("give exactly one of `input_ids` and `text`", param="input_ids")
        if content.text is not None:
            self.items = "text"
            self._is_single = isinstance(content.text, str)
            texts = [content.text] if isinstance(content.text, str) else content.text
            refuse_many(texts, "text")
            return [text_item(text) for text in texts]
        ids: list[Any] = content.input_ids or []
        self._is_single = bool(ids) and isinstance(ids[0], int)
        sequences = [ids] if self._is_single else ids
        refuse_many(sequences, "input_ids")
        return sequences

    def _first_place(self, sequence: list[int] | Item, start: int) -> int:
        """The place of a sequence where its entries begin. Raises InvalidField."""
        if isinstance(sequence, Item):
            if start != 0:
                raise InvalidField(
                    "places in a text are not known before it is tokenised: send 0, or ids",
                    param="logprob_start_len",
                )
            return 0
        if not -1 <= start < max(1, len(sequence)):
            raise InvalidField(
                f"it must be from -1 to {len(sequence) - 1}, the last token",
                param="logprob_start_len",
            )
        return len(sequence) - 1 if start == -1 else start

    def _lists(self, table: PromptTable, first: int) -> dict[str, list[str]]:
        """The entries of each kind, as JSON."""
        ids = [str(token_id) for token_id in table.ids[first:]]
        own = ["null", *texts_of(table.log_probs)]
        lists = {
            "input_token_logprobs": [
                f"[{log_prob},{token_id},null]" for log_prob, token_id in zip(own, ids, strict=True)
            ]
        }
        if self._num_top:
            lists["input_top_logprobs"] = _rows(table.top_log_probs, table.top_ids)
        if self._candidates:
            ids_of_rows = np.tile(self._candidates, (len(table.log_probs), 1))
            lists["input_token_ids_logprobs"] = _rows(table.candidate_log_probs, ids_of_rows)
        return lists


def _refuse(content: _Generate) -> None:
    """Raises InvalidField for a body that asks for something else than log-probs."""
    wants = content.return_logprob
    if not (all(wants) and wants if isinstance(wants, list) else wants):
        raise InvalidField(f"{GENERATES_NOTHING}: send true", param="return_logprob")
    if content.stream:
        raise InvalidField(f"{GENERATES_NOTHING}: leave it out", param="stream")
    for name in _UNSUPPORTED:
        if (content.model_extra or {}).get(name) is not None:
            raise InvalidField("it plays no part here, and would change the numbers", param=name)


def _common(value: Any, param: str) -> Any:
    """A value, or what all entries of a list are. Raises InvalidField if they differ."""
    if not isinstance(value, list):
        return value
    if any(entry != value[0] for entry in value[1:]):
        raise InvalidField("it must be the same for all sequences", param=param)
    return value[0] if value else None


def _candidates(value: Sequence[Any] | None) -> list[int] | None:
    """The tokens of `token_ids_logprob`, which are one list for all. Raises InvalidField."""
    if value and isinstance(value[0], list):
        value = _common(value, "token_ids_logprob")
    refuse_many(value or [], "token_ids_logprob")
    return list(value) if value else None


def _rows(log_probs: npt.NDArray[np.float32] | None, ids: npt.NDArray[Any] | None) -> list[str]:
    """Entries of several tokens in each place, as JSON; null for the placeholder, which stands
    alone where there is nothing to compute."""
    if log_probs is None or ids is None:
        return ["null"]
    entries = [
        f"[{log_prob},{token_id},null]"
        for log_prob, token_id in zip(texts_of(log_probs), texts_of(ids), strict=True)
    ]
    size = log_probs.shape[1]
    starts = range(0, len(entries), size)
    return ["null", *("[" + ",".join(entries[start : start + size]) + "]" for start in starts)]

"""TRL's own teacher server of before 1.11, `POST /get_sequence_logprobs/`, for users of pinned
versions. From 1.11 on TRL asks `/v1/completions`.

    {"sequences": [[1, 15, 27, 9]], "prompt_lengths": [2], "top_logprobs": 1, "temperature": 1.0,
     "response_format": "binary"}
    -> {"logprobs_b64": "...", "token_ids_b64": "...", "actual_logprobs_b64": "...",
        "actual_token_ids_b64": "...", "shape": [1, 2, 1], "completion_lengths": [2]}

The arrays are float32 and int32, [sequences, longest completion, top_logprobs], and [.., 1] for the
sequence's own tokens. They are filled up with -inf and 0 behind a completion's end, as that server
fills them. With `"response_format": "json"` lists of each completion's own length come instead, in
the order of the ranks, the sequence's own token among them.

`temperature` divides the logits.

Client: trl/generation/vllm_client.py (`get_sequence_logprobs`, to TRL 1.10).
"""

from __future__ import annotations

import binascii
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from tokenreward.errors import InvalidField
from tokenreward.http.protocols._answers import ListOf, refuse_many
from tokenreward.http.protocols._log_probs import (
    LogProbProtocol,
    PromptTable,
    fastapi_content,
    texts_of,
)
from tokenreward.wire import Reply, RewardsRequest
from tokenreward.wire.media import JSON


class _Sequences(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    sequences: ListOf[ListOf[int]]
    prompt_lengths: ListOf[int]
    top_logprobs: Annotated[int, Field(ge=0)] = 100
    temperature: Annotated[FiniteFloat, Field(gt=0)] = 1.0
    response_format: Literal["json", "binary"] = "json"


class Trl(LogProbProtocol):
    """The log-probs of completions."""

    paths = ("/get_sequence_logprobs/", "/get_sequence_logprobs")
    example = (
        '{"sequences": [[0, 50, 60, 1]], "prompt_lengths": [2], "top_logprobs": 1, '
        '"temperature": 1.0}'
    )
    items = "sequences"
    top_k_field = "top_logprobs"

    def read(self, body: bytes) -> RewardsRequest | None:
        content = JSON.parse(_Sequences, body)
        refuse_many(content.sequences, "sequences")
        if len(content.sequences) != len(content.prompt_lengths):
            raise InvalidField(
                f"there are {len(content.prompt_lengths)} for {len(content.sequences)} sequences",
                param="prompt_lengths",
            )
        for place, (sequence, length) in enumerate(
            zip(content.sequences, content.prompt_lengths, strict=True)
        ):
            if not 0 <= length <= len(sequence):
                raise InvalidField(
                    f"it must be from 0 to {len(sequence)}, the length of its sequence",
                    param=f"prompt_lengths[{place}]",
                )
        self._lengths, self._num_top = content.prompt_lengths, content.top_logprobs
        self._is_binary = content.response_format == "binary"
        return self.ask(
            content.sequences,
            starts=[max(1, length) for length in content.prompt_lengths],
            top_k=content.top_logprobs,
            temperature=content.temperature,
        )

    def write(self, reply: Reply) -> bytes:
        tables = self.tables(reply)
        if self._is_binary:
            return JSON.dump(self._binary(tables))
        logprobs, token_ids = [], []
        for table, length in zip(tables, self._lengths, strict=True):
            values, ids = _ranked(table)
            # The first token of all has no log-prob, and an empty list in this place.
            missing = ["[]"] * (table.start - length)
            logprobs.append("[" + ",".join(missing + values) + "]")
            token_ids.append("[" + ",".join(missing + ids) + "]")
        values_text, ids_text = ",".join(logprobs), ",".join(token_ids)
        return f'{{"logprobs":[{values_text}],"logprob_token_ids":[{ids_text}]}}'.encode("ascii")

    error_content = staticmethod(fastapi_content)

    def _binary(self, tables: list[PromptTable]) -> dict[str, Any]:
        """The arrays of all completions, in base64."""
        lengths = [
            len(table.ids) - length for table, length in zip(tables, self._lengths, strict=True)
        ]
        shape = (len(tables), max(lengths, default=0), self._num_top)
        top, top_ids = np.full(shape, -np.inf, np.float32), np.zeros(shape, np.int32)
        own = np.full((*shape[:2], 1), -np.inf, np.float32)
        own_ids = np.zeros((*shape[:2], 1), np.int32)
        for row, (table, length) in enumerate(zip(tables, self._lengths, strict=True)):
            places = slice(table.start - length, len(table.ids) - length)
            own[row, places, 0] = table.log_probs
            own_ids[row, places, 0] = table.ids[table.start :]
            if table.top_ids is not None:
                top[row, places] = table.top_log_probs
                top_ids[row, places] = table.top_ids
        return {
            "logprobs_b64": _base64(top),
            "token_ids_b64": _base64(top_ids),
            "actual_logprobs_b64": _base64(own),
            "actual_token_ids_b64": _base64(own_ids),
            "shape": list(shape),
            "completion_lengths": lengths,
        }


def _ranked(table: PromptTable) -> tuple[list[str], list[str]]:
    """At each place a list of log-probs, and a list of their tokens, as JSON: the most likely ones,
    and behind them the sequence's own unless it is one of them."""
    own_ids = np.asarray(table.ids[table.start :], dtype=np.int32)[:, None]
    ids, values = own_ids, table.log_probs[:, None]
    if table.top_ids is not None and table.top_log_probs is not None:
        ids = np.concatenate([table.top_ids, own_ids], axis=1)
        values = np.concatenate([table.top_log_probs, values], axis=1)
    is_written = np.ones(ids.shape, dtype=bool)
    is_written[:, -1] = (ids[:, :-1] != own_ids).all(axis=1)
    ends = is_written.sum(axis=1).cumsum().tolist()
    return _lists(texts_of(values[is_written]), ends), _lists(texts_of(ids[is_written]), ends)


def _lists(numbers: list[str], ends: list[int]) -> list[str]:
    """Numbers as lists of JSON, each of which ends where `ends` says."""
    pairs = zip([0, *ends], ends, strict=False)
    return ["[" + ",".join(numbers[start:end]) + "]" for start, end in pairs]


def _base64(array: npt.NDArray[Any]) -> str:
    little_endian = array.astype(array.dtype.newbyteorder("<"))
    return binascii.b2a_base64(little_endian.tobytes(), newline=False).decode("ascii")

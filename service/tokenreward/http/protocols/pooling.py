"""vLLM's pooling, `POST /pooling`: a number per token, prompt tokens included (`token_classify`).

    {"model": "rm", "task": "token_classify", "input": [[1, 15, 27, 9]], "encoding_format": "float"}
    -> {"data": [{"index": 0, "object": "pooling", "data": [[0.1], [-0.4], [0.3], [0.8]]}], ...}

A number is the raw value at its token: a level, the model's judgement of the text up to there, and
no reward by itself. `credit` of the settings plays no part. Text is read with BOS in front, as the
tokenizer puts it; of `messages` the last one is the assistant's. `task: classify` gives one number,
as `/classify` does.

`encoding_format` is `float`; `base64`; or `bytes`, one body with all numbers and a table of them in
the header `metadata` (`bytes_only`: without). `embed_dtype` is float32 or float16, `endianness` is
little by default.
"""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np

from tokenreward.errors import InternalError, InvalidField, RequestError
from tokenreward.http.protocols import Protocol
from tokenreward.http.protocols._answers import check_items, item_at, scores_of
from tokenreward.http.protocols._vllm import (
    PoolingRequest,
    chat_item,
    frame,
    openai_error,
    parse_body,
    whole_items,
)
from tokenreward.wire import Item, Reply, RewardsRequest, decode_rewards
from tokenreward.wire.media import JSON

_DTYPES = {"float32": "f4", "float16": "f2"}
_MAX_HEADER = 60_000  # clients of HTTP take 64 KiB, Python's own among them
_ORDERS = {"native": "<", "little": "<", "big": ">"}


class Pooling(Protocol):
    """A value per token."""

    paths = ("/pooling",)
    example = (
        '{"model": "rm", "task": "token_classify", "input": [[0, 50, 60, 1]], '
        '"encoding_format": "float"}'
    )

    def read(self, body: bytes) -> RewardsRequest | None:
        content = self._content = parse_body(body)
        if content.embed_dtype not in _DTYPES:
            raise InvalidField(f"must be one of {', '.join(_DTYPES)}", param="embed_dtype")
        if content.task == "classify":
            return self.request(whole_items(content))
        if content.task not in (None, "token_classify"):
            raise InvalidField("must be `token_classify` or `classify`", param="task")
        return self.request(_sequences(content), credit={"name": "values"})

    def write(self, reply: Reply) -> bytes:
        content = self._content
        if content.task == "classify":
            arrays = [np.array([score]) for score in scores_of(reply, "input")]
        else:
            arrays = []
            for item in check_items(reply, "input"):
                if item.rewards is None:
                    raise InternalError("the scorer gives no values", param=f"input[{item.index}]")
                arrays.append(np.ascontiguousarray(decode_rewards(item.rewards)[:, None]))
        if content.encoding_format.startswith("bytes"):
            return self._write_bytes(reply, arrays)
        data = []
        for index, array in enumerate(arrays):
            value: Any = array
            if content.encoding_format == "base64":
                value = base64.b64encode(self._binary(array)).decode()
            data.append({"index": index, "object": "pooling", "data": value})
        return JSON.dump(frame("pool", content.model, reply, data))

    def write_error(self, error: RequestError) -> tuple[int, bytes]:
        return openai_error(error, "input")

    def _write_bytes(self, reply: Reply, arrays: list[np.ndarray]) -> bytes:
        """All arrays one after the other, and the table of them in a header."""
        content, table, end = self._content, [], 0
        bodies = [self._binary(array) for array in arrays]
        for index, (array, binary) in enumerate(zip(arrays, bodies, strict=True)):
            start, end = end, end + len(binary)
            entry = {"index": index, "embed_dtype": content.embed_dtype}
            entry |= {"endianness": content.endianness, "start": start, "end": end}
            table.append({**entry, "shape": list(array.shape)})
        self.answer_headers["content-type"] = "application/octet-stream"
        if content.encoding_format == "bytes":
            metadata = frame("pool", content.model, reply, table)
            del metadata["object"]
            # A header has no other characters than these of ASCII, whatever the caller's model is.
            header = json.dumps(metadata, separators=(",", ":"))
            if len(header) > _MAX_HEADER:
                raise InvalidField(
                    f"the table of the numbers has {len(header)} bytes, and a header room for "
                    f"{_MAX_HEADER}: send `bytes_only`, `base64`, or fewer inputs",
                    param="encoding_format",
                )
            self.answer_headers["metadata"] = header
        return b"".join(bodies)

    def _binary(self, array: np.ndarray) -> bytes:
        """The numbers as bytes. Raises InvalidField if one is too large for the dtype."""
        order = _ORDERS[self._content.endianness]
        with np.errstate(over="ignore"):
            numbers = array.astype(order + _DTYPES[self._content.embed_dtype])
        if not np.isfinite(numbers).all():
            raise InvalidField(
                "a value is too large for float16: send `float32`", param="embed_dtype"
            )
        return numbers.tobytes()


def _sequences(content: PoolingRequest) -> list[Item]:
    """The items of the inputs, each of whose tokens gets a number. Raises InvalidField."""
    if content.messages is not None:
        return [chat_item(content, "sequence")]
    items = []
    for index, value in enumerate(content.inputs):
        if isinstance(value, str) and content.add_special_tokens is False:
            raise InvalidField(
                "a text is read as the tokenizer begins one: send ids instead",
                param="add_special_tokens",
            )
        if not value:
            raise InvalidField("it is empty", param=f"input[{index}]")
        finished = False if isinstance(value, str) else None
        fields = {"prompt": "", "response": value, "finished": finished, "whole": "sequence"}
        items.append(item_at(f"input[{index}]", **fields))
    return items

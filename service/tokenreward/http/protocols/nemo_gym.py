"""NeMo-Gym's verifiers, `POST /verify`: a resources server that gives the reward model's score.

    {"responses_create_params": {"input": [{"role": "user", "content": "2+2?"}]},
     "response": {"output": [{"type": "message", "role": "assistant",
                              "content": [{"type": "output_text", "text": "4"}]}], ...}}
    -> the same body, with "reward": 0.7, "reward_components": {"reward_model": 0.7}

The prompt is `instructions`, `input`, and whatever stands in `output` before its last message;
calls of tools and their results are turns of it. The last message of the assistant is scored, as
text: token ids that it brings are the policy's. Reasoning is not read. A body whose output does not
end with a message is refused, and so is content that is no text: no reward is made up, and
`mask_sample` is the caller's to set.

NeMo-Gym sets no time limit, tries a failure three times, and reads FastAPI's errors. Requests are
held while the service is overloaded.

Clients: responses_api_agents/simple_agent/app.py (`SimpleAgent.run`), which asks `/seed_session`
before; nemo_gym/base_resources_server.py (`BaseVerifyRequest`, `BaseVerifyResponse`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict
from pydantic_core import to_json

from tokenreward.errors import InvalidField, RequestError
from tokenreward.http.protocols import Protocol
from tokenreward.http.protocols._answers import ListOf, own_param, scores_of
from tokenreward.wire import Item, Reply, RewardsRequest, parse
from tokenreward.wire.media import JSON

_PROMPT, _OUTPUT = "responses_create_params.input", "response.output"
_PARTS = ("input_text", "output_text", "text")  # a tuple: a caller may send what has no hash

_Turns = Annotated[
    ListOf[dict[str, Any]],
    BeforeValidator(
        lambda value: [{"role": "user", "content": value}] if isinstance(value, str) else value
    ),
]


class _CreateParams(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    input: _Turns
    instructions: str | None = None
    tools: ListOf[dict[str, Any]] | None = None


class _Response(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    output: ListOf[dict[str, Any]]


class _Verification(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    responses_create_params: _CreateParams
    response: _Response


class NemoGym(Protocol):
    """A score for one rollout, in the rollout's own body."""

    paths = ("/verify",)
    example = (
        '{"responses_create_params": {"input": [{"role": "user", "content": "2+2?"}]}, '
        '"response": {"output": [{"type": "message", "role": "assistant", "content": '
        '[{"type": "output_text", "text": "It is 4."}]}]}}'
    )
    patience_s = 240.0

    def read(self, body: bytes) -> RewardsRequest | None:
        content = JSON.parse(_Verification, body)
        params, output = content.responses_create_params, content.response.output
        if not output or output[-1].get("type", "message") != "message":
            raise InvalidField("it must end with the assistant's message", param=_OUTPUT)
        turns = [
            turn
            for where, values in ((_PROMPT, params.input), (_OUTPUT, output))
            for index, value in enumerate(values)
            for turn in _turns(value, f"{where}[{index}]")
        ]
        if turns[-1]["role"] != "assistant":
            raise InvalidField("it must end with the assistant's message", param=_OUTPUT)
        if params.instructions is not None:
            turns.insert(0, {"role": "system", "content": params.instructions})
        fields = {"prompt": turns[:-1], "response": turns[-1], "tools": _tools(params.tools)}
        self._body: dict[str, Any] = JSON.load(body)
        return self.request([parse(Item, fields)])

    def write(self, reply: Reply) -> bytes:
        (score,) = scores_of(reply, None)
        components = {str(reply.scorer): score}
        content = {**self._body, "reward": score, "reward_components": components}
        # The caller's numbers go back as they came: integers of any size, and NaN is no null.
        return to_json(content, inf_nan_mode="constants")

    def write_error(self, error: RequestError) -> tuple[int, bytes]:
        where = own_param(error)
        for name, own in (("prompt", _PROMPT), ("response", _OUTPUT)):
            is_item = re.match(rf"{name}\b", where) is not None  # not `responses_create_params`
            if is_item and not where.startswith(own):
                where = own
        detail = {"code": error.code, "message": error.message, "param": where or None}
        return error.status, JSON.dump({"detail": detail})


def _turns(value: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """An entry of `input` or `output` as messages of a chat. Raises InvalidField."""
    kind = value.get("type", "message")
    if kind == "reasoning":
        return []
    if kind == "function_call":
        function = {"name": value.get("name"), "arguments": value.get("arguments")}
        call = {"id": value.get("call_id"), "type": "function", "function": function}
        return [{"role": "assistant", "content": "", "tool_calls": [call]}]
    if kind == "function_call_output":
        text = _text(value.get("output"), f"{where}.output")
        return [{"role": "tool", "content": text, "tool_call_id": value.get("call_id")}]
    if kind != "message":
        raise InvalidField("must be a message, a call of a function or its output", param=where)
    if not isinstance(value.get("role"), str):
        raise InvalidField("it is required", param=f"{where}.role")
    return [{"role": value["role"], "content": _text(value.get("content"), f"{where}.content")}]


def _text(content: Any, where: str) -> str:
    """The text of a content, which is a string or a list of parts. Raises InvalidField."""
    if isinstance(content, str):
        return content
    texts = []
    for part in content if isinstance(content, list) else [None]:
        text = None
        if isinstance(part, dict) and str(part.get("type")) in _PARTS:
            text = part.get("text")
        if not isinstance(text, str):
            raise InvalidField("must be a text, or a list of parts that are text", param=where)
        texts.append(text)
    return "".join(texts)


def _tools(tools: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
    """Descriptions of functions as a chat template reads them. Raises InvalidField."""
    if not tools:
        return None
    if any(tool.get("type") != "function" for tool in tools):
        where = "responses_create_params.tools"
        raise InvalidField("only functions can be shown to a reward model", param=where)
    result = []
    for tool in tools:
        names = tool.keys() & {"name", "description", "parameters"}
        result.append({"type": "function", "function": {name: tool[name] for name in names}})
    return result

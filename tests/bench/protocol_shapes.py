"""How each protocol is asked for one sample, beside the native request for the same outputs of the
same scorer. It sends nothing.

Where a protocol's wire has the most likely tokens, the native request asks for as many; where it
has token ids of the service's own, the native request asks for the tokens. Native numbers come in
base64, as our client has them.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import AutoTokenizer

from tokenreward.demo import checkpoint_path
from tokenreward.demo.corpus import assistant_turn, user_turn
from tokenreward.demo.world import EVALUATION_SEED, sample_pairs

DEPLOYMENTS: list[dict[str, Any]] = [
    {
        "name": "sft",
        "checkpoint": "demo:sft",
        "task": "causal_lm",
        "scorers": [{"type": "logprob"}],
    },
    {
        "name": "rm",
        "checkpoint": "demo:rm",
        "task": "reward_model",
        "scorers": [{"type": "reward_model"}],
    },
]


@dataclass(frozen=True)
class DemoSample:
    """A prompt of the demo's world and its response: as turns, as text, as the policy's ids."""

    question: str
    response: str
    prompt_text: str
    conversation: str
    prompt_ids: list[int]
    ids: list[int]


@dataclass(frozen=True)
class Shape:
    """One protocol's request for a sample, and the native one.

    Attributes:
        name: The protocol, and what is wanted of it.
        deployment: Who answers.
        path: The protocol's route below the deployment.
        body: The protocol's body for a sample.
        numbers: The sample's numbers in the protocol's reply.
        native: Fields of the native body: `item`, and others beside `items`.
    """

    name: str
    deployment: str
    path: str
    body: Callable[[DemoSample], Any]
    numbers: Callable[[Any, DemoSample], Any]
    native: Callable[[DemoSample], dict[str, Any]]

    def native_body(self, sample: DemoSample) -> dict[str, Any]:
        scorer = "reward_model" if self.deployment == "rm" else "logprob"
        fields = self.native(sample)
        items = [fields.pop("item")]
        return {"scorer": scorer, "items": items, "encoding_format": "base64", **fields}

    def native_numbers(self, reply: Any, sample: DemoSample) -> np.ndarray:
        """The same numbers in the native reply."""
        (item,) = reply["items"]
        if self.deployment == "rm" and self.path != "/pooling":
            return np.array([item["score"]])
        return np.frombuffer(base64.b64decode(item["rewards"]), dtype="<f4")


def samples(number: int) -> list[DemoSample]:
    """Faithful responses to held-out prompts: about 100 tokens each."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint_path("sft"))
    found = []
    for pair in sample_pairs(number, EVALUATION_SEED, "held_out"):
        turn = user_turn(pair)
        prompt = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        turns = [*turn, *assistant_turn(pair.faithful)]
        text = tokenizer.apply_chat_template(turns, tokenize=False)
        prompt_ids, ids = (
            tokenizer(each, add_special_tokens=False)["input_ids"] for each in (prompt, text)
        )
        found.append(DemoSample(pair.prompt, pair.faithful, prompt, text, prompt_ids, ids))
    return found


def _turns(sample: DemoSample) -> dict[str, Any]:
    return {"item": {"prompt": _question(sample), "response": sample.response}}


def _texts(sample: DemoSample) -> dict[str, Any]:
    return {"item": {"prompt": sample.prompt_text, "response": sample.response}}


def _whole(sample: DemoSample) -> dict[str, Any]:
    item = {"prompt": "", "response": sample.conversation, "whole": "conversation"}
    return {"item": {**item, "finished": False}}


def _values(sample: DemoSample) -> dict[str, Any]:
    item = {"prompt": "", "response": sample.ids, "whole": "sequence"}
    return {"item": item, "credit": {"name": "values"}}


def _log_probs(
    top_k: int | None, start: Callable[[DemoSample], int] = lambda sample: 1
) -> Callable[[DemoSample], dict[str, Any]]:
    def fields(sample: DemoSample) -> dict[str, Any]:
        place = start(sample)
        item = {"prompt": sample.ids[:place], "response": sample.ids[place:]}
        return {"item": item, "options": {"top_k": top_k}}

    return fields


def _messages(sample: DemoSample) -> dict[str, Any]:
    response = sample.ids[len(sample.prompt_ids) :]
    item = {"prompt": _question(sample), "response": response, "whole": "sequence"}
    return {"item": item, "options": {"top_k": 0}, "return_tokens": True}


def _question(sample: DemoSample) -> list[dict[str, str]]:
    return [{"role": "user", "content": sample.question}]


def _rollout(sample: DemoSample) -> dict[str, Any]:
    part = {"type": "output_text", "text": sample.response}
    output = [{"type": "message", "role": "assistant", "content": [part]}]
    params = {"input": _question(sample)}
    return {"responses_create_params": params, "response": {"output": output}}


def _teacher(num_top: int) -> dict[str, Any]:
    return {"max_tokens": 1, "temperature": 1.0, "prompt_logprobs": num_top}


def _infer(sample: DemoSample) -> dict[str, Any]:
    response = sample.ids[len(sample.prompt_ids) :]
    messages = [*_question(sample), {"role": "assistant", "content": response}]
    config = {"prompt_logprobs": 0, "max_tokens": 1, "temperature": 0.0}
    return {"infer_requests": [{"messages": messages}], "request_config": config}


def _generate(sample: DemoSample, **fields: Any) -> dict[str, Any]:
    sampling = {"temperature": 1.0, "max_new_tokens": 0, "skip_special_tokens": False}
    body = {"input_ids": sample.ids, "sampling_params": sampling, "return_logprob": True}
    return {**body, "logprob_start_len": 0, **fields}


def _completions(sample: DemoSample, response_format: str) -> dict[str, Any]:
    body = {"sequences": [sample.ids], "prompt_lengths": [len(sample.prompt_ids)]}
    return {**body, "top_logprobs": 1, "temperature": 1.0, "response_format": response_format}


def _of_entries(entries: Any, sample: DemoSample) -> list[float]:
    pairs = zip(entries[1:], sample.ids[1:], strict=True)
    return [entry[str(token)]["logprob"] for entry, token in pairs]


def _of_ranked(reply: Any, sample: DemoSample) -> list[float]:
    found = []
    for values, ids, own in zip(
        reply["logprobs"][0],
        reply["logprob_token_ids"][0],
        sample.ids[len(sample.prompt_ids) :],
        strict=True,
    ):
        found.append(values[ids.index(own)])
    return found


def _of_sglang(reply: Any, sample: DemoSample) -> list[float]:
    return [entry[0] for entry in reply["meta_info"]["input_token_logprobs"][1:]]


SHAPES = (
    Shape(
        "openrlhf",
        "rm",
        "/get_reward",
        lambda one: {
            "query": [one.prompt_text + one.response],
            "prompts": [one.prompt_text],
            "labels": [""],
        },
        lambda reply, one: reply["rewards"],
        _texts,
    ),
    Shape(
        "slime",
        "rm",
        "/remote_rm",
        lambda one: {"prompt": _question(one), "response": one.response, "label": ""},
        lambda reply, one: reply,
        _turns,
    ),
    Shape(
        "slime, rewards of tokens",
        "rm",
        "/remote_rm/score",
        lambda one: {"prompt": _question(one), "response": one.response, "label": ""},
        lambda reply, one: reply["score"],
        lambda one: {**_turns(one), "return_tokens": True},
    ),
    Shape(
        "llama_factory",
        "rm",
        "/v1/score/evaluation",
        lambda one: {"model": "rm", "messages": [one.conversation]},
        lambda reply, one: reply["scores"],
        _whole,
    ),
    Shape(
        "classify",
        "rm",
        "/classify",
        lambda one: {"model": "rm", "input": one.conversation, "use_activation": False},
        lambda reply, one: reply["data"][0]["probs"],
        _whole,
    ),
    Shape(
        "embeddings",
        "rm",
        "/v1/embeddings",
        lambda one: {"model": "rm", "input": one.conversation},
        lambda reply, one: reply["data"][0]["embedding"],
        _whole,
    ),
    Shape(
        "pooling",
        "rm",
        "/pooling",
        lambda one: {"model": "rm", "task": "token_classify", "input": one.ids},
        lambda reply, one: reply["data"][0]["data"],
        _values,
    ),
    Shape(
        "score",
        "rm",
        "/score",
        lambda one: {"model": "rm", "text_1": one.prompt_text, "text_2": one.response},
        lambda reply, one: reply["data"][0]["score"],
        _texts,
    ),
    Shape("nemo_gym", "rm", "/verify", _rollout, lambda reply, one: reply["reward"], _turns),
    *(
        Shape(
            f"completions, top {num_top}",
            "sft",
            "/v1/completions",
            lambda one, num_top=num_top: {"model": "m", "prompt": one.ids, **_teacher(num_top)},
            lambda reply, one: _of_entries(reply["choices"][0]["prompt_logprobs"], one),
            _log_probs(num_top),
        )
        for num_top in (0, 1, 8)
    ),
    Shape(
        "inference, top 1",
        "sft",
        "/inference/v1/generate",
        lambda one: {"model": "m", "token_ids": one.ids, "sampling_params": _teacher(1)},
        lambda reply, one: _of_entries(reply["prompt_logprobs"], one),
        _log_probs(1),
    ),
    Shape("sglang", "sft", "/generate", _generate, _of_sglang, _log_probs(None)),
    Shape(
        "sglang, top 8",
        "sft",
        "/generate",
        lambda one: _generate(one, top_logprobs_num=8),
        _of_sglang,
        _log_probs(8),
    ),
    Shape(
        "swift",
        "sft",
        "/infer/",
        _infer,
        lambda reply, one: _of_entries(reply[0]["prompt_logprobs"], one),
        _messages,
    ),
    Shape(
        "trl, lists",
        "sft",
        "/get_sequence_logprobs/",
        lambda one: _completions(one, "json"),
        _of_ranked,
        _log_probs(1, lambda one: len(one.prompt_ids)),
    ),
    Shape(
        "trl, binary",
        "sft",
        "/get_sequence_logprobs/",
        lambda one: _completions(one, "binary"),
        lambda reply, one: np.frombuffer(base64.b64decode(reply["actual_logprobs_b64"]), "<f4"),
        _log_probs(1, lambda one: len(one.prompt_ids)),
    ),
)

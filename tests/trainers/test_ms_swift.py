"""ms-swift's own client of a teacher (`--teacher_model_server`), and its search for the ids of the
response in what comes back."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from fakes import published
from tokenreward.demo import checkpoint_path
from tokenreward_client import Client

SITE = published.site()
MISSING = ("modelscope", "PIL", "vllm", "dacite", "addict", "json_repair", "oss2", "tiktoken")
MESSAGES = [{"role": "user", "content": "When?"}]
RESPONSES = [[9, 10, 11, 12, 2], [14, 15, 16]]


@pytest.fixture(scope="module")
def swift() -> Iterator[Any]:
    """The client, the functions that read its answers, and the classes of its requests."""
    with published.importable(SITE, missing=MISSING):
        from swift.infer_engine import protocol
        from swift.rlhf_trainers import gkd_helpers, utils, vllm_client

        yield SimpleNamespace(
            client=vllm_client,
            parse=utils.parse_prompt_logprobs,
            with_ids=utils.replace_assistant_response_with_ids,
            align=gkd_helpers.assemble_teacher_completion_logprobs,
            **{name: getattr(protocol, name) for name in ("RequestConfig", "RolloutInferRequest")},
        )


@pytest.fixture
def teacher(swift: Any, url: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Its client asks only whether vLLM is installed."""
    monkeypatch.setattr(swift.client, "is_vllm_available", lambda: True)
    return swift.client.VLLMInferClient([url], connection_timeout=10.0)


def ask(swift: Any, teacher: Any, top_k: int) -> list[Any]:
    """As its trainers do."""
    requests = []
    for ids in RESPONSES:
        messages = [*map(dict, MESSAGES), {"role": "assistant", "content": "some text"}]
        messages = swift.with_ids(messages, [ids], [[1] * len(ids)])
        requests.append(swift.RolloutInferRequest(messages=messages))
    config = swift.RequestConfig(prompt_logprobs=top_k, max_tokens=1, temperature=0.0)
    answers = teacher.infer(requests, request_config=config, use_tqdm=False)
    return [swift.parse(answer, topk=top_k) for answer in answers]


def native(client: Client, **options: Any) -> list[Any]:
    """Our own API's log-probs of the responses, behind the prompt as the template writes it."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint_path("sft"))
    prompt = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True)["input_ids"]
    items = [(prompt, ids) for ids in RESPONSES]
    return client.score(items, "logprob", options=options)


def test_its_trainer_finds_the_responses_by_their_ids_with_the_native_numbers(
    swift: Any, teacher: Any, client: Client
) -> None:
    mask = torch.zeros(2, 5, dtype=torch.bool)
    for row, ids in enumerate(RESPONSES):
        mask[row, : len(ids)] = True
    parsed = ask(swift, teacher, 0)
    found = swift.align(parsed, mask, torch.device("cpu"), response_token_ids=RESPONSES)
    for row, answer in enumerate(native(client)):
        num_tokens = len(RESPONSES[row])
        values = found.topk_logprobs[row, :num_tokens, 0].numpy()
        np.testing.assert_allclose(values, answer.rewards, rtol=0, atol=1e-5)
        assert found.topk_indices[row, :num_tokens, 0].tolist() == RESPONSES[row]


def test_the_most_likely_tokens_of_a_distillation_are_the_native_ones(
    swift: Any, teacher: Any, client: Client
) -> None:
    for (values, ids), answer in zip(ask(swift, teacher, 4), native(client, top_k=4), strict=True):
        num_tokens = len(answer.rewards)
        np.testing.assert_allclose(values[-num_tokens:], answer.top_logprobs, rtol=0, atol=1e-5)
        assert ids[-num_tokens:] == answer.top_token_ids.tolist()


def test_a_response_that_the_teacher_cannot_read_fails_the_request_with_a_reason(
    swift: Any, teacher: Any
) -> None:
    messages = [*MESSAGES, {"role": "assistant", "content": [10_000_000]}]
    config = swift.RequestConfig(prompt_logprobs=0, max_tokens=1)
    with pytest.raises(RuntimeError, match="token_out_of_vocabulary"):
        teacher.infer([swift.RolloutInferRequest(messages=messages)], request_config=config)

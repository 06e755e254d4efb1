"""ms-swift's own advantages, with log-probabilities of the service as the teacher's."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from fakes import published
from tokenreward_client import Client

SITE = published.site()
PROMPT, RESPONSES = [5, 6, 7, 8], [[9, 10, 11, 12, 13], [14, 15, 16]]


@pytest.fixture(scope="module")
def advantage() -> Iterator[Any]:
    with published.importable(SITE, missing=("modelscope", "PIL", "json_repair")):
        yield importlib.import_module("swift.rl_core.advantage")


def test_a_teachers_log_probabilities_are_advantages_per_token(
    advantage: Any, client: Client
) -> None:
    answers = client.score([(PROMPT, response) for response in RESPONSES], "logprob")
    teacher, mask = torch.zeros(2, 5), torch.zeros(2, 5, dtype=torch.int64)
    for row, answer in enumerate(answers):
        mask[row, : len(answer.rewards)] = 1
        teacher[row, : len(answer.rewards)] = torch.from_numpy(np.array(answer.rewards))
    policy = torch.full((2, 5), -2.0)
    values = advantage.expand_advantage_to_per_token(
        torch.tensor([1.0, -1.0]), mask, teacher, policy, teacher_kl_coef=0.5
    )
    expected = torch.tensor([[1.0], [-1.0]]) + 0.5 * (teacher - policy) * mask
    np.testing.assert_allclose(values.numpy(), expected.numpy(), atol=1e-5)

"""TRL's client of a teacher, and a distillation trainer on it, against `/v1/completions`."""

# ruff: noqa: E402 - without the trainers' packages nothing heavy is imported
from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fakes import published

published.site()
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"  # its distillation trainers are

import torch
from trl.experimental.server_distillation import ServerDistillationConfig, ServerDistillationTrainer
from trl.generation import vllm_client

from tokenreward_client import Client
from trainers.trl import runs

PROMPTS, LENGTHS = [[1, 4, 301, 431], [1, 4, 20]], [5, 9]


@pytest.fixture
def teacher(url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """TRL's own client. It asks only whether vLLM is installed, and uses nothing of it."""
    monkeypatch.setattr(vllm_client, "is_vllm_available", lambda *args, **settings: True)
    teacher = vllm_client.VLLMClient(base_url=url, connection_timeout=10.0)
    yield teacher
    teacher.session.close()


@pytest.fixture
def sequences() -> list[list[int]]:
    rng = np.random.default_rng(0)
    completions = [rng.integers(6, 1000, size=length).tolist() for length in LENGTHS]
    return [prompt + ids for prompt, ids in zip(PROMPTS, completions, strict=True)]


@pytest.mark.parametrize("chunk_size", [0, 1])
def test_its_log_probs_are_the_native_ones_and_its_top_ones_those_of_the_model(
    teacher: Any, client: Client, policy: Any, sequences: Any, chunk_size: int
) -> None:
    lengths = [len(prompt) for prompt in PROMPTS]
    answer = teacher.get_sequence_logprobs(
        sequences, lengths, top_logprobs=4, chunk_size=chunk_size
    )
    items = [(ids[:n], ids[n:]) for ids, n in zip(sequences, lengths, strict=True)]
    for row, native in enumerate(client.score(items, "logprob")):
        ids, first = sequences[row], lengths[row]
        with torch.no_grad():
            logits = policy[0](torch.tensor([ids])).logits[0, first - 1 : -1].double()
        truth = logits.log_softmax(-1)
        actual = np.array(answer["actual_logprobs"][row])[:, 0]
        np.testing.assert_allclose(actual, native.rewards, atol=1e-5)
        assert [token for (token,) in answer["actual_token_ids"][row]] == ids[first:]
        np.testing.assert_allclose(answer["logprobs"][row], truth.topk(4).values, atol=1e-4)
        assert answer["logprob_token_ids"][row] == truth.topk(4).indices.tolist()


@pytest.mark.parametrize(("beta", "top_k"), [(1.0, 1), (0.0, 8)])
def test_a_student_is_distilled_for_two_steps(
    teacher: Any, url: str, policy: Any, tmp_path: Path, beta: float, top_k: int
) -> None:
    model, tokenizer = policy
    start = model.lm_head.weight.detach().clone()
    settings = {name: value for name, value in runs.SETTINGS.items() if name in SHARED}
    trainer = ServerDistillationTrainer(
        model=model,
        args=ServerDistillationConfig(
            output_dir=str(tmp_path),
            teacher_model_server_url=url,
            beta=beta,
            loss_top_k=top_k,
            max_steps=2,
            **settings,
        ),
        train_dataset=runs.dataset(),
        processing_class=tokenizer,
    )
    trainer.train()
    rows = [row for row in trainer.state.log_history if "grad_norm" in row]
    assert len(rows) == 2
    assert all(math.isfinite(row["loss"]) and math.isfinite(row["grad_norm"]) for row in rows)
    # The teacher is the student as it was, so the first step's divergence is that of rounding.
    assert abs(rows[0]["loss"]) < 1e-3
    assert not torch.equal(model.lm_head.weight, start)


SHARED = {
    "per_device_train_batch_size",
    "max_completion_length",
    "learning_rate",
    "lr_scheduler_type",
    "logging_steps",
    "save_strategy",
    "report_to",
    "use_cpu",
    "bf16",
    "disable_tqdm",
}

"""The class for ms-swift with batches shaped like swift's; its own code is in tests/trainers."""

from __future__ import annotations

from types import SimpleNamespace as Shape
from typing import Any

import pytest
import torch

from fakes.token_service import TokenService
from tokenreward_client import AsyncClient, BadArgument, ClientError
from tokenreward_client.trainers import TokenReward
from tokenreward_client.trainers.ms_swift import DenseSwift


class Processes:
    """An accelerator of several processes, of which this is the last one. The rows of those before
    it are rewards and masks, in the order in which they are gathered."""

    def __init__(self, *before: list[list[float]]) -> None:
        self.process_index, self._before = int(bool(before)), list(before)

    def pad_across_processes(self, tensor: Any, dim: int) -> Any:
        return torch.nn.functional.pad(tensor, (0, 3 - tensor.shape[dim]))

    def gather(self, tensor: Any) -> Any:
        if tensor.ndim == 1 or not self._before:  # whether a process failed
            return tensor
        return torch.cat([torch.tensor(self._before.pop(0)), tensor])


class Trainer:
    """Has written its advantages already."""

    def after_rollout(self, samples: Any, batch_encoded_inputs: Any) -> None:
        self._postprocess_batch(samples, batch_encoded_inputs)

    def _postprocess_batch(self, samples: Any, batch_encoded_inputs: Any) -> None:
        for inputs in batch_encoded_inputs:
            mask = inputs["grpo_batch"].completion_mask
            inputs["grpo_batch"].advantages = torch.full(mask.shape, 0.5)


def sample(prompt: list[int], response: list[int], mask: list[int]) -> Any:
    labels = [token if flag else -100 for token, flag in zip(response, mask, strict=True)]
    encoded = {"input_ids": [*prompt, *response, 9], "labels": [-100, *labels, -100]}
    return Shape(encoded=encoded, images=[], videos=[], audios=[], messages=[])


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> TokenService:
    return TokenService(monkeypatch)


def trainer(processes: Processes, size: int, **body: Any) -> Any:
    dense = {"gamma": 1.0, "baseline": "sequence", "scale": "none"}
    reward = TokenReward(AsyncClient("http://127.0.0.1:9"), "dense")
    own = type("Dense", (DenseSwift, Trainer), {"reward": reward, "dense": dense, **body})()
    own.accelerator, own.num_generations = processes, size
    own.model, own.template = Shape(training=True), Shape(sequence_parallel_size=1, tokenizer=None)
    own.loss_type, own.use_liger_loss = "grpo", False
    own.off_policy_sequence_mask_delta, own.dynamic_num_samples = None, False
    return own


def batch(*masks: list[int]) -> dict[str, Any]:
    return {"grpo_batch": Shape(completion_mask=torch.tensor(masks))}


def test_each_counted_token_gets_its_advantage_in_the_frame_of_its_micro_batch(
    service: TokenService,
) -> None:
    own = trainer(Processes(), 2, outcome_weight=2.0)
    samples = [sample([1], [5, 6, 7], [1, 0, 1]), sample([2], [5, 6], [1, 1])]
    inputs = [batch([0, 1, 0, 1, 0]), batch([1, 1, 0])]
    own.after_rollout(samples, inputs)
    (items, _, _) = service.calls[0]
    assert items[0] == {"prompt": [1], "response": [5, 6, 7], "mask": [1, 0, 1]}
    assert items[1] == {"prompt": [2], "response": [5, 6]}  # not the line break behind
    # Rewards 10, -, 12 and 20, 21; returns 22, -, 12 and 41, 21; their mean is 31.5.
    first, second = (each["grpo_batch"].advantages.tolist() for each in inputs)
    assert first == [[1.0, 22 - 31.5 + 1, 1.0, 12 - 31.5 + 1, 1.0]]
    assert second == [[41 - 31.5 + 1, 21 - 31.5 + 1, 1.0]]


def test_a_group_may_be_spread_over_processes(service: TokenService) -> None:
    others = [[8.0, 0.0, 0.0]]
    own = trainer(Processes(others, [[1.0, 0.0, 0.0]]), 2)
    own.accelerator.process_index = 1
    inputs = [batch([1, 1])]
    own.after_rollout([sample([2], [5, 6], [1, 1])], inputs)
    mean = (8 + 41) / 2
    assert inputs[0]["grpo_batch"].advantages.tolist() == [[41 - mean, 21 - mean]]


def test_a_batch_whose_tokens_are_others_is_refused(service: TokenService) -> None:
    own = trainer(Processes(), 1)
    with pytest.raises(BadArgument, match="2 advantages for 3 tokens"):
        own.after_rollout([sample([2], [5, 6], [1, 1])], [batch([1, 1, 1])])


def test_a_process_raises_where_another_one_failed(service: TokenService) -> None:
    processes = Processes()
    processes.gather = lambda tensor: torch.tensor([1.0, 0.0])  # type: ignore[method-assign]
    own = trainer(processes, 1)
    with pytest.raises(ClientError, match="failed in process 0"):
        own.after_rollout([sample([2], [5, 6], [1, 1])], [batch([1, 1])])

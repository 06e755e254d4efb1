"""ms-swift's own steps from samples to the loss of its GRPO, with our class before them.

swift's trainer is made for an older TRL than the one that is installed, so its methods are run and
its class is not imported. Its samples, its collation and its advantages are imported.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import gather, gather_object

from fakes import published
from tokenreward_client import AsyncClient, BadArgument, Client
from tokenreward_client.trainers import TokenReward
from tokenreward_client.trainers._advantages import dense_advantages
from tokenreward_client.trainers.ms_swift import DenseSwift

SITE = published.site()
MISSING = ("modelscope", "PIL", "vllm", "dacite", "addict", "json_repair", "oss2", "tiktoken")
PROMPT, RESPONSES = [5, 6, 7, 8], [[9, 10, 11, 12, 13], [14, 15, 16], [17, 18], [19, 20, 21, 22]]
MASKS = [[1, 1, 1, 1, 1], [1, 0, 1], [1, 1], [1, 1, 1, 1]]  # a tool wrote the 15
DENSE = {"gamma": 0.5, "baseline": "sequence", "scale": "none"}
SCALARS = [1.0, 0.0, 3.0, 2.0]  # of the trainer's own reward function


@pytest.fixture(scope="module")
def swift() -> Iterator[Any]:
    """The methods of swift's trainer, as a class, and the samples that it takes."""
    with published.importable(SITE, missing=MISSING):
        from swift.rl_core import advantage, data
        from swift.rlhf_trainers import utils

        names = {
            name: value for module in (advantage, utils) for name, value in vars(module).items()
        }
        names |= {"torch": torch, "gather": gather, "gather_object": gather_object}
        names |= {"nanmin": torch.min, "nanmax": torch.max, "WINDOW_NORMALIZED_LOSS_TYPES": []}
        folder, methods = SITE / "swift/rlhf_trainers", {}
        for file, kind, method in (
            ("base_rollout_mixin", "BaseRolloutTrainerMixin", "_split_data_by_steps"),
            ("rollout_mixin", "RolloutTrainerMixin", "split_by_mini_batches"),
            ("grpo_trainer", "GRPOTrainer", "_compute_advantages"),
            ("grpo_trainer", "GRPOTrainer", "_postprocess_batch"),
            ("grpo_trainer", "GRPOTrainer", "_compute_loss_and_metrics"),
        ):
            path = folder / f"{file}.py"
            methods[method] = published.definition(path, f"{kind}.{method}", **names)
        yield SimpleNamespace(
            kind=type("GRPOTrainer", (), methods),
            sample=data.GRPOSample,
            collate=utils.collate_to_grpo_micro_batch,
        )


@pytest.fixture
async def asking(url: str) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(url) as client:
        yield client


def collator(encoded: list[dict[str, Any]], padding_to: Any = None) -> dict[str, Any]:
    """Pads as swift's templates do, on the right."""
    longest = max(len(each["input_ids"]) for each in encoded)
    rows = {"input_ids": 0, "labels": -100}
    return {
        key: torch.tensor([each[key] + [fill] * (longest - len(each[key])) for each in encoded])
        for key, fill in rows.items()
    }


def trainer(swift: Any, reward: TokenReward, **attributes: Any) -> Any:
    """The trainer as far as these methods read it."""
    kind = type("Dense", (DenseSwift, swift.kind), {"reward": reward, "dense": DENSE, **attributes})
    made = kind()
    made.accelerator = Accelerator(cpu=True)
    made.args = SimpleNamespace(
        steps_per_generation=2, top_entropy_quantile=1.0, delta=None, log_entropy=False
    )
    made.template = SimpleNamespace(
        sequence_parallel_size=1, padding_free=False, tokenizer=None, data_collator=collator
    )
    made.model = SimpleNamespace(training=True)
    made.num_generations, made.num_generations_eval = 2, 1
    made.advantage_estimator, made.scale_rewards, made.kl_in_reward = "grpo", "none", False
    made.reward_weights, made.reward_func_names = torch.ones(1), ["own"]
    made._rewards_per_func = torch.tensor(SCALARS)[:, None]
    made._metrics, made._logs = {"train": defaultdict(list)}, defaultdict(list)
    made._logs["rewards"] = defaultdict(list)  # type: ignore[assignment]
    made.beta, made.advantage_reweight, made.sdar_loss_coef = 0.0, None, 0.0
    made._has_teacher = made.use_teacher_api = made.dynamic_num_samples = False
    made.use_liger_loss, made.off_policy_sequence_mask_delta, made.loss_type = False, None, "grpo"
    made.compute_entropy = made.overlong_filter = made.log_rollout_offpolicy_metrics = False
    made.rollout_importance_sampling_mode, made.disable_rollout_importance_sampling = None, True
    made.importance_sampling_level, made.chord_sft_iterator = "token", None
    made.epsilon_low = made.epsilon_high = 0.2
    return made


def encoded(swift: Any) -> list[Any]:
    """Samples as the template encodes them: what no loss counts has the label -100, and so has a
    line break behind the end of the turn."""
    samples = []
    for response, mask in zip(RESPONSES, MASKS, strict=True):
        sample = swift.sample(messages=[], response_token_ids=response)
        labels = [token if flag else -100 for token, flag in zip(response, mask, strict=True)]
        ids = [*PROMPT, *response, 3]
        sample.encoded = {"input_ids": ids, "labels": [-100] * len(PROMPT) + [*labels, -100]}
        samples.append(sample)
    return samples


def batches(swift: Any, own: Any, samples: list[Any]) -> list[dict[str, Any]]:
    inputs = []
    for chunk in own.split_by_mini_batches(samples):
        _, batch = swift.collate(
            chunk, own.template, device=torch.device("cpu"), use_logits_to_keep=True
        )
        inputs.append({"grpo_batch": batch})
    return inputs


def in_the_loss(own: Any, inputs: list[dict[str, Any]]) -> list[list[float]]:
    """Minus the gradient of swift's loss by each counted token's log-probability, times what it
    divides by: the advantage that the loss uses."""
    rows = []
    for each in inputs:
        batch = each["grpo_batch"]
        log_probs = torch.zeros(batch.completion_mask.shape, requires_grad=True)
        own._get_per_token_logps_and_entropies = lambda *_, now=log_probs, **__: (now, None)
        loss, _ = own._compute_loss_and_metrics(None, {}, batch)
        loss.backward()
        for gradient, flags in zip(log_probs.grad, batch.completion_mask.bool(), strict=True):
            scale = int(flags.sum()) * len(batch.completion_mask)
            assert gradient[~flags].tolist() == [0.0] * int((~flags).sum())
            rows.append((-scale * gradient[flags]).tolist())
    return rows


@pytest.mark.parametrize("outcome_weight", [0.0, 2.0])
def test_the_loss_has_one_advantage_for_each_token_that_it_counts(
    swift: Any, url: str, client: Client, outcome_weight: float
) -> None:
    reward = TokenReward(AsyncClient(url), "attention_dense")
    own = trainer(swift, reward, outcome_weight=outcome_weight)
    samples = encoded(swift)
    inputs = batches(swift, own, samples)
    own._postprocess_batch(samples, inputs)

    items = [
        {"prompt": PROMPT, "response": response, "mask": mask}
        for response, mask in zip(RESPONSES, MASKS, strict=True)
    ]
    rewards, mask = np.zeros((4, 5)), np.zeros((4, 5))
    for row, answer in enumerate(client.score(items, "attention_dense")):
        rewards[row, : len(MASKS[row])] = answer.rewards
        mask[row, : len(MASKS[row])] = MASKS[row]
    expected = dense_advantages(rewards, mask, num_generations=2, **DENSE)
    outcomes = np.repeat([0.5, -0.5, 0.5, -0.5], 1)  # the rewards less the mean of each pair
    for row, values in enumerate(in_the_loss(own, inputs)):
        dense = expected[row][mask[row] == 1] + outcome_weight * outcomes[row]
        np.testing.assert_allclose(values, dense, atol=1e-5)


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        ("loss_type", "real", "one advantage per response"),
        ("use_liger_loss", True, "one advantage per response"),
        ("off_policy_sequence_mask_delta", 0.1, "one advantage per response"),
        ("dynamic_num_samples", True, "as many as were asked"),
    ],
)
def test_what_would_average_the_vector_or_break_groups_is_refused(
    swift: Any, attribute: str, value: Any, message: str
) -> None:
    own = trainer(swift, TokenReward(AsyncClient("http://x")))
    setattr(own, attribute, value)
    with pytest.raises(BadArgument, match=message):
        own._postprocess_batch(encoded(swift), [])


def test_images_and_samples_without_a_token_are_refused(swift: Any) -> None:
    own = trainer(swift, TokenReward(AsyncClient("http://x")))
    samples = encoded(swift)
    samples[0].images = ["a.png"]
    with pytest.raises(BadArgument, match="with images"):
        own._postprocess_batch(samples, [])
    samples = encoded(swift)
    inputs = batches(swift, own, samples)
    samples[1].encoded["labels"] = [-100] * len(samples[1].encoded["labels"])
    with pytest.raises(BadArgument, match="no token that the loss counts"):
        own._postprocess_batch(samples, inputs)


def test_a_plugins_class_is_the_one_that_swift_trains_with(swift: Any) -> None:
    factory = published.loaded(
        SITE / "swift/trainers/trainer_factory.py",
        "trainer_factory",
        swift__utils=published.stand_in("swift.utils"),
    ).TrainerFactory
    factory.TRAINER_MAPPING["grpo"] = f"{__name__}.DenseSwift"
    assert factory.get_trainer_cls(SimpleNamespace(rlhf_type="grpo")) is DenseSwift

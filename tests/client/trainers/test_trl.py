"""DenseGRPO between a trainer that has generated and a service that answers, both written here.
What TRL's own trainer makes of it is tested in `tests/trainers/trl`."""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tokenreward.wire import ErrorDetail
from tokenreward_client import BadArgument, ClientError, Rewards, ScorerInfo, fingerprint
from tokenreward_client.errors import ItemFailed, NotText
from tokenreward_client.trainers._advantages import dense_advantages
from tokenreward_client.trainers.trl import DenseGRPO

PAD = 0
PROMPTS = [[3, 4], [3, 4], [5], [5]]
COMPLETIONS = [[7, 8, 9], [7], [8, 0, 9, 2], [9, 2]]  # one has the id of the padding inside
VOCABULARY = {"a": 3, "b": 4}


class Service:
    """A client whose rewards are a tenth of the ids, and that refuses responses with id 6."""

    def __init__(self, *entries: dict[str, Any]) -> None:
        given = entries or ({"name": "endogenous", "type": "endogenous"},)
        self.entries = [ScorerInfo.model_validate(entry) for entry in given]
        self.calls: list[tuple[list[Any], str | None, dict[str, Any]]] = []

    def scorers(self, *, wait_for: list[str]) -> list[ScorerInfo]:
        self.awaited = wait_for
        return self.entries

    def score(self, items: list[Any], scorer: str | None = None, **settings: Any) -> list[Rewards]:
        self.calls.append((items, scorer, settings))
        return [self.answer(index, item, settings) for index, item in enumerate(items)]

    def answer(self, index: int, item: dict[str, Any], settings: dict[str, Any]) -> Rewards:
        ids = list(item["response"])
        if 6 in ids and settings["on_error"] == "raise":
            raise ItemFailed("six", index=index, code="token_out_of_range")
        if 6 in ids:
            error = ErrorDetail(code="token_out_of_range", message="six", param=None)
            return Rewards(None, error=error)
        mask = item.get("mask", np.ones(len(ids)))
        return Rewards((np.array(ids) / 10 * mask).astype(np.float32), score=float(sum(ids)))


class OneProcess:
    process_index = 0

    def pad_across_processes(self, tensor: Any, dim: int) -> Any:
        return tensor

    def gather(self, tensor: Any) -> Any:
        return tensor


class GRPOTrainer:
    """As much of TRL's as DenseGRPO touches: it has generated COMPLETIONS, or `completions`."""

    def __init__(
        self, completions: Any = COMPLETIONS, processing_class: Any = None, **extra: Any
    ) -> None:
        self.completions, self.extra = completions, extra
        self.accelerator = OneProcess()
        self.model = SimpleNamespace(training=True)
        self.num_generations, self.num_generations_eval = 2, 4
        self.processing_class = processing_class or SimpleNamespace(get_vocab=lambda: VOCABULARY)
        self._metrics: Any = {"train": defaultdict(list), "eval": defaultdict(list)}

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        prompt_ids, prompt_mask = padded(PROMPTS, side="left")
        completion_ids, completion_mask = padded(self.completions, side="right")
        output = {
            "prompt_ids": prompt_ids,
            "prompt_mask": prompt_mask,
            "completion_ids": completion_ids,
            "completion_mask": completion_mask,
            "advantages": torch.tensor([0.5, -0.5, 1.0, -1.0]),
        }
        return output | self.extra

    def generate(self) -> dict[str, Any]:
        return self._generate_and_score_completions([{"prompt": "p"}] * 4)

    def logged(self, mode: str = "train") -> dict[str, Any]:
        return dict(self._metrics[mode])


class DenseTrainer(DenseGRPO, GRPOTrainer):
    pass


def padded(rows: Any, *, side: str) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(map(len, rows))
    pads = [[PAD] * (longest - len(row)) for row in rows]
    masks = [[0] * len(pad) + [1] * len(row) for pad, row in zip(pads, rows, strict=True)]
    ids = [pad + row for pad, row in zip(pads, rows, strict=True)]
    if side == "right":
        ids = [row + pad for pad, row in zip(pads, rows, strict=True)]
        masks = [mask[::-1] for mask in masks]
    return torch.tensor(ids), torch.tensor(masks)


def truth(mask: Any, **settings: Any) -> np.ndarray:
    ids, _ = padded(COMPLETIONS, side="right")
    rewards = (ids.numpy() / 10).astype(np.float32)
    return dense_advantages(rewards, mask, **{"num_generations": 2, **settings})


def test_the_very_ids_are_scored_without_padding_and_the_advantages_are_theirs() -> None:
    service = Service()
    trainer: Any = DenseTrainer(client=service, dense={"gamma": 0.9, "scale": "none"})
    output = trainer.generate()
    ((items, scorer, settings),) = service.calls
    assert [list(item["prompt"]) for item in items] == PROMPTS
    assert [list(item["response"]) for item in items] == COMPLETIONS
    assert all("mask" not in item for item in items)
    assert scorer is None
    assert settings == {"fingerprint": fingerprint(VOCABULARY), "on_error": "raise"}
    expected = truth(output["completion_mask"].numpy(), gamma=0.9, scale="none")
    assert output["advantages"].dtype == torch.float32
    np.testing.assert_allclose(output["advantages"], expected, atol=1e-6)


def test_what_tools_wrote_is_masked_in_the_item_and_has_no_advantage() -> None:
    tool_mask = torch.tensor([[1, 0, 1, 1], [1, 1, 1, 1], [1, 1, 0, 1], [1, 1, 1, 1]])
    service = Service()
    trainer: Any = DenseTrainer(client=service, tool_mask=tool_mask)
    output = trainer.generate()
    items = service.calls[0][0]
    assert [list(item.get("mask", [])) for item in items] == [[1, 0, 1], [], [1, 1, 0, 1], []]
    mask = (output["completion_mask"] * tool_mask).numpy()
    np.testing.assert_allclose(output["advantages"], truth(mask), atol=1e-6)
    assert (output["advantages"].numpy()[mask == 0] == 0).all()


def test_a_completion_that_is_masked_whole_is_not_scored_and_its_peers_are() -> None:
    _, mask = padded(COMPLETIONS, side="right")
    mask[2] = 0  # as `mask_truncated_completions` does
    service = Service()
    trainer: Any = DenseTrainer(client=service, completion_mask=mask)
    output = trainer.generate()
    assert len(service.calls[0][0]) == 3
    assert (output["advantages"][2] == 0).all()
    np.testing.assert_allclose(output["advantages"], truth(mask.numpy()), atol=1e-6)


def test_centred_with_the_outcomes_weight_keeps_each_completions_sum_of_advantages() -> None:
    trainer: Any = DenseTrainer(client=Service(), dense={"centre": True}, outcome_weight=1.0)
    output = trainer.generate()
    lengths = output["completion_mask"].sum(1)
    sums = lengths * torch.tensor([0.5, -0.5, 1.0, -1.0])
    torch.testing.assert_close(output["advantages"].sum(1), sums)
    assert (output["advantages"][output["completion_mask"] == 0] == 0).all()


def test_in_evaluation_groups_have_their_own_size_and_metrics_their_own_place() -> None:
    trainer: Any = DenseTrainer(client=Service())
    trainer.model.training = False
    output = trainer.generate()
    mask = output["completion_mask"].numpy()
    np.testing.assert_allclose(output["advantages"], truth(mask, num_generations=4), atol=1e-6)
    assert trainer.logged("eval").keys() == {f"dense/{name}" for name in METRICS}
    assert not trainer.logged()


METRICS = {"missing", "reward", "reward_std", "token_reward", "advantage_std"}


def test_the_metrics_are_those_of_the_rewards() -> None:
    trainer: Any = DenseTrainer(client=Service(), dense={"scale": "batch"})
    trainer.generate()
    sums = np.array([sum(ids) / 10 for ids in COMPLETIONS])
    flat = np.concatenate(COMPLETIONS) / 10
    logged = {name: trainer.logged()[f"dense/{name}"] for name in METRICS}
    assert logged["missing"] == [0.0]
    assert logged["reward"] == pytest.approx([sums.mean()])
    assert logged["reward_std"] == pytest.approx([sums.std()])
    assert logged["token_reward"] == pytest.approx([flat.mean()])


WRONG = [[7, 8, 9], [7, 6], [8, 0, 9, 2], [9, 2]]


def test_one_wrong_item_ends_the_step_with_its_error() -> None:
    trainer: Any = DenseTrainer(client=Service(), completions=WRONG)
    with pytest.raises(ItemFailed, match="six"):
        trainer.generate()


def test_or_it_is_left_out_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    trainer: Any = DenseTrainer(client=Service(), completions=WRONG, on_error="none")
    output = trainer.generate()
    assert (output["advantages"][:2] == 0).all()  # its peer has no group any more
    assert (output["advantages"][2:] != 0).any()
    assert trainer.logged()["dense/missing"] == [0.25]
    assert "completion 1 of the batch has no reward: six" in caplog.text


def test_a_batch_without_any_reward_has_no_advantage_and_no_number_in_the_log() -> None:
    trainer: Any = DenseTrainer(client=Service(), completions=[[6]] * 4, on_error="none")
    output = trainer.generate()
    assert (output["advantages"] == 0).all()
    assert trainer.logged()["dense/missing"] == [1.0]
    assert np.isnan(trainer.logged()["dense/reward"]).all()


class Spelling:
    """A tokenizer of another vocabulary: each id is a letter, 5 is half a character, 2 ends."""

    all_special_ids = (2,)
    eos_token_id = 2
    pad_token_id = None

    def convert_ids_to_tokens(self, ids: Any) -> list[Any]:
        return [b"\xc3" if id_ == 5 else chr(ord("a") + id_) for id_ in ids]

    def decode(self, ids: Any, **how: Any) -> str:
        tokens = self.convert_ids_to_tokens([id_ for id_ in ids if id_ != 2])
        raw = b"".join(t if isinstance(t, bytes) else t.encode() for t in tokens)
        return raw.decode("utf-8", "replace")


def spans_trainer(service: Service, completions: Any, **settings: Any) -> Any:
    settings |= {"completions": completions, "processing_class": Spelling()}
    return DenseTrainer(client=service, by="spans", **settings)


class TextService(Service):
    def answer(self, index: int, item: dict[str, Any], settings: dict[str, Any]) -> Rewards:
        return Rewards(np.arange(len(item["spans"]), dtype=np.float32), score=0.0)


def test_by_spans_the_text_goes_with_a_span_per_id_and_no_fingerprint() -> None:
    service = TextService()
    output = spans_trainer(service, [[7, 8, 2], [7], [8, 9], [9, 2]]).generate()
    ((items, _, settings),) = service.calls
    first = {"prompt": "p", "response": "hi", "spans": [[0, 1], [1, 2], [2, 2]], "finished": True}
    assert items[0] == first
    assert items[1]["finished"] is False
    assert settings["fingerprint"] is None
    assert output["advantages"].shape == (4, 3)


def test_ids_that_are_no_text_are_an_error_or_left_out() -> None:
    cut = [[7, 8, 2], [7], [8, 5], [9, 2]]
    with pytest.raises(NotText, match="never completed"):
        spans_trainer(TextService(), cut).generate()
    service = TextService()
    output = spans_trainer(service, cut, on_error="none").generate()
    assert len(service.calls[0][0]) == 3
    assert (output["advantages"][2] == 0).all()


def test_tool_turns_as_text_and_images_are_refused_in_a_sentence() -> None:
    tool_mask = torch.ones(4, 4, dtype=torch.long)
    with pytest.raises(BadArgument, match="by their ids alone"):
        spans_trainer(TextService(), COMPLETIONS, tool_mask=tool_mask).generate()
    trainer: Any = DenseTrainer(client=Service(), pixel_values=torch.ones(1))
    with pytest.raises(BadArgument, match="images cannot be scored"):
        trainer.generate()


LEVELS = {
    "name": "rm",
    "type": "reward_model",
    "options": {"red": {"default": False}},
    "default_credit": "last",
}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scorer": "rm", "score": {"credit": {"name": "values"}}}, "levels.*`red`"),
        ({"scorer": "none"}, "lists no scorer `none`"),
        ({"scorer": "rm", "by": "text"}, 'must be "ids" or "spans"'),
        ({"scorer": "rm", "on_error": "skip"}, 'must be "raise" or "none"'),
        ({"score": {"scorers": ["rm"]}}, "several scorers need weights"),
    ],
)
def test_what_cannot_be_right_is_refused_before_the_trainer_is_made(
    settings: Any, message: str
) -> None:
    with pytest.raises(BadArgument, match=message):
        DenseTrainer(client=Service(LEVELS), **settings)


def test_the_scorers_whose_deployments_may_still_load_are_waited_for() -> None:
    service = Service({"name": "a", "type": "endogenous"}, {"name": "b", "type": "endogenous"})
    DenseTrainer(client=service, scorer="b")
    assert service.awaited == ["b"]
    weights = {"scorers": ["a", "b"], "combine": {"a": 1.0, "b": 1.0}}
    DenseTrainer(client=service, score=weights)
    assert service.awaited == ["a", "b"]


def test_the_form_of_the_advantages_is_checked_early_too() -> None:
    with pytest.raises(ValueError, match="baseline must be one of"):
        DenseTrainer(client=Service(), dense={"baseline": "mean"})
    with pytest.raises(TypeError, match="beta"):
        DenseTrainer(client=Service(), dense={"beta": 1})


def test_a_trainer_that_takes_one_number_per_completion_is_refused() -> None:
    class RLOOTrainer:
        pass

    class Mixed(DenseGRPO, RLOOTrainer):
        pass

    with pytest.raises(BadArgument, match="before GRPOTrainer"):
        Mixed(client=Service())


class TwoProcesses(OneProcess):
    """What accelerate does for the second of two processes; the first one's rows are written
    down."""

    process_index = 1

    def __init__(self, first: list[torch.Tensor]) -> None:
        self.first, self.width = first, first[-1].shape[-1]

    def pad_across_processes(self, tensor: Any, dim: int) -> Any:
        width = max(tensor.shape[1], self.width)
        return torch.nn.functional.pad(tensor, (0, width - tensor.shape[1]))

    def gather(self, tensor: Any) -> Any:
        return torch.cat([self.first.pop(0).to(tensor.dtype), tensor])


def test_groups_that_are_split_over_processes_share_their_baseline() -> None:
    ids, mask = padded([[1, 2, 3, 4, 5], [4, 5], [1], [2, 2]], side="right")
    own, own_mask = padded(COMPLETIONS, side="right")
    trainer: Any = DenseTrainer(client=Service(), dense={"gamma": 0.5})
    trainer.num_generations = 8
    trainer.accelerator = TwoProcesses([torch.zeros(1), ids / 10, mask])
    output = trainer.generate()
    wide = torch.nn.functional.pad(own, (0, 1)), torch.nn.functional.pad(own_mask, (0, 1))
    rewards, masks = torch.cat([ids, wide[0]]) / 10, torch.cat([mask, wide[1]])
    expected = dense_advantages(rewards, masks, num_generations=8, gamma=0.5)
    np.testing.assert_allclose(output["advantages"], expected[4:, :4], atol=1e-6)


def test_if_another_process_cannot_score_this_one_stops_too() -> None:
    trainer: Any = DenseTrainer(client=Service())
    trainer.accelerator = TwoProcesses([torch.ones(1)])
    with pytest.raises(ClientError, match="scoring failed in process 0"):
        trainer.generate()

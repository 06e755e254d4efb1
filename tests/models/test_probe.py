"""The load-time probe: packed only where it is exact, plain where it is not, refused where nothing is right."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import oracle
import tiny
from tokenreward.contract import Needs, Row
from tokenreward.models.checkpoint import Checkpoint, CheckpointRefused
from tokenreward.models.probe import Verdict, choose_layout

LM_NEEDS = Needs(temperatures=frozenset({1.0}))
RM_NEEDS = Needs(values=True, attention=True)


def probe(model: object, task: str = "causal_lm", said: list[str] | None = None) -> Verdict:
    checkpoint = Checkpoint(model=model, tokenizer=None, task=task, device=torch.device("cpu"))
    needs = LM_NEEDS if task == "causal_lm" else RM_NEEDS
    return choose_layout(checkpoint, needs, say=(said if said is not None else []).append)


@pytest.mark.parametrize("architecture", tiny.PACKED)
def test_architectures_of_the_attention_interface_are_served_packed(architecture: str) -> None:
    verdict = probe(tiny.model(architecture))
    assert verdict.layout.name == "packed"
    assert verdict.reason is None
    assert verdict.difference <= verdict.bound < 1e-3


@pytest.mark.parametrize("architecture", tiny.PLAIN)
def test_others_are_served_plain_with_a_reason_and_right_numbers(architecture: str) -> None:
    said: list[str] = []
    model = tiny.model(architecture)
    exact = oracle.double(model) if architecture != "mamba" else model
    verdict = probe(model, said=said)
    assert verdict.layout.name == "plain"
    assert verdict.reason
    assert verdict.reason in said[-1]
    ids = np.random.default_rng(1).integers(3, tiny.VOCAB_SIZE, size=50)
    (outputs,) = verdict.layout.run([(Row(ids, 10, 50), LM_NEEDS)])
    rows = oracle.logits(exact, ids)[9:]
    bound = 1e-5 * max(1.0, float(np.abs(rows).max()))
    assert np.abs(outputs.chosen - rows[np.arange(40), ids[10:]]).max() <= bound
    assert np.abs(outputs.lse[1.0] - oracle.logsumexp(rows)).max() <= bound


def test_an_alibi_reward_model_gives_its_own_attention_from_the_plain_layout() -> None:
    model = tiny.model("bloom", "reward_model")
    exact = oracle.double(model)
    verdict = probe(model, "reward_model")
    assert verdict.layout.name == "plain"
    ids = np.random.default_rng(1).integers(3, tiny.VOCAB_SIZE, size=30)
    (outputs,) = verdict.layout.run([(Row(ids, 10, 30), RM_NEEDS)])
    assert np.abs(outputs.attention - oracle.last_attention_row(exact, ids)).max() < 1e-6
    assert np.abs(outputs.values - oracle.head_values(exact, ids)[10:]).max() < 1e-4


def test_dynamic_rotary_rewards_do_not_depend_on_history() -> None:
    layout = probe(tiny.model("llama_dynamic")).layout
    generator = np.random.default_rng(2)
    short, long = (generator.integers(3, tiny.VOCAB_SIZE, size=size) for size in (40, 60))
    (first,) = layout.run([(Row(short, 5, 40), LM_NEEDS)])
    layout.run([(Row(long, 5, 60), LM_NEEDS)])
    (again,) = layout.run([(Row(short, 5, 40), LM_NEEDS)])
    np.testing.assert_array_equal(first.lse[1.0], again.lse[1.0])


def test_a_logit_scale_that_the_head_does_not_know_is_served_plain_and_exact() -> None:
    model = tiny.model("llama")
    own = type(model).forward

    def forward(self: object, *args: object, **kwargs: object) -> object:
        output = own(self, *args, **kwargs)
        output.logits = output.logits * 1.5
        return output

    model.forward = forward.__get__(model)
    ids = np.random.default_rng(1).integers(3, tiny.VOCAB_SIZE, size=20)
    rows = oracle.logits(model, ids)[4:]
    verdict = probe(model)
    assert verdict.layout.name == "plain"
    assert verdict.difference > verdict.bound
    (outputs,) = verdict.layout.run([(Row(ids, 5, 20), LM_NEEDS)])
    np.testing.assert_allclose(outputs.lse[1.0], oracle.logsumexp(rows), rtol=1e-5)


def test_attention_in_chunks_is_not_packed() -> None:
    model = tiny.model("llama")
    model.config.attention_chunk_size = 8
    assert "chunks" in str(probe(model).reason)


def test_a_model_that_gives_nan_is_refused_by_name() -> None:
    model = tiny.model("llama")
    model.lm_head.weight.data[7] = float("nan")
    with pytest.raises(CheckpointRefused, match=r"LlamaForCausalLM.*not finite"):
        probe(model)


def test_a_reward_model_that_is_more_than_trunk_and_head_is_refused_with_the_figure() -> None:
    model = tiny.model("llama", "reward_model")
    own = type(model).forward

    def forward(self: object, *args: object, **kwargs: object) -> object:
        output = own(self, *args, **kwargs)
        output.logits = output.logits + 3.0
        return output

    model.forward = forward.__get__(model)
    with pytest.raises(CheckpointRefused, match=r"differ from its own call by 3\.0e\+00"):
        probe(model, "reward_model")

"""The figure said at load: our pooled value beside the model's own call, on a templated
conversation."""

from __future__ import annotations

import copy

import pytest

from fakes import tiny
from fakes.tiny import tokenizer_of
from tokenreward.checkpoints.checkpoint import Checkpoint, CheckpointRefused
from tokenreward.forward.own_call import compare_with_own_call

ENDS_WITH_THE_TURN = tiny.TEMPLATE.replace("<|end|>\n", "<|end|>")


def compare(model: object, template: str | None, suffix_text: str | None = None) -> str:
    tokenizer = copy.deepcopy(tiny.tokenizer())
    tokenizer.chat_template = template
    checkpoint = Checkpoint(model, tokenizer, "reward_model")
    return compare_with_own_call(checkpoint, tokenizer_of(checkpoint), suffix_text)


def test_a_template_that_ends_with_the_turn_agrees() -> None:
    assert "differ" not in compare(tiny.model("llama", "reward_model"), ENDS_WITH_THE_TURN)


def test_what_the_template_puts_after_the_turn_is_named_as_the_likely_suffix() -> None:
    line = compare(tiny.model("llama", "reward_model"), tiny.TEMPLATE)
    assert "they differ" in line
    assert 'set `suffix_text: "\\n"`' in line


def test_with_that_suffix_they_agree() -> None:
    assert "differ" not in compare(tiny.model("llama", "reward_model"), tiny.TEMPLATE, "\n")


def test_without_a_template_the_same_tokens_are_compared() -> None:
    assert "differs from the model's own call by 0.0e+00" in compare(
        tiny.model("llama", "reward_model"), None
    )


def test_a_reward_model_that_is_more_than_trunk_and_head_is_refused_with_the_figure() -> None:
    model = tiny.model("llama", "reward_model")
    own = type(model).forward

    def forward(self: object, *args: object, **kwargs: object) -> object:
        output = own(self, *args, **kwargs)
        output.logits = output.logits + 3.0
        return output

    model.forward = forward.__get__(model)
    with pytest.raises(CheckpointRefused, match=r"differ from its own call by 3\.0e\+00"):
        compare(model, tiny.TEMPLATE)


def test_a_small_std_is_no_reason_to_refuse_what_rounding_explains() -> None:
    model = tiny.model("llama", "reward_model").bfloat16()
    raw = float(compare(model, ENDS_WITH_THE_TURN).split("conversation ")[1].split(",")[0])
    model.config.mean, model.config.std, model.config.normalize_reward = raw, 1e-4, True
    assert "they differ" not in compare(model, ENDS_WITH_THE_TURN)

"""Scorer `treg`: how much likelier a token is under the instruction to answer well than under the
instruction to answer badly.

These are the token rewards of T-REG (Zhou et al. 2024, "T-REG: Preference Optimization with
Token-Level Reward Regularization", 2412.02685). The model generates them itself, from two opposite
instructions before the same prompt x:

    r_t = sigmoid(log pi(y_t | x_better, y_<t) - log pi(y_t | x_worse, y_<t)) - 0.5

Every r_t is within +-0.5, and 0 where the instruction makes no difference. They add up: a span's
reward is the sum of its tokens' rewards. No training is needed, and the two rows share one pass.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64
from pydantic import Field, model_validator

from tokenreward import contract
from tokenreward.contract import Needs, Outputs, Row, Sample, Signals
from tokenreward.errors import UnsupportedText
from tokenreward.scorers._prompts.texts import behind_bos

_BETTER = "Answer as well as you can: be helpful, correct, coherent and concise."
_WORSE = "Answer as badly as you can: be unhelpful, incorrect, incoherent and wordy."


class Scorer(contract.Scorer):
    """Per-token reward from a causal language model under two instructions; values are increments.

    An instruction becomes a system message in front, or one more paragraph of the system message
    that is there. Before raw text it is a paragraph. A prompt of ids has no place for an
    instruction and is refused. The response's tokens are the same in both rows.
    """

    class Options(contract.Options):
        better: str = Field(
            default=_BETTER, min_length=1, description="The instruction to answer well."
        )
        worse: str = Field(
            default=_WORSE, min_length=1, description="The instruction to answer badly."
        )
        temperature: float = Field(
            default=1.0, gt=0, allow_inf_nan=False, description="Divides the logits."
        )

        @model_validator(mode="after")
        def _they_differ(self) -> Scorer.Options:
            if self.better == self.worse:
                raise ValueError("`better` and `worse` are the same: every reward would be 0")
            return self

    task = "causal_lm"
    gives = frozenset({"values", "score"})
    default_credit = "values"
    score_is = "sum of the unmasked tokens' rewards, each within +-0.5"

    def rows(self, sample: Sample, options: Options) -> tuple[Row, ...]:
        """Two: the item under the instruction to answer well, then under the other.

        Raises:
            UnsupportedText: The prompt has no place for an instruction, or is scored itself
                (`whole: sequence`).
            EmptyPrompt: The prompt is empty, and the model has no BOS.
            SequenceTooLong: The request's instructions are too much text.
        """
        sample.refuse_sequence()
        rows = []
        for instruction in (options.better, options.worse):
            prompt = _prompt(sample, instruction)
            ids = np.concatenate([prompt, sample.response_ids])
            rows.append(Row(ids, start=len(prompt), stop=len(ids)))
        return tuple(rows)

    def needs(self, options: Options) -> Needs:
        return Needs(temperatures=frozenset({options.temperature}))

    def score(self, sample: Sample, outputs: Sequence[Outputs], options: Options) -> Signals:
        better, worse = (row.log_probs(options.temperature) for row in outputs)
        # sigmoid(d) - 0.5 in the form that keeps its digits near 0, where most tokens are.
        values = np.asarray(0.5 * np.tanh((better - worse) / 2), dtype=np.float32)
        return Signals(score=float(sample.unmasked(values).sum()), values=values)


def _prompt(sample: Sample, instruction: str) -> Int64[np.ndarray, " p"]:
    """The item's prompt under an instruction. Raises as `rows`."""
    item, tokenizer = sample.item, sample.tokenizer
    sample.budget.spend(len(instruction))
    if isinstance(item.prompt, str):
        text = behind_bos(f"{instruction}\n\n", item.prompt, tokenizer)
        return sample.budget.once(
            ("treg", text), lambda: tokenizer.prompt_from_text(text, param="prompt")
        )
    if item.messages is None:
        raise UnsupportedText(
            "an instruction goes into this prompt, and ids have no place for it; send messages or "
            "text",
            param="prompt",
        )
    messages = _with_instruction(item.messages, instruction)
    return sample.budget.once(
        ("treg", json.dumps([messages, item.tools, item.chat_template_kwargs])),
        lambda: tokenizer.prompt_from_messages(
            messages, item.tools, item.chat_template_kwargs, param="prompt"
        ),
    )


def _with_instruction(messages: list[dict[str, Any]], instruction: str) -> list[dict[str, Any]]:
    """The conversation with an instruction in its system message."""
    first, *others = messages
    if first["role"] != "system":
        return [{"role": "system", "content": instruction}, *messages]
    content = first.get("content")
    if isinstance(content, list):
        content = [*content, {"type": "text", "text": f"\n\n{instruction}"}]
    elif content:
        content = f"{content}\n\n{instruction}"
    else:
        content = instruction
    return [{**first, "content": content}, *others]

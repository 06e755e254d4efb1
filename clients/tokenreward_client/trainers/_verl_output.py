"""verl's `AgentLoopOutput` with one reward per token. It imports nothing of verl."""

from __future__ import annotations

from functools import cache
from typing import Any


def with_rewards(output: Any, rewards: Any) -> Any:
    """The same `AgentLoopOutput`, whose `as_dict` writes `rewards` [response] to `rm_scores`.

    Its `reward_score` is their sum. All else is what `output` has.
    """
    output.extra_fields.setdefault("reward_extra_info", {})
    fields = {**output.__dict__, "reward_score": float(rewards.sum()), "rm_scores": rewards}
    names = {*output.model_fields_set, "extra_fields", "reward_score"}
    kind: Any = type(output)
    return _dense_kind(kind).model_construct(names, **fields)


@cache
def _dense_kind(kind: Any) -> Any:
    """A subclass of a pydantic model, made once, since verl's class is known only here."""

    def as_dict(self: Any) -> dict[str, Any]:
        entries: dict[str, Any] = kind.as_dict(self)
        # verl's own is the sum on the last token, float32.
        entries["rm_scores"] = entries["rm_scores"].new_tensor(self.rm_scores.tolist())
        return entries

    body = {"as_dict": as_dict, "__annotations__": {"rm_scores": Any}, "__module__": __name__}
    return type(kind)(f"Dense{kind.__name__}", (kind,), body)

"""How value heads are stored: which tensors of a checkpoint are its head, recognised by their names
alone.

| format | tensors of the head | written by |
|---|---|---|
| `score` | `score.weight`, maybe `.bias` | transformers, TRL, verl, OpenRLHF |
| `classifier` | `classifier.weight`, maybe `.bias` | transformers (GPT-2, BLOOM, Falcon) |
| `score.mlp` | `score.0.*`, `score.2.*`, a ReLU between | Qwen2.5-Math-PRM and -RM |
| `value_head` | `value_head.weight`, maybe `.bias` (1) | OpenRLHF |
| `v_head.summary` | `v_head.summary.weight`, `.bias` (2) | TRL (3), Skywork-o1 PRM |
| `v_head` | `v_head.weight`, maybe `.bias` | DeepSpeed-Chat |

(1) or another name that config.json gives as `value_head_prefix`; (2) also in a file
`value_head.safetensors`, as LLaMA-Factory has it; (3) AutoModelForCausalLMWithValueHead.

The trunk has transformers' own names. In two formats they may stand behind a prefix:
`pretrained_model.` with `v_head.summary`, `rwtransformer.` or `rwtranrsformer.` with `v_head`.

It reads no files and knows no architecture. A head that is in none of these forms, or in two, is
refused. Another format is another line of `FORMATS`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from tokenreward.checkpoints.refusal import CheckpointRefused, few

_LINEAR = (frozenset({"weight"}), frozenset({"weight", "bias"}))
_MLP = (
    frozenset({"0.weight", "2.weight"}),
    frozenset({"0.weight", "0.bias", "2.weight", "2.bias"}),
)


@dataclass(frozen=True, slots=True)
class HeadFormat:
    """One way to store a head.

    Attributes:
        name: What the log and the README call it.
        prefix: What the names of the head's tensors start with.
        forms: The sets of names below the prefix that make a head.
        trunk: Prefixes that the trunk's names may have before transformers' own.
    """

    name: str
    prefix: str
    forms: tuple[frozenset[str], ...]
    trunk: tuple[str, ...] = ()

    def tensors(self, names: Iterable[str]) -> dict[str, str]:
        """The checkpoint's name of each tensor of a head, by its name in the module.

        It is empty if the names below the prefix are not exactly a head.
        """
        start = f"{self.prefix}."
        below = [name.removeprefix(start) for name in names if name.startswith(start)]
        if frozenset(below) not in self.forms:
            return {}
        return {name: start + name for name in below}

    def renames(self, names: Iterable[str]) -> dict[str, str]:
        """What to cut off the trunk's names, as patterns and their replacement."""
        first_parts = {name.split(".", 1)[0] for name in names}
        present = sorted(first_parts.intersection(self.trunk))
        return {rf"^{re.escape(part)}\.": "" for part in present}


FORMATS = (
    HeadFormat("score", "score", _LINEAR),
    HeadFormat("classifier", "classifier", _LINEAR),
    HeadFormat("score.mlp", "score", _MLP),
    HeadFormat("value_head", "value_head", _LINEAR),
    HeadFormat("v_head.summary", "v_head.summary", _LINEAR, trunk=("pretrained_model",)),
    # The second is its authors' spelling.
    HeadFormat("v_head", "v_head", _LINEAR, trunk=("rwtransformer", "rwtranrsformer")),
)


def has_head(names: Iterable[str], value_head_prefix: str | None) -> bool:
    """Whether there is a head, or more than one, for `find_head` to take or refuse."""
    return bool(_heads(names, value_head_prefix))


def head_names(names: Iterable[str], value_head_prefix: str | None) -> set[str]:
    """The names of the tensors of all heads."""
    heads = _heads(names, value_head_prefix)
    return {name for _, tensors in heads for name in tensors.values()}


def find_head(
    names: Iterable[str], value_head_prefix: str | None
) -> tuple[HeadFormat, dict[str, str]]:
    """The one head among a checkpoint's tensors.

    Args:
        names: The names of all tensors of the checkpoint.
        value_head_prefix: The prefix that config.json gives, if any.

    Returns:
        The way in which the head is stored, and its `HeadFormat.tensors`.

    Raises:
        CheckpointRefused: There is no head in a known format, or more than one. The message says
            what there is and what is known.
    """
    names = sorted(names)
    formats, heads = _formats(value_head_prefix), _heads(names, value_head_prefix)
    if len(heads) == 1:
        return heads[0]
    if not heads:
        tensors = ", ".join(f"{each.prefix}.{min(each.forms[0])}" for each in formats)
        outside = [name for name in names if not re.search(r"\.\d+\..*\.", name)]
        raise CheckpointRefused(
            "it holds no value head: as a reward_model its head would be random. Outside of its "
            f"layers there are {few(outside, 8) or 'no tensors'}; known heads are {tensors}"
        )
    several = ", ".join(name for _, tensors in heads for name in tensors.values())
    raise CheckpointRefused(
        f"it holds more than one value head, {several}; which is meant cannot be told"
    )


def _formats(value_head_prefix: str | None) -> list[HeadFormat]:
    formats = list(FORMATS)
    if value_head_prefix is not None and all(each.prefix != value_head_prefix for each in formats):
        formats.append(HeadFormat("value_head", value_head_prefix, _LINEAR))
    return formats


def _heads(
    names: Iterable[str], value_head_prefix: str | None
) -> list[tuple[HeadFormat, dict[str, str]]]:
    """Every head among the names, with its `HeadFormat.tensors`."""
    names = list(names)
    stored = ((each, each.tensors(names)) for each in _formats(value_head_prefix))
    return [(each, tensors) for each, tensors in stored if tensors]

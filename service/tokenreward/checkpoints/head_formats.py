"""How value heads are stored: which tensors of a checkpoint are its head, recognised by their names
alone.

| format | tensors of the head | the trunk's names | written by |
|---|---|---|---|
| `score` | `score.weight`, maybe `.bias` | transformers' | transformers, TRL, verl, OpenRLHF |
| `classifier` | `classifier.weight`, maybe `.bias` | transformers' | transformers (GPT-2, BLOOM, Falcon) |
| `score.mlp` | `score.0.*`, `score.2.*`, with a ReLU between | transformers' | Qwen2.5-Math-PRM and -RM |
| `value_head` | `value_head.weight`, maybe `.bias` (1) | transformers' | OpenRLHF |
| `v_head.summary` | `v_head.summary.weight`, `.bias` (2) | maybe after `pretrained_model.` | TRL (3), Skywork-o1 PRM |
| `v_head` | `v_head.weight`, maybe `.bias` | maybe after `rwtransformer.`, `rwtranrsformer.` | DeepSpeed-Chat |

(1) or another name that config.json gives as `value_head_prefix`; (2) also in a file
`value_head.safetensors`, as LLaMA-Factory has it; (3) AutoModelForCausalLMWithValueHead.

It reads no files and knows no architecture. A head that is in none of these forms, or in two, is
refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from tokenreward.checkpoints.refusal import CheckpointRefused

_LINEAR = (frozenset({"weight"}), frozenset({"weight", "bias"}))
_MLP = (
    frozenset({"0.weight", "2.weight"}),
    frozenset({"0.weight", "0.bias", "2.weight", "2.bias"}),
)


@dataclass(frozen=True, slots=True)
class HeadFormat:
    """`prefix`: what the head's names start with; `forms`: the sets of names below it that make a
    head; `trunk`: prefixes that the trunk's names may have on top of transformers' own."""

    name: str
    prefix: str
    forms: tuple[frozenset[str], ...]
    trunk: tuple[str, ...] = ()


FORMATS = (
    HeadFormat("score", "score", _LINEAR),
    HeadFormat("classifier", "classifier", _LINEAR),
    HeadFormat("score.mlp", "score", _MLP),
    HeadFormat("value_head", "value_head", _LINEAR),
    HeadFormat("v_head.summary", "v_head.summary", _LINEAR, trunk=("pretrained_model",)),
    HeadFormat(
        "v_head", "v_head", _LINEAR, trunk=("rwtransformer", "rwtranrsformer")
    ),  # its authors' spelling
)


@dataclass(frozen=True, slots=True)
class FoundHead:
    """`tensors`: the checkpoint's name of each tensor of the head, by its name in the module;
    `renames`: what to cut off the trunk's names, as a pattern and its replacement."""

    format: HeadFormat
    tensors: dict[str, str]
    renames: dict[str, str] = field(default_factory=dict)


def find_head(names: Iterable[str], value_head_prefix: str | None) -> FoundHead:
    """The one head among a checkpoint's tensors. Raises CheckpointRefused with what there is and
    what is known."""
    names = sorted(names)
    formats = list(FORMATS)
    if value_head_prefix is not None and all(each.prefix != value_head_prefix for each in formats):
        formats.append(HeadFormat("value_head", value_head_prefix, _LINEAR))
    found = [head for each in formats if (head := _head(each, names)) is not None]
    if len(found) == 1:
        return found[0]
    known = ", ".join(f"{each.prefix}.{min(each.forms[0])}" for each in formats)
    if not found:
        raise CheckpointRefused(
            "it holds no value head: as a reward_model its head would be random. Outside of its "
            "layers there are "
            f"{_listed(_outside(names))}; known heads are {known}"
        )
    several = ", ".join(name for head in found for name in head.tensors.values())
    raise CheckpointRefused(
        f"it holds more than one value head, {several}; which is meant cannot be told"
    )


def _head(known: HeadFormat, names: list[str]) -> FoundHead | None:
    below = [
        name.removeprefix(f"{known.prefix}.")
        for name in names
        if name.startswith(f"{known.prefix}.")
    ]
    if frozenset(below) not in known.forms:
        return None
    wrapped = sorted({name.split(".", 1)[0] for name in names} & set(known.trunk))
    renames = {rf"^{re.escape(prefix)}\.": "" for prefix in wrapped}
    return FoundHead(known, {name: f"{known.prefix}.{name}" for name in below}, renames)


def _outside(names: list[str]) -> list[str]:
    """Names that belong to no numbered layer."""
    return [name for name in names if not re.search(r"\.\d+\..*\.", name)]


def _listed(names: list[str]) -> str:
    if not names:
        return "no tensors"
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")

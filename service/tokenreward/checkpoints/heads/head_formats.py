"""How value heads are stored: which tensors of a checkpoint are its head, recognised by their names
alone.

A head is the tensors below one of these names, and no others may be there:

| name | written by |
|---|---|
| `score` | transformers, TRL, verl, OpenRLHF, Qwen2.5-Math-PRM and -RM, INF-ORM |
| `classifier` | transformers (GPT-2, BLOOM, Falcon) |
| `value_head` | OpenRLHF (1) |
| `v_head.summary` | TRL (2), LLaMA-Factory (3), Skywork-o1 PRM, GRM |
| `v_head` | DeepSpeed-Chat, Starling |
| `regression_head` | UltraRM, Eurus-RM |
| `score_head` | safe-rlhf (Beaver) |
| `out_proj` | OpenAssistant |
| `regression_layer` | ArmoRM (4) |

(1) or another name that config.json gives as `value_head_prefix`; (2)
AutoModelForCausalLMWithValueHead; (3) in a file `value_head.safetensors`; (4) its labels, which a
network beside it weighs by the prompt (see `gate`).

Below the name stand `weight` and maybe `bias` of a Linear, or those of the Linears of an MLP of any
depth, numbered as in a torch Sequential with an activation between two of them: `0.weight`,
`2.weight`, `4.weight`, ... The name itself may stand below one of a few wrappers' names.

The trunk's names are transformers' own behind any prefix. It reads no files and knows no
architecture. Another name of a head is another entry of `FORMATS`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence

from tokenreward.checkpoints.refusal import CheckpointRefused, few

FORMATS = (
    "score",
    "classifier",
    "value_head",
    "v_head.summary",
    "v_head",
    "regression_head",
    "score_head",
    "out_proj",
    "regression_layer",
)
_WRAPPERS = ("module", "model", "pretrained_model", "reward_model")
_LAYER_PLACE = re.compile(r"(\d+)\.(?:weight|bias)")

# The name of the module that a head is, and the names of its tensors in the module.
Head = tuple[str, list[str]]


def find_heads(
    names: Iterable[str], head_names: Sequence[str], *, is_numbered: bool = True
) -> list[Head]:
    """Every head among a checkpoint's tensors.

    Args:
        names: The names of all tensors of the checkpoint.
        head_names: The names that a head may have.
        is_numbered: Whether the Linears of an MLP must be numbered 0, 2, 4, ..., with one layer
            without weights between two of them. Else there may be more, as dropout.
    """
    modules = "|".join(re.escape(name) for name in sorted(head_names, key=len, reverse=True))
    pattern = re.compile(rf"((?:(?:{'|'.join(_WRAPPERS)})\.)*(?:{modules}))\.(.+)")
    below: dict[str, list[str]] = {}
    for name in names:
        match = pattern.fullmatch(name)
        if match is not None:
            below.setdefault(match[1], []).append(match[2])
    return [head for head in below.items() if _is_module(head[1], is_numbered=is_numbered)]


def _is_module(places: Collection[str], *, is_numbered: bool) -> bool:
    """Whether these are the names of the tensors of a Linear or of an MLP."""
    if "weight" in places:
        return set(places) <= {"weight", "bias"}
    matches = [_LAYER_PLACE.fullmatch(place) for place in places]
    numbers = sorted({int(match[1]) for match in matches if match is not None})
    has_weights = {f"{number}.weight" for number in numbers} <= set(places)
    if None in matches or len(numbers) < 2 or not has_weights:
        return False
    return not is_numbered or numbers == list(range(0, 2 * len(numbers), 2))


def find_head(names: Iterable[str], head_names: Sequence[str], *, is_numbered: bool = True) -> Head:
    """The one head among a checkpoint's tensors. Arguments as of `find_heads`.

    Raises:
        CheckpointRefused: There is no head with a known name, or more than one. The message says
            what there is and what is known.
    """
    names = sorted(names)
    heads = find_heads(names, head_names, is_numbered=is_numbered)
    if len(heads) == 1:
        return heads[0]
    if not heads:
        outside = [name for name in names if not re.search(r"\.\d+\..*\.", name)]
        remedy = f"known heads are {', '.join(head_names)}. `head: {{tensor: ...}}` names another"
        if not is_numbered:
            remedy = f"`head: {{tensor: {head_names[0]}}}` names no Linear and no MLP"
        if any(name.startswith("lm_head.") for name in names):
            remedy += (
                ". A reward that is a token's logit is read with `task: causal_lm` by the scorer "
                "`generative`, `mode: logit`"
            )
        raise CheckpointRefused(
            "it holds no value head: as a reward_model its head would be random. Outside of its "
            f"layers there are {few(outside, 8) or 'no tensors'}; {remedy}"
        )
    several = ", ".join(f"{module}.{place}" for module, places in heads for place in places)
    raise CheckpointRefused(
        f"it holds more than one value head, {several}; `head: {{tensor: ...}}` says which is meant"
    )


def find_trunks(
    names: Collection[str], trunk: Collection[str], prefix: str | None = None
) -> list[str]:
    """The prefixes of a trunk among a checkpoint's tensors.

    Args:
        names: The names of all tensors of the checkpoint.
        trunk: The names of the trunk's tensors as its class has them.
        prefix: What the operator says that they begin with.

    Returns:
        The prefix, with its dot, behind which most of the trunk's names stand, as `transformer.`.
        More than one if several hold as many; none if there is no name of the trunk. If the
        operator gives one, it is the only one.

    Raises:
        CheckpointRefused: No tensor of the trunk stands where the operator says. transformers would
            take it from elsewhere, without a word.
    """
    if prefix is not None:
        dotted = prefix if not prefix or prefix.endswith(".") else f"{prefix}."
        if not any(f"{dotted}{name}" in names for name in trunk):
            raise CheckpointRefused(
                f"`head: {{trunk_prefix: {prefix}}}` is before no tensor of its trunk; there are "
                f"{few(sorted(names))}"
            )
        return [dotted]
    num_names: Counter[str] = Counter()
    for name in names:
        parts = name.split(".")
        for depth in range(len(parts)):
            if ".".join(parts[depth:]) in trunk:
                num_names["".join(f"{part}." for part in parts[:depth])] += 1
                break
    most = max(num_names.values(), default=0)
    return sorted(prefix for prefix, count in num_names.items() if count == most)

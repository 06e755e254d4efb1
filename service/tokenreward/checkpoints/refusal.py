"""What loading a checkpoint raises, and the refusal of weights that would be random. It knows no
kind of model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

_MOST_CHARACTERS = 300


# The last part of the names of what quantisers store beside, or in place of, a weight.
_PACKED = frozenset({
    "qweight", "qzeros", "scales", "biases", "absmax", "weight_packed", "weight_scale",
    "weight_scale_inv", "input_scale",
})  # fmt: skip


class CheckpointRefused(ValueError):
    """A checkpoint that cannot be served; the message says what is missing and what to do."""


def refuse_incomplete(info: dict[str, Any]) -> None:
    """Refuses weights that transformers would initialise at random with no more than a warning.

    Args:
        info: The loading info that transformers returns beside a model.
    """
    unexpected = sorted(info.get("unexpected_keys") or ())
    others = ""
    if unexpected:
        others = f" The model has no place for {few(unexpected, 1)}."
    for kind, fault in (
        ("missing_keys", "does not hold"),
        ("mismatched_keys", "holds in another shape"),
    ):
        keys = [_with_shapes(key) for key in info.get(kind) or ()]
        if keys:
            refuse_scales(unexpected)
            raise CheckpointRefused(
                f"it {fault} {few(sorted(keys))}: these weights would be random.{others} "
                "Check `task` and the files of the checkpoint."
            )


def refuse_scales(names: Iterable[str]) -> None:
    """Refuses tensors that a quantiser wrote, of a checkpoint that transformers takes for a plain
    one: raises CheckpointRefused if one of the names is of such a tensor."""
    packed = sorted(name for name in names if name.rsplit(".", 1)[-1] in _PACKED)
    if packed:
        raise CheckpointRefused(
            f"its weights are quantised ({few(packed)}), and config.json does not say how (it has "
            "no `quantization_config` that transformers reads)"
        )


def _with_shapes(key: str | tuple[str, Any, Any]) -> str:
    """The name of a tensor. A mismatched one comes with its shapes, in the file and in the
    model."""
    if isinstance(key, str):
        return key
    name, stored, expected = key
    return f"{name} ({list(stored)} in place of {list(expected)})"


def one_line(error: Exception) -> str:
    """An exception of another library in one line: its type, and the first line of its message.
    Some libraries go on for thousands of characters."""
    line = str(error).strip().partition("\n")[0].rstrip()[:_MOST_CHARACTERS]
    name = type(error).__name__
    return f"{name}: {line}" if line else name


def few(names: Iterable[str], most: int = 3) -> str:
    """The first names, and how many more there are."""
    names = list(names)
    text = ", ".join(names[:most])
    if len(names) > most:
        text += f" and {len(names) - most} more"
    return text

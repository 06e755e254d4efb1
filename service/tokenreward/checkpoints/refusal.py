"""What loading raises, and what it raises for weights that would be random. It knows no kind of
model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


class CheckpointRefused(ValueError):
    """A checkpoint that cannot be served; the message says what is missing and what to do."""


def refuse_incomplete(info: dict[str, Any]) -> None:
    """Refuses weights that transformers would initialise at random with no more than a warning."""
    for kind, what in (
        ("missing_keys", "does not hold"),
        ("mismatched_keys", "holds in another shape"),
    ):
        keys = sorted(key if isinstance(key, str) else key[0] for key in info.get(kind) or ())
        if keys:
            raise CheckpointRefused(
                f"it {what} {few(keys)}: these weights would be random. Check `task` and the "
                "files of the checkpoint."
            )


def few(names: Iterable[str]) -> str:
    """The first three names, and how many more."""
    listed = list(names)
    return ", ".join(listed[:3]) + (f" and {len(listed) - 3} more" if len(listed) > 3 else "")

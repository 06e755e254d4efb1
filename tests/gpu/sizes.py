"""How much of everything is measured, on a GPU and in a rehearsal."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """In tokens, but for: `batches` of a pace; `sequences` of a dense attention; `group`, responses
    of a prompt; `count` of lengths that are mixed; `square`, a matrix's side; `copied`, bytes."""

    budget: int = 16_384
    length: int = 2048
    batches: int = 2
    dense: int = 4096
    sequences: int = 4
    long: int = 32_768
    prompt: int = 2048
    response: int = 512
    group: int = 16
    count: int = 64
    median: int = 600
    head_rows: int = 8192
    ragged: tuple[int, ...] = (1500, 17, 900, 2, 333, 64, 1201)
    shared: tuple[int, ...] = (600, 5, 200, 77, 1)  # a prompt, and responses to it
    square: int = 8192
    copied: int = 4 * 2**30


REAL = Sizes()
TINY = Sizes(
    budget=96,
    length=24,
    batches=1,
    dense=48,
    sequences=2,
    long=200,
    prompt=24,
    response=6,
    group=4,
    count=12,
    median=20,
    head_rows=32,
    ragged=(40, 5, 2, 17),
    shared=(20, 3, 9, 1),
    square=64,
    copied=2**16,
)

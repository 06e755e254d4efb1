"""One prompt and its responses: read once, beside the same lengths that share nothing."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from bench import workload
from bench.figure import Figure, Result
from bench.workload import Item
from gpu.shapes import LLAMA_8B
from gpu.stand import Stand
from gpu.throughput import LOGITS, paces

WANTED = 3.4


def group(stand: Stand, vocab_size: int) -> list[Item]:
    generator, sizes = np.random.default_rng(0), stand.sizes
    prompt = generator.integers(3, vocab_size, size=sizes.prompt)
    return [
        Item(prompt, generator.integers(3, vocab_size, size=sizes.response))
        for _ in range(sizes.group)
    ]


def prompts(stand: Stand) -> Iterator[Result]:
    """Endogenous rewards of a group's responses."""
    served, sizes = stand.served(LLAMA_8B, "causal_lm", LOGITS), stand.sizes
    apart = stand.items(
        [sizes.prompt + sizes.response] * sizes.group, served.shape.vocab, prompt=sizes.prompt
    )
    shared = [workload.rows(group(stand, served.shape.vocab), LOGITS)]
    unshared = workload.budgeted(workload.rows(apart, LOGITS), max_tokens=sizes.budget)
    taken = stand.turns(
        {"shared": lambda: served.run(shared), "apart": lambda: served.run(unshared)}
    )
    name = f"shared prompt {LLAMA_8B.name} P={sizes.prompt} R={sizes.response} G={sizes.group}"
    tokens = served.num_computed(unshared) / served.num_computed(shared)
    ratio = taken["apart"] / taken["shared"]
    yield Figure(
        name,
        taken["shared"],
        taken["apart"],
        ratio,
        WANTED,
        "s",
        note=f"{tokens:.2f} times fewer tokens",
    )
    yield paces(name, served, shared, taken["shared"])

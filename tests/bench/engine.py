"""The engine's figures: one thread's CPU time and peak memory, beside transformers on the same
weights and ids."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np

from bench import workload
from bench.figure import Figure
from bench.floor import Product, floor_s, products
from bench.rivals import huggingface
from bench.timing import cpu_seconds, peak_bytes
from tokenreward.contract import Needs
from tokenreward.forward.patches import onednn_linear, torch_linear

LOGITS = Needs(frozenset({1.0}))
POOLED = Needs(pooled=True)
DENSE = Needs(pooled=True, attention=frozenset({"last"}))
AGREE = 2e-4  # of Q and V, whose size is some 5 here; a wrong layout is off by more than 0.1


class Sides:
    """One set of weights twice: our layout switches its model for good."""

    def __init__(self, model: Any, task: str, needs: Needs) -> None:
        self.model = model
        self.layout = workload.layout(copy.deepcopy(model), task, needs, public=True)

    def eager(self, function: Any, *arguments: Any, **how: Any) -> Any:
        return self._rival("eager", function, *arguments, **how)

    def sdpa(self, function: Any, *arguments: Any, **how: Any) -> Any:
        return self._rival("sdpa", function, *arguments, **how)

    def public(self, batches: Any) -> list[Any]:
        self.layout.compute_linears_through(None)
        return self._run(batches)

    def fastest(self, batches: Any) -> list[Any]:
        self.layout.compute_linears_through(onednn_linear)
        return self._run(batches)

    def unshared(self, batches: Any) -> list[Any]:
        """Our layout, every row with a prompt of its own."""
        self.layout.shares = False
        try:
            return self.public(batches)
        finally:
            self.layout.shares = True

    def _rival(self, attention: str, function: Any, *arguments: Any, **how: Any) -> Any:
        self.model.set_attn_implementation(attention)
        return function(self.model, *arguments, **how)

    def _run(self, batches: Any) -> list[Any]:
        return [outputs for batch in batches for outputs in self.layout.run(batch)]


def endogenous(vocab_size: int, num_groups: int, *, rounds: int) -> Iterator[Figure]:
    """The grouped mix: over eager and over sorted sdpa, with public and with the fastest exact
    linears; memory."""
    large = vocab_size > 100_000
    sides = Sides(workload.language_model(vocab_size), "causal_lm", LOGITS)
    items = workload.mix(num_groups, vocab_size=vocab_size)
    batches = workload.budgeted(workload.rows(items, LOGITS))
    print(f"  endogenous, V = {vocab_size}: {workload.describe(items)}", flush=True)
    agree(sides, items, batches)
    eager = lambda: sides.eager(huggingface.endogenous, items, by_length=False)  # noqa: E731
    taken = cpu_seconds(
        {
            "eager": eager,
            "sdpa": lambda: sides.sdpa(huggingface.endogenous, items, by_length=True),
            "public": lambda: sides.public(batches),
            "fastest": lambda: sides.fastest(batches),
        },
        rounds=rounds,
    )
    targets = {"eager": (7, 13), "sdpa": (0, 0)} if large else {"eager": (4.5, 8), "sdpa": (3, 5)}
    wanted = _products(sides.model.config, items)
    floors = {"public": floor_s(wanted, torch_linear), "fastest": floor_s(wanted, onednn_linear)}
    for rival, bounds in targets.items():
        for (mode, floor), target in zip(floors.items(), bounds, strict=True):
            name = f"endogenous mix V={vocab_size // 1000}k, {mode} linears / HF {rival}"
            rate = sum(product.flops for product in wanted) / floor / 1e9
            note = (
                f"matmuls alone {floor:.3g} s at {rate:.0f} GFLOP/s: ratio "
                f"{taken[rival] / floor:.3g} at most"
            )
            ratio = taken[rival] / taken[mode]
            yield Figure(name, taken[mode], taken[rival], ratio, target, "CPU s", note=note)
    if large:
        ours, theirs = peak_bytes(lambda: sides.public(batches)), peak_bytes(eager)
        share = ours / theirs
        name = f"its peak memory above the model V={vocab_size // 1000}k, of HF eager's"
        yield Figure(name, ours / 2**20, theirs / 2**20, share, 1 / 50, "MiB", ceiling=True)


def _products(config: Any, items: list[workload.Item]) -> list[Product]:
    """What no way to score these items exactly can leave out: each prompt once, responses, a head
    row per number."""
    prompts = {item.prompt.tobytes(): len(item.prompt) for item in items}
    responses = sum(len(item.response) for item in items)
    return products(
        config, num_tokens=sum(prompts.values()) + responses, num_scored=len(prompts) + responses
    )


def agree(sides: Sides, items: list[workload.Item], batches: Any) -> None:
    """Both sides give the same Q and V, before anything is timed."""
    few = items[:2]
    order = [id(row) for batch in batches for row, _ in batch]
    assert len(order) == len(items)
    for run in (sides.public, sides.fastest):
        ours = run(batches)
        for (q, v), outputs in zip(
            sides.eager(huggingface.endogenous, few, by_length=False), ours, strict=False
        ):
            assert np.abs(outputs.chosen - q).max() < AGREE
            assert np.abs(outputs.lse[1.0] - v).max() < AGREE


def bfloat16(*, rounds: int) -> Iterator[Figure]:
    """The grouped mix with the trunk in bfloat16, over our own float32; and how far its numbers
    are."""
    model = workload.language_model(32_000)
    single = Sides(model, "causal_lm", LOGITS)
    half = Sides(copy.deepcopy(model).bfloat16(), "causal_lm", LOGITS)
    items = workload.mix(2)
    batches = workload.budgeted(workload.rows(items, LOGITS))
    runs = {"bfloat16": lambda: half.fastest(batches), "float32": lambda: single.fastest(batches)}
    pairs = list(zip(*(run() for run in runs.values()), strict=True))
    gaps = {
        "Q": np.concatenate([np.abs(ours.chosen - exact.chosen) for ours, exact in pairs]),
        "V": np.concatenate([np.abs(ours.lse[1.0] - exact.lse[1.0]) for ours, exact in pairs]),
    }
    note = "; ".join(
        f"{name} differs by {gap.mean():.2g}, at most {gap.max():.2g}" for name, gap in gaps.items()
    )
    taken = cpu_seconds(runs, rounds=rounds)
    ratio = taken["float32"] / taken["bfloat16"]
    name = "endogenous mix V=32k, bfloat16 / our fastest float32"
    yield Figure(name, taken["bfloat16"], taken["float32"], ratio, 0, "CPU s", note=note)


def attention_dense(*, rounds: int) -> Iterator[Figure]:
    """ABC on one response, over `output_attentions`; and over the scalar alone."""
    for length, target in ((2048, 2.3), (4096, 3.3)):
        sides = Sides(workload.reward_model(32_000), "reward_model", DENSE | Needs(values=True))
        items = workload.alone([length])
        dense, scalar = ([workload.rows(items, needs)] for needs in (DENSE, POOLED))
        (score, weights), (ours,) = (
            sides.eager(huggingface.attention_dense, items)[0],
            sides.public(dense),
        )
        row = ours.attention["last"][len(items[0].prompt) :]
        assert abs(score - ours.pooled) < AGREE
        assert np.abs(row / row.sum() - weights).max() < 1e-6
        taken = cpu_seconds(
            {
                "eager": lambda sides=sides, items=items: sides.eager(
                    huggingface.attention_dense, items
                ),
                "dense": lambda sides=sides, dense=dense: sides.public(dense),
                "scalar": lambda sides=sides, scalar=scalar: sides.public(scalar),
            },
            rounds=rounds,
        )
        name = f"attention_dense T={length} / HF output_attentions"
        yield Figure(
            name, taken["dense"], taken["eager"], taken["eager"] / taken["dense"], target, "CPU s"
        )
        cost = taken["dense"] / taken["scalar"]
        name = f"attention_dense T={length}, its cost over our scalar"
        yield Figure(name, taken["dense"], taken["scalar"], cost, 1.07, "CPU s", ceiling=True)


def mixed_lengths(*, rounds: int) -> Iterator[Figure]:
    """The trunk on 32 log-normal sequences that share nothing, over padded sdpa."""
    sides = Sides(workload.reward_model(32_000), "reward_model", POOLED | Needs(values=True))
    items = workload.alone(workload.log_normal(32))
    batches = workload.budgeted(workload.rows(items, Needs(values=True)))
    print(f"  mixed lengths: {workload.describe(items)}", flush=True)
    taken = cpu_seconds(
        {
            "arrival": lambda: sides.sdpa(huggingface.trunk, items, by_length=False),
            "sorted": lambda: sides.sdpa(huggingface.trunk, items, by_length=True),
            "packed": lambda: sides.public(batches),
        },
        rounds=rounds,
    )
    for order, target in (("arrival", 2.4), ("sorted", 0.0)):
        name = f"mixed lengths, packed / HF sdpa padded, {order} order"
        yield Figure(
            name, taken["packed"], taken[order], taken[order] / taken["packed"], target, "CPU s"
        )
    computed = sum(sides.layout.num_computed([row for row, _ in batch]) for batch in batches)
    padding = computed - sum(len(item.ids) for item in items)
    rival = sides.sdpa(huggingface.trunk, items, by_length=True) - sum(
        len(item.ids) for item in items
    )
    yield Figure("padding tokens computed", padding, rival, padding, 0, "tokens", ceiling=True)


def shared_prompts(*, rounds: int) -> Iterator[Figure]:
    """The trunk on one group, over the group as a batch of transformers' (no padding: its rows are
    of one length) and over our own layout without sharing: how much of the ratio of tokens becomes
    a ratio of time."""
    for p, r, g in ((512, 256, 8), (512, 256, 16), (512, 128, 16)):
        sides = Sides(workload.reward_model(32_000), "reward_model", POOLED | Needs(values=True))
        generator = np.random.default_rng(0)
        prompt = generator.integers(3, 32_000, size=p)
        items = [workload.Item(prompt, generator.integers(3, 32_000, size=r)) for _ in range(g)]
        work = workload.rows(items, Needs(values=True))
        apart = workload.budgeted(work, share=False)
        taken = cpu_seconds(
            {
                "shared": lambda sides=sides, work=work: sides.public([work]),
                "HF sdpa": lambda sides=sides, items=items: sides.sdpa(
                    huggingface.trunk, items, by_length=False
                ),
                "ours unshared": lambda sides=sides, apart=apart: sides.unshared(apart),
            },
            rounds=rounds,
        )
        tokens = g * (p + r) / (p + g * r)
        for rival, target in (("HF sdpa", 0.92), ("ours unshared", 0.0)):
            share = taken[rival] / taken["shared"] / tokens
            name = f"shared prompt P={p} R={r} G={g}, of {tokens:.2f} (tokens) / {rival}"
            yield Figure(name, taken["shared"], taken[rival], share, target, "CPU s")

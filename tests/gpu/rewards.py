"""Reward models: dense attention beside `output_attentions`, and mixed lengths beside padded
batches."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from bench import workload
from bench.figure import Figure, Result
from bench.rivals.huggingface import BATCH_SIZE
from gpu import rivals
from gpu.shapes import LLAMA_8B
from gpu.stand import Stand
from gpu.throughput import apart, memory, of_bound, over, paces
from tokenreward.contract import Needs

DENSE = Needs(pooled=True, attention=frozenset({"last"}))
POOLED = Needs(pooled=True)
LONG_BYTES = 2 * 2**30
OF_PADDING = 0.9


def attention(stand: Stand) -> Iterator[Result]:
    """Score and last row of attention of whole sequences."""
    served, sizes = stand.served(LLAMA_8B, "reward_model", DENSE), stand.sizes
    items = stand.items([sizes.dense] * sizes.sequences, served.shape.vocab)
    sequences = [item.ids for item in items]
    batches = workload.budgeted(workload.rows(items, DENSE), max_tokens=sizes.budget)
    name = f"attention_dense {LLAMA_8B.name} T={sizes.dense}"
    taken = stand.turns(
        {
            "ours": lambda: served.run(batches),
            "theirs": lambda: rivals.with_attentions(served.model, sequences),
        }
    )
    if "theirs" in taken:
        theirs = rivals.with_attentions(served.model, sequences[:1])
        (ours,) = served.run([batches[0][:1]])
        row = theirs[0][1]
        yield apart(
            f"{name}, weights off HF's, of the spread", ours.attention["last"] - row, row.std(), ""
        )
    yield over(f"{name} / HF eager output_attentions", taken["ours"], taken.get("theirs"), 2)
    yield from of_bound(stand, name, served, batches, taken["ours"])
    yield memory(stand, name, served, batches[:1])


def long(stand: Stand) -> Iterator[Result]:
    """One sequence whose attention maps no device holds."""
    served, length = stand.served(LLAMA_8B, "reward_model", DENSE), stand.sizes.long
    work = workload.rows(stand.items([length], served.shape.vocab), DENSE)
    name = f"attention_dense {LLAMA_8B.name} T={length}"
    taken = stand.turns({"ours": lambda: served.run([work])})
    yield paces(name, served, [work], taken.get("ours", float("nan")))
    yield memory(stand, name, served, [work], LONG_BYTES)


def lengths(stand: Stand) -> Iterator[Result]:
    """Log-normal lengths, in order of arrival; and sorted, as a careful rival would."""
    served, sizes = stand.served(LLAMA_8B, "reward_model", DENSE), stand.sizes
    drawn = workload.log_normal(sizes.count, median=sizes.median)
    items = workload.alone(drawn, vocab_size=served.shape.vocab)
    batches = workload.budgeted(workload.rows(items, POOLED), max_tokens=sizes.budget)
    stand.say(f"mixed lengths: {workload.describe(items)}")
    orders = {
        "arrival": [item.ids for item in items],
        "sorted": sorted((item.ids for item in items), key=len),
    }
    theirs, _ = rivals.scores(served.model, orders["arrival"], BATCH_SIZE)
    name = f"mixed lengths {LLAMA_8B.name}"
    found = np.array([outputs.pooled for outputs in served.run(batches)])
    yield apart(f"{name}, score off HF's, of the spread", found - theirs, np.std(theirs), "")
    taken = stand.turns(
        {"ours": lambda: served.run(batches)}
        | {
            order: lambda sequences=sequences: rivals.scores(served.model, sequences, BATCH_SIZE)  # type: ignore[misc]
            for order, sequences in orders.items()
        }
    )
    for order, share in (("arrival", OF_PADDING), ("sorted", 0.0)):
        padding = rivals.scores(served.model, orders[order], BATCH_SIZE)[1] / sum(drawn)
        label = f"{name}, packed / HF sdpa padded, {order} order"
        yield over(
            label, taken["ours"], taken.get(order), share * padding, f"padding factor {padding:.2f}"
        )
    yield padding_computed(name, served.num_computed(batches), sum(drawn))


def padding_computed(name: str, computed: int, needed: int) -> Figure:
    return Figure(
        f"{name}, padding computed",
        computed - needed,
        0,
        computed - needed,
        0,
        "tokens",
        ceiling=True,
    )

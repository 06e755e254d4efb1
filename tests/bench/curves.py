"""What the plots show: tokens per second by length, peak memory by length and vocabulary. Nothing
is asked of them."""

from __future__ import annotations

from collections.abc import Iterator

from bench import workload
from bench.engine import LOGITS, Sides
from bench.figure import Figure, Point
from bench.plot import Words
from bench.rivals import huggingface
from bench.timing import cpu_seconds, peak_bytes

LENGTHS = (256, 512, 1024, 2048, 4096)
MEMORY_LENGTHS = (512, 1024, 2048, 4096)
VOCABULARIES = (32_000, 152_000)
TOKENS = 4096  # of one measured call
PLOTS = {
    "throughput": Words(
        "Endogenous rewards: throughput, one CPU thread",
        "tokens per sequence",
        "tokens per CPU second",
    ),
    "memory": Words(
        "Endogenous rewards of one sequence: peak memory", "tokens", "MiB above the model"
    ),
}


def throughput(*, rounds: int) -> Iterator[Figure | Point]:
    """Sequences that share nothing, a quarter of each its prompt."""
    sides = Sides(workload.language_model(32_000), "causal_lm", LOGITS)
    for length in LENGTHS:
        items = workload.alone([length] * (TOKENS // length))
        batches = workload.budgeted(workload.rows(items, LOGITS))
        taken = cpu_seconds(
            {
                "ours": lambda batches=batches: sides.fastest(batches),
                "ours, public operators": lambda batches=batches: sides.public(batches),
                "HF sdpa": lambda items=items: sides.sdpa(
                    huggingface.endogenous, items, by_length=True
                ),
                "HF eager": lambda items=items: sides.eager(
                    huggingface.endogenous, items, by_length=True
                ),
            },
            rounds=rounds,
        )
        rates = {name: TOKENS / seconds for name, seconds in taken.items()}
        for name, rate in rates.items():
            yield Point("throughput", name, length, rate)
        for rival in ("HF sdpa", "HF eager"):
            ratio = rates["ours"] / rates[rival]
            yield Figure(
                f"throughput T={length} / {rival}", rates["ours"], rates[rival], ratio, 0, "tok/s"
            )


def memory(*, rounds: int) -> Iterator[Figure | Point]:
    """Each peak is taken once: it does not depend on the load of the machine."""
    del rounds
    for vocab_size in VOCABULARIES:
        sides = Sides(workload.language_model(vocab_size), "causal_lm", LOGITS)
        small = f"V={vocab_size // 1000}k"
        for length in MEMORY_LENGTHS:
            mib = _peaks(sides, workload.alone([length], vocab_size=vocab_size))
            for name, peak in mib.items():
                yield Point("memory", f"{name}, {small}", length, peak)
            for rival in ("HF sdpa", "HF eager"):
                ratio = mib[rival] / mib["ours"]
                yield Figure(
                    f"memory T={length} {small} / {rival}", mib["ours"], mib[rival], ratio, 0, "MiB"
                )


def _peaks(sides: Sides, items: list[workload.Item]) -> dict[str, float]:
    """MiB above the model, by side."""
    batches = workload.budgeted(workload.rows(items, LOGITS))
    functions = {
        "ours": lambda: sides.public(batches),
        "HF sdpa": lambda: sides.sdpa(huggingface.endogenous, items, by_length=True),
        "HF eager": lambda: sides.eager(huggingface.endogenous, items, by_length=True),
    }
    sides.public(batches)  # what is allocated once and kept is no call's
    return {name: max(0.1, peak_bytes(function) / 2**20) for name, function in functions.items()}

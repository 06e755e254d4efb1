"""The embedded demo: a world of job offers and four tiny models that were trained on it.

`checkpoint_path("sft")` is a folder that any Hugging Face loader reads; `example_pair()` is a
prompt with a faithful and a corrupted response for docs and first steps. Importing this package is
light; training and evaluation import torch and friends themselves.
"""

from pathlib import Path

from tokenreward.demo.world import OfferPair, sample_pairs

CHECKPOINTS = ("base", "sft", "dpo", "rm")
WEIGHTS = Path(__file__).parent / "weights"


def checkpoint_path(name: str) -> Path:
    """The folder of an embedded checkpoint."""
    if name not in CHECKPOINTS:
        raise ValueError(f"no demo checkpoint {name!r}; there are {', '.join(CHECKPOINTS)}")
    return WEIGHTS / name


def example_pair(seed: int = 0) -> OfferPair:
    """One held-out pair, the same for the same seed."""
    return sample_pairs(1, seed, "held_out")[0]

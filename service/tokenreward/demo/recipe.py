"""The recipe: the sizes, seeds and schedules that decide the weights of the demo models. It trains
nothing itself."""

from dataclasses import dataclass, replace
from typing import Any

IGNORED_LABEL = -100
"""The label that torch's cross entropy leaves out."""


@dataclass(frozen=True)
class Stage:
    """How one model is trained: how many fresh examples, in batches of what size, at which peak
    learning rate."""

    num_examples: int
    batch_size: int
    learning_rate: float
    seed: int

    @property
    def num_steps(self) -> int:
        """Optimiser steps in one pass over the examples; no example is seen twice."""
        return max(1, self.num_examples // self.batch_size)

    def scaled(self, share: float) -> "Stage":
        """The same stage on a share of the examples, for a rehearsal."""
        return replace(self, num_examples=int(self.num_examples * share))


NUM_TOKENIZER_TEXTS = 8000
TOKENIZER_SEED = 1
HIDDEN_SIZE = 128
INTERMEDIATE_SIZE = 352
NUM_LAYERS = 4
NUM_HEADS = 4
WEIGHTS_SEED = 0
BASE = Stage(num_examples=48_000, batch_size=32, learning_rate=3e-3, seed=3)
SFT = Stage(num_examples=6_400, batch_size=32, learning_rate=1e-3, seed=3)
DPO = Stage(num_examples=1_600, batch_size=32, learning_rate=2e-4, seed=4)
DPO_BETA = 0.1
RM_WHOLE = (
    Stage(num_examples=9_600, batch_size=32, learning_rate=1e-3, seed=5),
    Stage(num_examples=8_000, batch_size=16, learning_rate=1e-3, seed=6),
)
RM_DETECTOR = Stage(num_examples=6_400, batch_size=16, learning_rate=1e-3, seed=7)
RM_TOP = Stage(num_examples=4_800, batch_size=16, learning_rate=2e-3, seed=8)
RM_FINISH = (
    Stage(num_examples=6_400, batch_size=16, learning_rate=7e-4, seed=9),
    Stage(num_examples=6_400, batch_size=16, learning_rate=1e-3, seed=10),
)
RM_CENTER = 0.01


def trainer_arguments(stage: Stage, folder: str) -> dict[str, Any]:
    """The arguments that all trainers but the base model's share: fp32 on the CPU, warm-up then
    cosine, progress on the terminal. `max_length` is for TRL's trainers alone."""
    return {
        "output_dir": folder,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "per_device_train_batch_size": stage.batch_size,
        "learning_rate": stage.learning_rate,
        "num_train_epochs": 1,
        "warmup_steps": max(1, stage.num_steps // 20),
        "lr_scheduler_type": "cosine",
        "adam_beta2": 0.98,
        "seed": stage.seed,
        "logging_steps": max(1, stage.num_steps // 40),
        "save_strategy": "no",
        "report_to": "none",
        "dataloader_pin_memory": False,
        "max_length": None,
    }

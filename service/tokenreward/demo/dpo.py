"""Trains the DPO model from the SFT model on faithful-over-corrupted pairs (TRL's DPOTrainer).

The reference is the frozen SFT model, so beta * log(dpo / sft) is the implicit reward. It does not
know which characters are wrong.
"""

import copy
import tempfile

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer

from tokenreward.demo.corpus import assistant_turn, user_turn
from tokenreward.demo.recipe import Recipe, trainer_arguments
from tokenreward.demo.world import sample_pairs


def preference_rows(num_pairs: int, seed: int) -> Dataset:
    """Pairs in TRL's preference format."""
    return Dataset.from_list(
        [
            {
                "prompt": user_turn(pair),
                "chosen": assistant_turn(pair.faithful),
                "rejected": assistant_turn(pair.corrupted),
            }
            for pair in sample_pairs(num_pairs, seed)
        ]
    )


def prefer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> None:
    """Train the model in place against a frozen copy of itself."""
    stage, reference = recipe.dpo, copy.deepcopy(model)
    rows = preference_rows(stage.num_examples, stage.seed)
    with tempfile.TemporaryDirectory() as folder:
        arguments = DPOConfig(beta=recipe.dpo_beta, **trainer_arguments(stage, folder))
        DPOTrainer(
            model, reference, arguments, train_dataset=rows, processing_class=tokenizer
        ).train()

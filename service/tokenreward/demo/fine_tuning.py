"""Fine-tunes language models on conversations: SFT on faithful responses, then DPO on pairs.

SFT (TRL's SFTTrainer, loss on the response only) starts from the base model and never reads a
corrupted response: what the SFT model holds against one is that it would not have written it. DPO
(TRL's DPOTrainer) starts from the SFT model and prefers faithful over corrupted responses. Its
reference is the frozen SFT model, so beta * log(dpo / sft) is the implicit reward. Neither knows
which characters are wrong.
"""

import copy
import tempfile

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from tokenreward.demo.corpus import assistant_turn, user_turn
from tokenreward.demo.recipe import DPO_BETA, Stage, trainer_arguments
from tokenreward.demo.world import sample_pairs


def fine_tune(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, stage: Stage) -> None:
    """Train the model in place on faithful responses."""
    rows = [
        {"prompt": user_turn(pair), "completion": assistant_turn(pair.faithful)}
        for pair in sample_pairs(stage.num_examples, stage.seed)
    ]
    with tempfile.TemporaryDirectory() as folder:
        arguments = SFTConfig(completion_only_loss=True, **trainer_arguments(stage, folder))
        SFTTrainer(
            model, arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
        ).train()


def prefer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, stage: Stage) -> None:
    """Train the model in place on pairs, against a frozen copy of itself."""
    reference = copy.deepcopy(model)
    rows = preference_rows(stage.num_examples, stage.seed)
    with tempfile.TemporaryDirectory() as folder:
        arguments = DPOConfig(beta=DPO_BETA, **trainer_arguments(stage, folder))
        DPOTrainer(
            model, reference, arguments, train_dataset=rows, processing_class=tokenizer
        ).train()


def preference_rows(num_pairs: int, seed: int) -> Dataset:
    """Pairs in TRL's preference format, for DPO and for reward models."""
    rows = [
        {
            "prompt": user_turn(pair),
            "chosen": assistant_turn(pair.faithful),
            "rejected": assistant_turn(pair.corrupted),
        }
        for pair in sample_pairs(num_pairs, seed)
    ]
    return Dataset.from_list(rows)

"""Fine-tunes the base model on conversations with faithful responses (TRL's SFTTrainer, loss on the
response only).

It does not know corrupted responses: what the SFT model holds against them is that it would not
have written them.
"""

import tempfile

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

from tokenreward.demo.corpus import assistant_turn, user_turn
from tokenreward.demo.recipe import Stage, trainer_arguments
from tokenreward.demo.world import sample_pairs


def fine_tune(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, stage: Stage) -> None:
    """Train the model in place."""
    pairs = sample_pairs(stage.num_examples, stage.seed)
    rows = [
        {"prompt": user_turn(pair), "completion": assistant_turn(pair.faithful)} for pair in pairs
    ]
    with tempfile.TemporaryDirectory() as folder:
        arguments = SFTConfig(completion_only_loss=True, **trainer_arguments(stage, folder))
        SFTTrainer(
            model, arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
        ).train()

"""Teaches a reward model's lower layers to say at each token whether it fits the prompt.

The labels come from the generator: a token is wrong if it overlaps a differing character.
End-of-turn is labelled as fitting, so whatever verdict the layers had gathered there is trained
away; what they notice stays where it is noticed. TRL has no trainer for token classification; this
is transformers' own. It does not know attention or scores.
"""

import tempfile

from datasets import Dataset
from transformers import (
    DataCollatorForTokenClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForTokenClassification,
    Trainer,
    TrainingArguments,
)

from tokenreward.demo.corpus import user_turn
from tokenreward.demo.figures import overlaps
from tokenreward.demo.recipe import Stage, trainer_arguments
from tokenreward.demo.scoring import encode
from tokenreward.demo.world import Pair, sample_pairs

IGNORED = -100
"""The label that the loss leaves out."""
NUM_LAYERS = 4


def train_detector(
    source: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, stage: Stage
) -> Qwen3ForTokenClassification:
    """A token classifier (fits, does not fit) that begins with the source's lower layers."""
    settings = source.config.to_dict() | {
        "num_hidden_layers": NUM_LAYERS,
        "layer_types": None,
        "architectures": None,
    }
    settings |= {"id2label": {0: "fits", 1: "wrong"}, "label2id": {"fits": 0, "wrong": 1}}
    model = Qwen3ForTokenClassification(Qwen3Config(**settings))
    model.model.embed_tokens.load_state_dict(source.model.embed_tokens.state_dict())
    for ours, theirs in zip(model.model.layers, source.model.layers, strict=False):
        ours.load_state_dict(theirs.state_dict())
    rows = Dataset.from_list(
        [_row(tokenizer, pair) for pair in sample_pairs(stage.num_examples, stage.seed)]
    )
    with tempfile.TemporaryDirectory() as folder:
        arguments = {
            name: value
            for name, value in trainer_arguments(stage, folder).items()
            if name != "max_length"
        }
        collator = DataCollatorForTokenClassification(tokenizer)
        Trainer(
            model, TrainingArguments(**arguments), train_dataset=rows, data_collator=collator
        ).train()
    return model


def _row(tokenizer: PreTrainedTokenizerFast, pair: Pair) -> dict[str, list[int]]:
    encoded = encode(tokenizer, user_turn(pair), pair.corrupted)
    wrong = [int(overlaps(offset, pair.differing)) for offset in encoded.offsets]
    return {
        "input_ids": encoded.prompt_ids + encoded.response_ids,
        "labels": [IGNORED] * len(encoded.prompt_ids) + wrong + [0],
    }

"""Trains the reward model on Bradley-Terry pairs, faithful over corrupted, in four steps.

1. Whole: the SFT trunk with a fresh layer on top, all trainable. It learns to compare, but gathers
   its verdict at end-of-turn wherever it likes, mostly below its last layer, whose attention then
   says nothing.
2. Detector: its lower layers learn from token labels to leave what they notice at the token.
3. Top: those layers frozen, a fresh last layer and head learn to judge. The layer has to look at
   the tokens.
4. Finish: all of it again.

So the lower layers were told which characters are wrong; the last layer's attention was never told
what to look at. Scores are pulled towards a mean of zero, so that a bad response mostly has a
negative one. Steps 1, 3 and 4 use TRL's RewardTrainer. TRL has no trainer for token classification,
so step 2 uses transformers' own. It does not know how good the outcome is.
"""

import tempfile
from typing import Any

import transformers
from datasets import Dataset
from transformers import (
    DataCollatorForTokenClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForSequenceClassification,
    Qwen3ForTokenClassification,
    Trainer,
    TrainingArguments,
)
from trl import RewardConfig, RewardTrainer

from tokenreward.demo import recipe
from tokenreward.demo.corpus import user_turn
from tokenreward.demo.fine_tuning import preference_rows
from tokenreward.demo.recipe import IGNORED_LABEL, Stage, trainer_arguments
from tokenreward.demo.scoring import encode
from tokenreward.demo.world import OfferPair, overlaps, sample_pairs

NUM_DETECTOR_LAYERS = 4


def train_reward_model(
    sft: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, share: float
) -> Qwen3ForSequenceClassification:
    """The finished reward model, trained on a share of the examples; the SFT model is left as it
    is."""
    transformers.set_seed(recipe.RM_WHOLE[0].seed)
    whole = with_fresh_top(sft, len(sft.model.layers))
    for stage in recipe.RM_WHOLE:
        _train_on_pairs(whole, tokenizer, stage.scaled(share))
    transformers.set_seed(recipe.RM_DETECTOR.seed)
    detector = train_detector(whole, tokenizer, recipe.RM_DETECTOR.scaled(share))
    transformers.set_seed(recipe.RM_TOP.seed)
    model = with_fresh_top(detector, len(detector.model.layers))
    for module in (model.model.embed_tokens, *model.model.layers[:-1]):
        module.requires_grad_(False)
    _train_on_pairs(model, tokenizer, recipe.RM_TOP.scaled(share))
    model.requires_grad_(True)
    for stage in recipe.RM_FINISH:
        _train_on_pairs(model, tokenizer, stage.scaled(share))
    return model


def with_fresh_top(source: PreTrainedModel, num_layers: int) -> Qwen3ForSequenceClassification:
    """A reward model with the embeddings and the first `num_layers` layers of another model, and
    one fresh layer above them."""
    config = _config_like(
        source,
        num_hidden_layers=num_layers + 1,
        tie_word_embeddings=False,
        id2label={0: "reward"},
        label2id={"reward": 0},
    )
    model = Qwen3ForSequenceClassification(config)
    _copy_layers(source, model, num_layers)
    return model


def train_detector(
    source: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, stage: Stage
) -> Qwen3ForTokenClassification:
    """A token classifier (fits, does not fit) that begins with the source's lower layers.

    The labels come from the generator: a token is wrong if it overlaps a differing character.
    End-of-turn is labelled as fitting, so the verdict that the layers had gathered there is trained
    away, and what they notice stays where it is noticed.
    """
    config = _config_like(
        source,
        num_hidden_layers=NUM_DETECTOR_LAYERS,
        id2label={0: "fits", 1: "wrong"},
        label2id={"fits": 0, "wrong": 1},
    )
    model = Qwen3ForTokenClassification(config)
    _copy_layers(source, model, NUM_DETECTOR_LAYERS)
    pairs = sample_pairs(stage.num_examples, stage.seed)
    rows = Dataset.from_list([_detector_row(tokenizer, pair) for pair in pairs])
    with tempfile.TemporaryDirectory() as folder:
        arguments = trainer_arguments(stage, folder)
        del arguments["max_length"]
        collator = DataCollatorForTokenClassification(tokenizer)
        Trainer(
            model, TrainingArguments(**arguments), train_dataset=rows, data_collator=collator
        ).train()
    return model


def _detector_row(tokenizer: PreTrainedTokenizerFast, pair: OfferPair) -> dict[str, list[int]]:
    prompt_ids, response_ids, offsets = encode(tokenizer, user_turn(pair), pair.corrupted)
    differing = pair.differing
    wrong = [int(overlaps(offset, differing)) for offset in offsets]
    return {
        "input_ids": prompt_ids + response_ids,
        "labels": [IGNORED_LABEL] * len(prompt_ids) + wrong + [0],
    }


def _train_on_pairs(
    model: Qwen3ForSequenceClassification, tokenizer: PreTrainedTokenizerFast, stage: Stage
) -> None:
    rows = preference_rows(stage.num_examples, stage.seed)
    with tempfile.TemporaryDirectory() as folder:
        arguments = RewardConfig(
            center_rewards_coefficient=recipe.RM_CENTER, **trainer_arguments(stage, folder)
        )
        RewardTrainer(model, arguments, train_dataset=rows, processing_class=tokenizer).train()


def _config_like(source: PreTrainedModel, **changes: Any) -> Qwen3Config:
    """The source's configuration with changes; what depends on them is left to be derived."""
    derived = {"layer_types": None, "architectures": None}
    return Qwen3Config(**(source.config.to_dict() | derived | changes))


def _copy_layers(source: PreTrainedModel, model: PreTrainedModel, num_layers: int) -> None:
    model.model.embed_tokens.load_state_dict(source.model.embed_tokens.state_dict())
    for index in range(num_layers):
        model.model.layers[index].load_state_dict(source.model.layers[index].state_dict())

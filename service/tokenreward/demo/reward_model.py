"""Trains the reward model on Bradley-Terry pairs, faithful over corrupted (TRL's RewardTrainer), in
four steps.

1. Whole: the SFT trunk with a fresh layer on top, all trainable. It learns to compare, but gathers its verdict at
   end-of-turn wherever it likes, mostly below its last layer, whose attention then says nothing.
2. Detector: its lower layers learn from token labels to leave what they notice at the token (detector.py).
3. Top: those layers frozen, a fresh last layer and head learn to judge. The layer has to look at the tokens.
4. Finish: all of it again.

So the lower layers were told which characters are wrong; the last layer's attention was never told
what to look at. Scores are pulled towards a mean of zero, so that a bad response mostly has a
negative one.
"""

import tempfile

import transformers
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForSequenceClassification,
)
from trl import RewardConfig, RewardTrainer

from tokenreward.demo.detector import train_detector
from tokenreward.demo.dpo import preference_rows
from tokenreward.demo.recipe import Recipe, Stage, trainer_arguments


def train_reward_model(
    sft: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, recipe: Recipe
) -> Qwen3ForSequenceClassification:
    """The finished reward model; the SFT model is left as it is."""
    transformers.set_seed(recipe.rm_whole[0].seed)
    whole = with_fresh_top(sft, len(sft.model.layers))
    for stage in recipe.rm_whole:
        _judge(whole, tokenizer, stage, recipe)
    transformers.set_seed(recipe.rm_detector.seed)
    detector = train_detector(whole, tokenizer, recipe.rm_detector)
    transformers.set_seed(recipe.rm_top.seed)
    model = with_fresh_top(detector, len(detector.model.layers))
    kept = (model.model.embed_tokens, *model.model.layers[:-1])
    for module in kept:
        module.requires_grad_(False)
    _judge(model, tokenizer, recipe.rm_top, recipe)
    model.requires_grad_(True)
    for stage in recipe.rm_finish:
        _judge(model, tokenizer, stage, recipe)
    return model


def with_fresh_top(source: PreTrainedModel, num_kept: int) -> Qwen3ForSequenceClassification:
    """A reward model with the embeddings and lower layers of another model and one fresh layer
    above them."""
    settings = source.config.to_dict() | {
        "num_hidden_layers": num_kept + 1,
        "layer_types": None,
        "architectures": None,
        "tie_word_embeddings": False,
        "id2label": {0: "reward"},
        "label2id": {"reward": 0},
    }
    model = Qwen3ForSequenceClassification(Qwen3Config(**settings))
    model.model.embed_tokens.load_state_dict(source.model.embed_tokens.state_dict())
    for ours, theirs in zip(model.model.layers[:num_kept], source.model.layers, strict=False):
        ours.load_state_dict(theirs.state_dict())
    return model


def _judge(
    model: Qwen3ForSequenceClassification,
    tokenizer: PreTrainedTokenizerFast,
    stage: Stage,
    recipe: Recipe,
) -> None:
    rows = preference_rows(stage.num_examples, stage.seed)
    with tempfile.TemporaryDirectory() as folder:
        arguments = RewardConfig(
            center_rewards_coefficient=recipe.rm_center, **trainer_arguments(stage, folder)
        )
        RewardTrainer(model, arguments, train_dataset=rows, processing_class=tokenizer).train()

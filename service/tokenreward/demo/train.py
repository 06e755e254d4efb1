"""Trains the demo checkpoints from nothing: `python -m tokenreward.demo.train --output DIR`.

Stages: base, sft, dpo, rm, in this order; `--stages` runs some of them on what an earlier run left
in DIR. Seeded; on two CPU cores well under forty minutes. It does not know how good the outcome is:
that is evaluate.py's business.
"""

import argparse
import logging
import time
from pathlib import Path

import torch
import transformers

from tokenreward.demo import checkpoint
from tokenreward.demo.dpo import prefer
from tokenreward.demo.pretrain import new_model, pretrain
from tokenreward.demo.recipe import Recipe
from tokenreward.demo.reward_model import train_reward_model
from tokenreward.demo.sft import fine_tune
from tokenreward.demo.tokenizer import train_tokenizer
from tokenreward.demo.world import sample_pairs

logger = logging.getLogger(__name__)


def train_base(recipe: Recipe, output: Path) -> None:
    """Tokenizer and base model."""
    pairs = sample_pairs(recipe.num_tokenizer_texts, recipe.tokenizer_seed)
    tokenizer = train_tokenizer(f"{pair.prompt}\n\n{pair.faithful}" for pair in pairs)
    model = new_model(recipe, tokenizer)
    pretrain(model, tokenizer, recipe.base)
    checkpoint.save(model, tokenizer, output / "base")


def train_sft(recipe: Recipe, output: Path) -> None:
    """From base."""
    model, tokenizer = (
        checkpoint.load_lm(output / "base"),
        checkpoint.load_tokenizer(output / "base"),
    )
    transformers.set_seed(recipe.sft.seed)
    fine_tune(model, tokenizer, recipe.sft)
    checkpoint.save(model, tokenizer, output / "sft")


def train_dpo(recipe: Recipe, output: Path) -> None:
    """From sft."""
    model, tokenizer = checkpoint.load_lm(output / "sft"), checkpoint.load_tokenizer(output / "sft")
    transformers.set_seed(recipe.dpo.seed)
    prefer(model, tokenizer, recipe)
    checkpoint.save(model, tokenizer, output / "dpo")


def train_rm(recipe: Recipe, output: Path) -> None:
    """On the layers of sft."""
    sft, tokenizer = checkpoint.load_lm(output / "sft"), checkpoint.load_tokenizer(output / "sft")
    checkpoint.save(train_reward_model(sft, tokenizer, recipe), tokenizer, output / "rm")


STAGES = {"base": train_base, "sft": train_sft, "dpo": train_dpo, "rm": train_rm}


def main(arguments: list[str] | None = None) -> None:
    """Run the stages asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--output", type=Path, required=True, help="folder that gets one sub-folder per checkpoint"
    )
    parser.add_argument("--stages", nargs="+", choices=list(STAGES), default=list(STAGES))
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument(
        "--share", type=float, default=1.0, help="share of the examples, for a rehearsal"
    )
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    recipe = Recipe().scaled(options.share)
    for name in options.stages:
        started = time.monotonic()
        STAGES[name](recipe, options.output)
        logger.info("stage %s took %.0f s", name, time.monotonic() - started)


if __name__ == "__main__":
    main()

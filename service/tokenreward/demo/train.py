"""Trains the demo checkpoints from nothing: `python -m tokenreward.demo.train --output DIR`.

Stages: base, sft, dpo, rm, in this order; `--stages` runs some of them on the folders that an
earlier run left in DIR. Seeded; on two CPU cores well under forty minutes. It does not know how
good the outcome is: evaluate.py does.
"""

import argparse
import copy
import json
import logging
import time
from pathlib import Path

import torch
import transformers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from tokenreward.demo import recipe
from tokenreward.demo.fine_tuning import fine_tune, prefer
from tokenreward.demo.pretrain import new_model, pretrain
from tokenreward.demo.reward_model import train_reward_model
from tokenreward.demo.tokenizer import train_tokenizer
from tokenreward.demo.world import sample_pairs

logger = logging.getLogger(__name__)


def train_base(share: float, output: Path) -> None:
    """Tokenizer and base model."""
    pairs = sample_pairs(recipe.NUM_TOKENIZER_TEXTS, recipe.TOKENIZER_SEED)
    tokenizer = train_tokenizer(f"{pair.prompt}\n\n{pair.faithful}" for pair in pairs)
    model = new_model(tokenizer)
    pretrain(model, tokenizer, recipe.BASE.scaled(share))
    save(model, tokenizer, output / "base")


def train_sft(share: float, output: Path) -> None:
    """From base."""
    model, tokenizer = load_lm(output / "base")
    transformers.set_seed(recipe.SFT.seed)
    fine_tune(model, tokenizer, recipe.SFT.scaled(share))
    save(model, tokenizer, output / "sft")


def train_dpo(share: float, output: Path) -> None:
    """From sft."""
    model, tokenizer = load_lm(output / "sft")
    transformers.set_seed(recipe.DPO.seed)
    prefer(model, tokenizer, recipe.DPO.scaled(share))
    save(model, tokenizer, output / "dpo")


def train_rm(share: float, output: Path) -> None:
    """On the layers of sft."""
    sft, tokenizer = load_lm(output / "sft")
    save(train_reward_model(sft, tokenizer, share), tokenizer, output / "rm")


def load_lm(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A language model in float32, and the tokenizer, which is the same for all checkpoints."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(folder)


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a complete checkpoint: weights, config, generation config and tokenizer.

    The weights are stored as float16 to be small, and the config says float32, so that a plain load
    computes in float32.
    """
    copy.deepcopy(model).to(torch.float16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    ).save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text()) | {"dtype": "float32", "use_cache": True}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


STAGES = {"base": train_base, "sft": train_sft, "dpo": train_dpo, "rm": train_rm}


def main(arguments: list[str] | None = None) -> None:
    """Run the stages of `--stages`."""
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
    for name in options.stages:
        began = time.monotonic()
        STAGES[name](options.share, options.output)
        logger.info("stage %s took %.0f s", name, time.monotonic() - began)


if __name__ == "__main__":
    main()

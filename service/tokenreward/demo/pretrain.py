"""Trains the base language model on raw documents with a plain loop.

SFTTrainer would need a data set built and tokenised beforehand; here the documents are an endless
fresh stream, half of the rows are a drill of random tokens that repeat, and a row says which of its
tokens count: those that can be known from what came before (a document's target, a drill's
repetitions). That is how a small model soon learns to look back and copy. Counting the facts
themselves as well, which are noise by design, undid much of it. The price: the base model does not
know how a prompt goes. Nor does it know conversations: the chat tokens stay untrained until SFT.
"""

import logging
import math
import random
import time
from collections.abc import Iterator

import torch
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from tokenreward.demo import recipe
from tokenreward.demo.corpus import raw_document
from tokenreward.demo.recipe import IGNORED_LABEL, Stage
from tokenreward.demo.tokenizer import MAX_TOKENS, SPECIALS

logger = logging.getLogger(__name__)

Document = tuple[list[int], int]
"""Token ids, and how many of them at the front are context, which does not count."""

DRILL_SHARE, DRILL_TOKENS, DRILL_PERIOD, MAX_PERIODS = 0.5, 96, (8, 32), 8
FINAL_RATE = 0.05
"""The learning rate at the end, as a share of its peak."""


def new_model(tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """A language model with random weights."""
    torch.manual_seed(recipe.WEIGHTS_SEED)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=recipe.HIDDEN_SIZE,
        intermediate_size=recipe.INTERMEDIATE_SIZE,
        num_hidden_layers=recipe.NUM_LAYERS,
        num_attention_heads=recipe.NUM_HEADS,
        num_key_value_heads=recipe.NUM_HEADS,
        head_dim=recipe.HIDDEN_SIZE // recipe.NUM_HEADS,
        max_position_embeddings=MAX_TOKENS,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen3ForCausalLM(config)


def pretrain(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, stage: Stage) -> None:
    """Train the model in place."""
    model.train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=stage.learning_rate, betas=(0.9, 0.98), weight_decay=0.01
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: rate_share(step, stage.num_steps)
    )
    began = time.monotonic()
    for step, (ids, labels) in enumerate(batches(tokenizer, stage)):
        # Only where a label counts, because logits take most of the time. Padding is on the right,
        # where causality hides it.
        counts = labels[:, 1:] != IGNORED_LABEL
        hidden = model.model(input_ids=ids).last_hidden_state[:, :-1][counts]
        loss = torch.nn.functional.cross_entropy(model.lm_head(hidden), labels[:, 1:][counts])
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == stage.num_steps - 1:
            seconds = time.monotonic() - began
            logger.info("base %d/%d loss %.3f %.0f s", step, stage.num_steps, loss.item(), seconds)


def rate_share(step: int, num_steps: int) -> float:
    """The learning rate at a step as a share of its peak: a linear warm-up times a cosine."""
    warm_up = min(1.0, (step + 1) / max(1, num_steps // 15))
    cosine = 0.5 * (1 + math.cos(math.pi * step / num_steps))
    return warm_up * (FINAL_RATE + (1 - FINAL_RATE) * cosine)


def batches(
    tokenizer: PreTrainedTokenizerFast, stage: Stage
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Ids and labels [rows, tokens] of each step, padded on the right."""
    rng = random.Random(stage.seed)
    for _ in range(stage.num_steps):
        rows = []
        for _ in range(stage.batch_size):
            draw = drill if rng.random() < DRILL_SHARE else document
            rows.append(draw(tokenizer, rng))
        ids = torch.full((len(rows), max(len(row) for row, _ in rows)), tokenizer.pad_token_id)
        labels = torch.full_like(ids, IGNORED_LABEL)
        for number, (row, num_context) in enumerate(rows):
            ids[number, : len(row)] = torch.tensor(row)
            labels[number, num_context : len(row)] = ids[number, num_context : len(row)]
        yield ids, labels


def document(tokenizer: PreTrainedTokenizerFast, rng: random.Random) -> Document:
    """A raw document of which the target counts, with end-of-turn behind it."""
    context, target = raw_document(rng)
    context_ids: list[int] = tokenizer(context)["input_ids"]
    target_ids = tokenizer(target, add_special_tokens=False)["input_ids"]
    return [*context_ids, *target_ids, tokenizer.eos_token_id], len(context_ids)


def drill(tokenizer: PreTrainedTokenizerFast, rng: random.Random) -> Document:
    """Random tokens that repeat; the first period cannot be known and counts as context."""
    period = rng.randint(*DRILL_PERIOD)
    tokens = [rng.randrange(len(SPECIALS), len(tokenizer)) for _ in range(period)]
    return [tokenizer.bos_token_id, *(tokens * MAX_PERIODS)[:DRILL_TOKENS]], 1 + period

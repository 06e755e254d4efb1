"""Measures the demo models on held-out pairs: `python -m tokenreward.demo.evaluate --pairs 1000
[--models DIR]`.

Pair figures: the share of pairs whose faithful response gets the higher score. Token figures:
within each corrupted response, the ROC-AUC of "this token is wrong" against minus the reward,
end-of-turn left out; the mean over responses. A token is wrong if it overlaps a character that
differs from the right value (the headline), or any character of a wrong value ("whole value").
"Among values" looks at tokens of values only, right ones against differing ones: a reward that
merely points at values gets 0.5 there. Plain transformers in float32, one sequence at a time; it
does not know the service, whose faster code has to agree with it.
"""

import argparse
import logging
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from tokenreward.demo import checkpoint_path, scoring
from tokenreward.demo.corpus import user_turn
from tokenreward.demo.figures import Figure, figure, overlaps, roc_auc
from tokenreward.demo.world import Pair, Range, sample_pairs

logger = logging.getLogger(__name__)

EVALUATION_SEED = 1234
"""No training stage draws with this seed, and the held-out split shares no tuple of facts with
training anyway."""

SUMMED = ("logprob", "soft_bellman", "base logprob", "implicit")
"""Scorers whose sequence score is the mean or the sum of the token rewards."""


@dataclass(frozen=True)
class Models:
    """The checkpoints that the figures are about."""

    tokenizer: PreTrainedTokenizerFast
    base: PreTrainedModel
    sft: PreTrainedModel
    dpo: PreTrainedModel
    rm: PreTrainedModel


@dataclass(frozen=True)
class Judged:
    """Every scorer's score and per-token rewards for one response."""

    offsets: list[tuple[int, int]]
    scores: dict[str, float]
    rewards: dict[str, Tensor]


def load_models(folder: Path | None = None) -> Models:
    """From a folder of checkpoints; the embedded ones by default."""
    paths = {
        name: folder / name if folder else checkpoint_path(name)
        for name in ("base", "sft", "dpo", "rm")
    }
    load_lm, load_rm = (
        AutoModelForCausalLM.from_pretrained,
        AutoModelForSequenceClassification.from_pretrained,
    )
    lms = {
        name: load_lm(paths[name], dtype=torch.float32).eval() for name in ("base", "sft", "dpo")
    }
    rm = load_rm(paths["rm"], dtype=torch.float32, attn_implementation="eager")
    return Models(AutoTokenizer.from_pretrained(paths["sft"]), rm=rm.eval(), **lms)


def judge(models: Models, pair: Pair, response: str) -> Judged:
    """Score one response in every way."""
    encoded = scoring.encode(models.tokenizer, user_turn(pair), response)
    ids = encoded.response_ids
    base, sft, dpo = (
        scoring.response_logits(model, encoded) for model in (models.base, models.sft, models.dpo)
    )
    score, weights = scoring.reward_and_attention(models.rm, encoded)
    rewards = {
        "logprob": scoring.logprob(sft, ids),
        "soft_bellman": scoring.soft_bellman(sft, ids),
        "base logprob": scoring.logprob(base, ids),
        "implicit": scoring.implicit(dpo, sft, ids),
        "attention_dense": scoring.attention_dense(score, weights),
        "uniform": scoring.uniform(score, len(ids)),
        "last": scoring.last(score, len(ids)),
    }
    scores = {f"{name} mean": float(rewards[name].mean()) for name in SUMMED}
    scores |= {f"{name} sum": float(rewards[name].sum()) for name in SUMMED}
    return Judged(encoded.offsets, scores | {"reward_model": score}, rewards)


def token_auc(
    judged: Judged, name: str, wrong: list[Range], among: Sequence[Range] | None = None
) -> float:
    """How well a low reward points at the wrong characters of one response; nan if there is nothing
    to tell apart."""
    tokens = [
        place
        for place, offset in enumerate(judged.offsets)
        if among is None or overlaps(offset, among)
    ]
    labels = [overlaps(judged.offsets[place], wrong) for place in tokens]
    if len(set(labels)) < 2:
        return math.nan
    return roc_auc(labels, [-float(judged.rewards[name][place]) for place in tokens])


def measure(models: Models, pairs: list[Pair]) -> dict[str, Figure]:
    """Every figure, by name: `pair: ...`, `negative score: ...` and `token (...): ...`."""
    found: dict[str, list[float]] = defaultdict(list)
    for number, pair in enumerate(pairs):
        faithful, corrupted = (
            judge(models, pair, response) for response in (pair.faithful, pair.corrupted)
        )
        for name, score in faithful.scores.items():
            found[f"pair: {name}"].append(float(score > corrupted.scores[name]))
        found["negative score: faithful"].append(float(faithful.scores["reward_model"] < 0))
        found["negative score: corrupted"].append(float(corrupted.scores["reward_model"] < 0))
        for name in corrupted.rewards:
            found[f"token (differing): {name}"].append(token_auc(corrupted, name, pair.differing))
            found[f"token (whole value): {name}"].append(
                token_auc(corrupted, name, pair.whole_values)
            )
            found[f"token (among values): {name}"].append(
                token_auc(corrupted, name, pair.differing, pair.values)
            )
        if number % 100 == 99:
            logger.info("%d of %d pairs", number + 1, len(pairs))
    known = {
        name: [value for value in numbers if not math.isnan(value)]
        for name, numbers in found.items()
    }
    return {name: figure(known[name]) for name in sorted(known)}


def table(figures: dict[str, Figure]) -> str:
    """The figures as a Markdown table."""
    lines = ["| figure | mean | 95 % interval | n |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {item.mean:.4f} | {item.low:.4f} to {item.high:.4f} | {item.count} |"
        for name, item in figures.items()
    ]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=1000, help="held-out pairs")
    parser.add_argument(
        "--models", type=Path, help="folder with base, sft, dpo and rm; the embedded ones if absent"
    )
    parser.add_argument("--seed", type=int, default=EVALUATION_SEED)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    pairs = sample_pairs(options.pairs, options.seed, "held_out")
    print(table(measure(load_models(options.models), pairs)))


if __name__ == "__main__":
    main()

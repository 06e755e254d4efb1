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
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from tokenreward.demo import CHECKPOINTS, checkpoint_path, scoring
from tokenreward.demo.corpus import user_turn
from tokenreward.demo.world import EVALUATION_SEED, OfferPair, Range, overlaps, sample_pairs

logger = logging.getLogger(__name__)

SUMMED = ("logprob", "soft_bellman", "base logprob", "implicit")
"""Scorers whose sequence score is the mean or the sum of the token rewards."""

NUM_RESAMPLES = 2000

Estimate = tuple[float, float, float, int]
"""A mean over responses or pairs, the 2.5 % and 97.5 % points of its bootstrap distribution, and
how many values it is over: `(mean, low, high, num)`."""


def roc_auc(labels: Sequence[bool], scores: Sequence[float]) -> float:
    """The share of (positive, negative) couples that the score puts in the right order; a tie
    counts half."""
    truth, values = np.asarray(labels, dtype=bool), np.asarray(scores, dtype=np.float64)
    positives, negatives = values[truth], values[~truth]
    if len(positives) == 0 or len(negatives) == 0:
        raise ValueError("ROC-AUC needs at least one label of each kind")
    difference = positives[:, None] - negatives[None, :]
    return float((difference > 0).mean() + 0.5 * (difference == 0).mean())


def estimate(values: Sequence[float], seed: int = 0) -> Estimate:
    """The mean of some values, resampled with replacement for its interval."""
    data: NDArray[np.float64] = np.asarray(values, dtype=np.float64)
    draws = np.random.default_rng(seed).integers(0, len(data), size=(NUM_RESAMPLES, len(data)))
    low, high = np.quantile(data[draws].mean(axis=1), [0.025, 0.975])
    return float(data.mean()), float(low), float(high), len(data)


def load_models(
    folder: Path | None = None,
) -> tuple[PreTrainedTokenizerFast, dict[str, PreTrainedModel]]:
    """The tokenizer, which is the same for all, and the models by the name of their checkpoint.

    Args:
        folder: A folder with a checkpoint per sub-folder; the embedded checkpoints by default.
    """
    paths = {name: checkpoint_path(name) for name in CHECKPOINTS}
    if folder is not None:
        paths = {name: folder / name for name in CHECKPOINTS}
    models = {}
    for name in ("base", "sft", "dpo"):
        lm = AutoModelForCausalLM.from_pretrained(paths[name], dtype=torch.float32)
        models[name] = lm.eval()
    # Eager attention alone returns its weights.
    rm = AutoModelForSequenceClassification.from_pretrained(
        paths["rm"], dtype=torch.float32, attn_implementation="eager"
    )
    models["rm"] = rm.eval()
    return AutoTokenizer.from_pretrained(paths["sft"]), models


def judge(
    models: Mapping[str, PreTrainedModel], prompt_ids: list[int], response_ids: list[int]
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Score one response in every way.

    Args:
        models: As `load_models` returns them.
        prompt_ids: The prompt's tokens.
        response_ids: The response's tokens, end-of-turn included, [T].

    Returns:
        Every score by its name, and the rewards [T] of every scorer by its name.
    """
    base = scoring.response_logits(models["base"], prompt_ids, response_ids)
    sft = scoring.response_logits(models["sft"], prompt_ids, response_ids)
    dpo = scoring.response_logits(models["dpo"], prompt_ids, response_ids)
    score, weights = scoring.reward_and_attention(models["rm"], prompt_ids, response_ids)
    rewards = {
        "logprob": scoring.logprob(sft, response_ids),
        "soft_bellman": scoring.soft_bellman(sft, response_ids),
        "base logprob": scoring.logprob(base, response_ids),
        "implicit": scoring.implicit(dpo, sft, response_ids),
        "attention_dense": scoring.attention_dense(score, weights),
        "uniform": scoring.uniform(score, len(response_ids)),
        "last": scoring.last(score, len(response_ids)),
    }
    scores = {f"{name} mean": float(rewards[name].mean()) for name in SUMMED}
    scores |= {f"{name} sum": float(rewards[name].sum()) for name in SUMMED}
    return scores | {"reward_model": score}, rewards


def token_auc(
    rewards: Tensor,
    offsets: Sequence[Range],
    wrong: Sequence[Range],
    among: Sequence[Range] | None = None,
) -> float:
    """How well a low reward points at the wrong characters of one response.

    Args:
        rewards: One scorer's rewards of the response, end-of-turn included, [T].
        offsets: The character range of each token but end-of-turn, which does not count.
        wrong: The ranges of wrong characters.
        among: Only tokens that overlap these ranges count; None for all tokens.

    Returns:
        ROC-AUC; nan if all tokens are wrong, or none.
    """
    labels, minus_rewards = [], []
    for offset, reward in zip(offsets, rewards.tolist(), strict=False):
        if among is None or overlaps(offset, among):
            labels.append(overlaps(offset, wrong))
            minus_rewards.append(-reward)
    if len(set(labels)) < 2:
        return math.nan
    return roc_auc(labels, minus_rewards)


def measure(
    tokenizer: PreTrainedTokenizerFast,
    models: Mapping[str, PreTrainedModel],
    pairs: list[OfferPair],
) -> dict[str, Estimate]:
    """Every figure, by name: `pair: ...`, `negative score: ...` and `token (...): ...`."""
    samples: dict[str, list[float]] = defaultdict(list)
    for number, pair in enumerate(pairs):
        prompt = user_turn(pair)
        prompt_ids, faithful_ids, _ = scoring.encode(tokenizer, prompt, pair.faithful)
        faithful, _ = judge(models, prompt_ids, faithful_ids)
        prompt_ids, corrupted_ids, offsets = scoring.encode(tokenizer, prompt, pair.corrupted)
        corrupted, rewards = judge(models, prompt_ids, corrupted_ids)
        for name, score in faithful.items():
            samples[f"pair: {name}"].append(float(score > corrupted[name]))
        for kind, scores in (("faithful", faithful), ("corrupted", corrupted)):
            samples[f"negative score: {kind}"].append(float(scores["reward_model"] < 0))
        ranges = {
            "differing": (pair.differing, None),
            "whole value": (pair.whole_values, None),
            "among values": (pair.differing, pair.values),
        }
        for name in rewards:
            for kind, (wrong, among) in ranges.items():
                auc = token_auc(rewards[name], offsets, wrong, among)
                if not math.isnan(auc):
                    samples[f"token ({kind}): {name}"].append(auc)
        if number % 100 == 99:
            logger.info("%d of %d pairs", number + 1, len(pairs))
    return {name: estimate(samples[name]) for name in sorted(samples)}


def table(estimates: dict[str, Estimate]) -> str:
    """The figures as a Markdown table."""
    lines = ["| figure | mean | 95 % interval | n |", "|---|---|---|---|"]
    for name, (mean, low, high, num) in estimates.items():
        lines.append(f"| {name} | {mean:.4f} | {low:.4f} to {high:.4f} | {num} |")
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
    tokenizer, models = load_models(options.models)
    print(table(measure(tokenizer, models, pairs)))


if __name__ == "__main__":
    main()

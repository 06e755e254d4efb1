"""What every fast number is checked against: float64, eager attention, one sequence at a time, from
the formulas.

Slow and plain on purpose. It uses transformers' own forward and nothing of the service.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


def double(model: Any) -> Any:
    """The same model in float64 with eager attention.

    A model that the service has loaded may compute through forwards of the service (on some CPUs
    its linears do). They come off: the truth is the forward of each module's own class.
    """
    exact = copy.deepcopy(model).double()
    for module in exact.modules():
        vars(module).pop("forward", None)
    exact.set_attn_implementation("eager")
    if hasattr(exact.config, "num_local_experts"):
        exact.set_experts_implementation("eager")  # grouped kernels have no float64
    return exact


@torch.no_grad()
def logits(model: Any, ids: np.ndarray) -> np.ndarray:
    """Raw logits [n, vocabulary] of the model's own forward, float64."""
    return model(input_ids=torch.from_numpy(ids)[None], use_cache=False).logits[0].double().numpy()


def logsumexp(z: np.ndarray) -> np.ndarray:
    """Over the last axis, float64."""
    top = z.max(axis=-1, keepdims=True)
    return (top + np.log(np.exp(z - top).sum(axis=-1, keepdims=True)))[..., 0]


@dataclass(frozen=True)
class Response:
    """A prompt and a response in ids."""

    prompt: np.ndarray
    response: np.ndarray

    @property
    def ids(self) -> np.ndarray:
        return np.concatenate([self.prompt, self.response])


def soft_bellman(
    z: np.ndarray, what: Response, *, alpha: float, terminal_is_zero: bool
) -> np.ndarray:
    """r_t = Q(s_t, a_t) - V(s_{t+1}), V = alpha * logsumexp(Q / alpha), V = 0 past a terminal
    token."""
    rewards = []
    for t, token in enumerate(what.response):
        position = len(what.prompt) + t
        last = t == len(what.response) - 1
        value = 0.0 if last and terminal_is_zero else alpha * logsumexp(z[position] / alpha)
        rewards.append(z[position - 1][token] - value)
    return np.array(rewards)


def log_probs(z: np.ndarray, what: Response, *, temperature: float) -> np.ndarray:
    """log softmax(Q / temperature) of each response token."""
    rewards = []
    for t, token in enumerate(what.response):
        row = z[len(what.prompt) + t - 1] / temperature
        rewards.append(row[token] - logsumexp(row))
    return np.array(rewards)


@torch.no_grad()
def head_values(model: Any, ids: np.ndarray) -> np.ndarray:
    """A reward model's value [n] at every token: the model's own call on every prefix, float64."""
    values = []
    for length in range(1, len(ids) + 1):
        label_logits = (
            model(input_ids=torch.from_numpy(ids[:length])[None], use_cache=False)
            .logits[0]
            .double()
        )
        values.append(
            float(label_logits[0] if len(label_logits) == 1 else label_logits[1] - label_logits[0])
        )
    return np.array(values)


@torch.no_grad()
def last_attention_row(model: Any, ids: np.ndarray) -> np.ndarray:
    """Last layer, last token's row, mean over heads [n]: what `output_attentions` gives,
    float64."""
    output = model.base_model(
        input_ids=torch.from_numpy(ids)[None], use_cache=False, output_attentions=True
    )
    return output.attentions[-1][0, :, -1].double().mean(dim=0).numpy()


@torch.no_grad()
def last_layer_attention(model: Any, ids: np.ndarray) -> np.ndarray:
    """Last layer's whole map, mean over heads [n, n], float64."""
    output = model.base_model(
        input_ids=torch.from_numpy(ids)[None], use_cache=False, output_attentions=True
    )
    return output.attentions[-1][0].double().mean(dim=0).numpy()


def mean_step(attention: np.ndarray, what: Response) -> np.ndarray:
    """What each response token gets, on average, from the queries that predicted a later one and
    can see it."""
    first, means = len(what.prompt), []
    for column in range(first, len(what.ids)):
        seen = [
            attention[query, column]
            for query in range(column, len(what.ids) - 1)
            if attention[query, column] > 0
        ]
        means.append(float(np.mean(seen)) if seen else 0.0)
    return np.array(means)


def entropy(z: np.ndarray) -> np.ndarray:
    """- sum p log p over the last axis of logits, nats, float64."""
    log_p = z - logsumexp(z)[..., None]
    return -(np.exp(log_p) * log_p).sum(axis=-1)


def dense_weights(row: np.ndarray, what: Response, keep: np.ndarray) -> np.ndarray:
    """ABC's weights: the row over the unmasked response tokens, renormalised."""
    weights = row[len(what.prompt) : len(what.prompt) + len(what.response)] * keep
    return weights / weights.sum()

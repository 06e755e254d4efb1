"""A language model's head on chosen rows: the raw logit of one token, logsumexp and entropy over all; never [rows,
vocabulary].

Tiles of rows x vocabulary columns in float32, with a two-level logsumexp. Soft-cap and scale are read from the
configuration; whether that is all the model's own forward does to its logits is for the probe to say.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokenreward.models.checkpoint import Checkpoint, CheckpointRefused
from tokenreward.models.linear import Linear, plain

_TILE_ROWS = 256
_TILE_COLUMNS = 4096


@dataclass(frozen=True, slots=True, eq=False)
class LanguageHead:
    """logits = softcap * tanh(scale * (h W^T + b) / softcap), without the tanh if there is no soft-cap."""

    weight: Tensor
    bias: Tensor | None
    scale: float
    softcap: float | None
    linear: Linear = plain

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> LanguageHead:
        """Raises CheckpointRefused if the model has no output embeddings."""
        head: Any = checkpoint.model.get_output_embeddings()
        if head is None:
            raise CheckpointRefused(f"{type(checkpoint.model).__name__} has no language model head")
        config = checkpoint.text_config
        scale = float(getattr(config, "logit_scale", None) or 1.0) / float(
            getattr(config, "logits_scaling", None) or 1.0
        )
        softcap = getattr(config, "final_logit_softcapping", None)
        return cls(head.weight, getattr(head, "bias", None), scale, None if softcap is None else float(softcap))

    def chosen(self, hidden: Tensor, at: Tensor, targets: Tensor) -> Tensor:
        """Raw logits [n], float32, of token targets[i] at hidden[at[i]]: an exact indexed dot."""
        picked = []
        for rows, tokens in zip(torch.split(at, _TILE_ROWS), torch.split(targets, _TILE_ROWS), strict=True):
            dots = (hidden[rows].float() * self.weight[tokens].float()).sum(dim=-1)
            picked.append(self._shaped(dots if self.bias is None else dots + self.bias[tokens].float()))
        return torch.cat(picked) if picked else hidden.new_empty(0, dtype=torch.float32)

    def normalisers(self, hidden: Tensor, temperatures: list[float], entropies: list[float]) -> tuple[Tensor, Tensor]:
        """logsumexp(logits / T) [len(temperatures), n] and the entropy of softmax(logits / T) [len(entropies), n],
        nats, both float32, at each row of hidden [n, h]."""
        parts = [
            self._tile(hidden[top : top + _TILE_ROWS].float(), temperatures, entropies)
            for top in range(0, len(hidden), _TILE_ROWS)
        ]
        return torch.cat([lse for lse, _ in parts], dim=1), torch.cat([entropy for _, entropy in parts], dim=1)

    def _tile(self, rows: Tensor, temperatures: list[float], entropies: list[float]) -> tuple[Tensor, Tensor]:
        at = list(dict.fromkeys([*temperatures, *entropies]))
        normalisers, means = [], []
        for left in range(0, self.weight.shape[0], _TILE_COLUMNS):
            right = left + _TILE_COLUMNS
            logits = self.linear(rows, self.weight[left:right].float(), None)
            logits = self._shaped(logits if self.bias is None else logits + self.bias[left:right].float())
            scaled = {t: logits / t if t != 1 else logits for t in at}
            lse = {t: torch.logsumexp(scaled[t], dim=-1) for t in at}
            normalisers.append(torch.stack([lse[t] for t in at]))
            means.append([_mean(scaled[t], lse[t]) for t in entropies])
        partial = torch.stack(normalisers)
        total = torch.logsumexp(partial, dim=0)
        entropy = [
            total[at.index(t)] - _mean_of_parts([mean[k] for mean in means], partial[:, at.index(t)])
            for k, t in enumerate(entropies)
        ]
        return total[: len(temperatures)], torch.stack(entropy) if entropy else total[:0]

    def _shaped(self, logits: Tensor) -> Tensor:
        scaled = logits * self.scale if self.scale != 1 else logits
        return scaled if self.softcap is None else torch.tanh(scaled / self.softcap) * self.softcap


def _mean(logits: Tensor, lse: Tensor) -> Tensor:
    """Expectation of the logits [n, v] under their own softmax; a logit of -inf has no part in it."""
    weights = torch.exp(logits - lse[:, None])
    return (weights * torch.where(weights > 0, logits, 0.0)).sum(dim=-1)


def _mean_of_parts(means: list[Tensor], normalisers: Tensor) -> Tensor:
    """The expectation over all columns, from each part's own and its logsumexp [parts, n]."""
    return (torch.softmax(normalisers, dim=0) * torch.stack(means)).sum(dim=0)

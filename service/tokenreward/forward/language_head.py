"""A language model's head on chosen rows: the raw logit of one token, logsumexp and entropy over
all; never [rows, vocabulary].

Tiles of rows x vocabulary columns in float32, with a two-level logsumexp. Soft-cap and scale are
read from the configuration; whether that is all the model's own forward does to its logits is for
the probe to say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokenreward.checkpoints.checkpoint import Checkpoint, CheckpointRefused
from tokenreward.forward.patches import Linear, torch_linear
from tokenreward.forward.reduction import LogSumExp, in_place, merged_tiles, reduced
from tokenreward.forward.tiling import Tiling

_CHOSEN_BYTES = {"cpu": 2**21, "cuda": 2**25}

Product = Callable[[Tensor, Tensor], Tensor]


def half_product(rows: Tensor, weight: Tensor) -> Tensor:
    """x W^T of half-precision tensors in float32, which some devices multiply without converting
    either."""
    return torch.mm(rows, weight.t(), out_dtype=torch.float32)


@dataclass(frozen=True, slots=True, eq=False)
class LanguageHead:
    """logits = softcap * tanh(scale * (h W^T + b) / softcap), without the tanh if there is no
    soft-cap.

    `product`: multiplies rows and weights of the model's own dtype into float32; None if both are
    converted first and then go through `linear`.
    """

    weight: Tensor
    bias: Tensor | None
    scale: float
    softcap: float | None
    linear: Linear = torch_linear
    product: Product | None = None
    logsumexp: LogSumExp = in_place

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
        is_half = head.weight.dtype in (torch.bfloat16, torch.float16)
        return cls(
            head.weight,
            getattr(head, "bias", None),
            scale,
            None if softcap is None else float(softcap),
            product=half_product if is_half and head.weight.device.type == "cuda" else None,
        )

    @property
    def tile_shape(self) -> tuple[int, int]:
        """Rows and columns of a tile of logits."""
        tiling = self._tiling(1)
        return tiling.rows, tiling.columns

    def chosen(self, hidden: Tensor, at: Tensor, targets: Tensor) -> Tensor:
        """Raw logits [n], float32, of token targets[i] at hidden[at[i]]: an exact indexed dot."""
        num_rows = max(1, _CHOSEN_BYTES.get(hidden.device.type, 2**25) // (4 * hidden.shape[1]))
        picked = []
        for rows, tokens in zip(
            torch.split(at, num_rows), torch.split(targets, num_rows), strict=True
        ):
            dots = hidden[rows].float().mul_(self.weight[tokens]).sum(dim=-1)
            picked.append(self._shaped(dots if self.bias is None else dots.add_(self.bias[tokens])))
        return torch.cat(picked) if picked else hidden.new_empty(0, dtype=torch.float32)

    def normalisers(
        self, hidden: Tensor, at: Tensor | None, temperatures: list[float], entropies: list[float]
    ) -> tuple[Tensor, Tensor]:
        """logsumexp(logits / T) [len(temperatures), n] and the entropy of softmax(logits / T)
        [len(entropies), n], nats, both float32, at the rows `at` [n] of hidden [m, h], or at each
        of them; n > 0."""
        tiling = self._tiling(len(temperatures) + 2 * len(entropies))
        found = []
        num_rows = len(hidden) if at is None else len(at)
        for top in range(0, num_rows, tiling.block):
            block = slice(top, top + tiling.block)
            rows = hidden[block] if at is None else hidden[at[block]]
            partial = torch.stack(list(self._by_tile(rows, tiling, temperatures, entropies)))
            found.append(merged_tiles(partial, len(temperatures)))
        return torch.cat([lse for lse, _ in found], dim=1), torch.cat(
            [entropy for _, entropy in found], dim=1
        )

    def _by_tile(
        self, rows: Tensor, tiling: Tiling, temperatures: list[float], entropies: list[float]
    ) -> Iterator[Tensor]:
        """What is kept [k, n] of each tile of columns."""
        for left in range(0, self.weight.shape[0], tiling.columns):
            columns = slice(left, left + tiling.columns)
            weight, bias = self.weight[columns], None if self.bias is None else self.bias[columns]
            if self.product is None:
                weight = weight.float()  # once for all rows of the block
            yield torch.cat(
                [
                    reduced(
                        self._logits(part, weight, bias), temperatures, entropies, self.logsumexp
                    )
                    for part in torch.split(rows, tiling.rows)
                ],
                dim=1,
            )

    def _logits(self, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        own = self.product
        logits = self.linear(rows.float(), weight, None) if own is None else own(rows, weight)
        return self._shaped(logits if bias is None else logits.add_(bias))

    def _shaped(self, logits: Tensor) -> Tensor:
        """In the memory of the logits."""
        scaled = logits.mul_(self.scale) if self.scale != 1 else logits
        return (
            scaled if self.softcap is None else scaled.div_(self.softcap).tanh_().mul_(self.softcap)
        )

    def _tiling(self, num_results: int) -> Tiling:
        vocab_size, hidden_size = self.weight.shape
        converts = self.product is None and self.weight.dtype != torch.float32
        size = vocab_size, hidden_size, self.weight.element_size()
        return Tiling.of(self.weight.device.type, size, num_results, converts=converts)

"""A language model's head on chosen rows: raw logits of some tokens; logsumexp, entropy and the
largest logits over the vocabulary, without a matrix [rows, vocabulary].

The head is multiplied in tiles of rows x vocabulary columns, in float32, whose logsumexps are
merged. Soft-cap and scale are read from the model's configuration. Whether they are all that the
model's own forward does to its logits is for the probe to say: this module knows one head, and no
rows of requests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tokenreward.checkpoints.adapter import low_rank
from tokenreward.checkpoints.checkpoint import Checkpoint
from tokenreward.checkpoints.refusal import CheckpointRefused
from tokenreward.forward.language_head.ranking import Ranking
from tokenreward.forward.language_head.reduction import (
    LogSumExp,
    fastest,
    in_place,
    merge_tiles,
    reduce_tile,
)
from tokenreward.forward.language_head.tiling import largest_tiles
from tokenreward.forward.patches import Linear, torch_linear

# What configurations call the bound of their logits: Gemma, RecurrentGemma, xLSTM.
_SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")

# Hidden states and weights that are gathered for single logits, at a time.
GATHERED_BYTES = {"cpu": 2**21, "cuda": 2**25}

Product = Callable[[Tensor, Tensor], Tensor]


def half_product(rows: Tensor, weight: Tensor) -> Tensor:
    """x W^T of half-precision tensors, in float32. GPUs multiply so without converting either."""
    return torch.mm(rows, weight.t(), out_dtype=torch.float32)


@dataclass(frozen=True, slots=True, eq=False)
class LanguageHead:
    """A language model's head: logits = softcap * tanh(scale * (h W^T + b) / softcap).

    Without a soft-cap there is no tanh: logits = scale * (h W^T + b).

    Attributes:
        weight: W [vocabulary, h], in the model's dtype.
        bias: b [vocabulary], or None.
        scale: What the model multiplies its logits by.
        softcap: The bound of the logits, or None.
        linear: Multiplies float32 rows and weights, where `product` is None.
        product: Multiplies rows and weights of the model's own dtype into float32; None if both are
            converted to float32 first.
        logsumexp: Of a tile of logits.
        adapter: A [r, h] and B [vocabulary, r], LoRA's scale included: h (B A)^T is added to h W^T.
    """

    weight: Tensor
    bias: Tensor | None
    scale: float
    softcap: float | None
    linear: Linear = torch_linear
    product: Product | None = None
    logsumexp: LogSumExp = in_place
    adapter: tuple[Tensor, Tensor] | None = None

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> LanguageHead:
        """The head of a checkpoint. Raises CheckpointRefused if it has no output embeddings."""
        head: Any = checkpoint.model.get_output_embeddings()
        if head is None:
            raise CheckpointRefused(f"{type(checkpoint.model).__name__} has no language model head")
        config = checkpoint.text_config
        # Cohere multiplies by `logit_scale`, Falcon-H1 by `lm_head_multiplier`; Granite divides by
        # `logits_scaling`.
        scale = float(getattr(config, "logit_scale", None) or 1.0)
        scale *= float(getattr(config, "lm_head_multiplier", None) or 1.0)
        scale /= float(getattr(config, "logits_scaling", None) or 1.0)
        softcaps = (getattr(config, name, None) for name in _SOFTCAPS)
        softcap = next((cap for cap in softcaps if cap is not None), None)
        is_half = head.weight.dtype in (torch.bfloat16, torch.float16)
        on_gpu = head.weight.device.type == "cuda"
        return cls(
            head.weight,
            getattr(head, "bias", None),
            scale,
            None if softcap is None else float(softcap),
            product=half_product if is_half and on_gpu else None,
            adapter=low_rank(head),
        )

    @property
    def tile_shape(self) -> tuple[int, int]:
        """Rows and columns of a tile of logits."""
        rows, columns, _ = self._cut(1)
        return rows, columns

    # In inference mode, as the passes are: code that is compiled in another mode would be compiled
    # again at the first pass.
    @torch.inference_mode()
    def with_fastest_logsumexp(self) -> tuple[LanguageHead, float]:
        """This head with the fastest logsumexp of its device.

        A CPU keeps the one in place: its tiles stay in the cache, and compiling takes seconds.

        Returns:
            The head, and how many times as fast as the one in place its logsumexp is.
        """
        device = self.weight.device
        if device.type == "cpu":
            return self, 1.0
        logsumexp, gain = fastest(device, self.tile_shape)
        return replace(self, logsumexp=logsumexp), gain

    def token_logits(self, hidden: Tensor, at: Tensor, targets: Tensor) -> Tensor:
        """Raw logits of single tokens, each an exact dot product: no other token is looked at.

        Args:
            hidden: Hidden states [m, h].
            at: Rows [n] of them.
            targets: A token [n] for each of these rows.

        Returns:
            The logit of targets[i] at hidden[at[i]], [n] in float32.
        """
        num_rows = max(1, GATHERED_BYTES.get(hidden.device.type, 2**25) // (4 * hidden.shape[1]))
        parts = zip(torch.split(at, num_rows), torch.split(targets, num_rows), strict=True)
        logits = []
        for rows, tokens in parts:
            states = hidden[rows].float()
            if self.adapter is None:
                dots = states.mul_(self.weight[tokens]).sum(dim=-1)
            else:
                a, b = self.adapter
                dots = (states * self.weight[tokens]).sum(dim=-1)
                dots.add_((states @ a.float().t()).mul_(b[tokens]).sum(dim=-1))
            if self.bias is not None:
                dots.add_(self.bias[tokens])
            logits.append(self._scaled_and_capped(dots))
        return torch.cat(logits) if logits else hidden.new_empty(0, dtype=torch.float32)

    def label_logits(self, hidden: Tensor, at: Tensor, labels: Tensor) -> Tensor:
        """Raw logits of the same few tokens at each of some rows.

        Args:
            hidden: Hidden states [m, h].
            at: Rows [n] of them.
            labels: Tokens [k].

        Returns:
            The logits [n, k], in float32.
        """
        weight = self.weight[labels]
        if self.product is None:
            weight = weight.float()
        num_rows, _ = self.tile_shape
        parts = [self._logits(hidden[rows], weight, labels) for rows in torch.split(at, num_rows)]
        return torch.cat(parts) if parts else weight.new_empty((0, len(labels)))

    def normalisers(
        self,
        hidden: Tensor,
        at: Tensor | None,
        temperatures: list[float],
        entropies: list[float],
        *,
        ranking: Ranking | None = None,
    ) -> tuple[Tensor, Tensor]:
        """logsumexp(logits / T), and the entropy of softmax(logits / T), over the vocabulary.

        Args:
            hidden: Hidden states [m, h].
            at: Rows [n] of them, n > 0; None for all rows.
            temperatures: T of the logsumexps.
            entropies: T of the entropies.
            ranking: Is shown the tiles of these n rows.

        Returns:
            The logsumexps [len(temperatures), n] and the entropies [len(entropies), n], nats, in
            float32.
        """

        def keep(logits: Tensor, first_row: int, first_id: int) -> Tensor:
            if ranking is not None:
                ranking.see(logits, first_row, first_id)
            return reduce_tile(logits, temperatures, entropies, self.logsumexp)

        rows, columns, block_rows = self._cut(len(temperatures) + 2 * len(entropies))
        blocks = []
        num_rows = len(hidden) if at is None else len(at)
        for top in range(0, num_rows, block_rows):
            block = slice(top, top + block_rows)
            states = hidden[block] if at is None else hidden[at[block]]
            tiles = torch.stack(list(self._tiles(states, (rows, columns), keep, first_row=top)))
            blocks.append(merge_tiles(tiles, len(temperatures)))
        lse = torch.cat([lse for lse, _ in blocks], dim=1)
        return lse, torch.cat([entropy for _, entropy in blocks], dim=1)

    def _tiles(
        self,
        states: Tensor,
        shape: tuple[int, int],
        keep: Callable[[Tensor, int, int], Tensor],
        *,
        first_row: int,
    ) -> Iterator[Tensor]:
        """What is kept [k, n] of each tile of columns, for the states [n, h] of a block.

        Args:
            states: The states of the block.
            shape: The most rows and columns of a tile.
            keep: Takes a tile, its first row among all rows, and its first token.
            first_row: The first row of the block.
        """
        num_rows, num_columns = shape
        for left in range(0, self.weight.shape[0], num_columns):
            columns = slice(left, left + num_columns)
            weight = self.weight[columns]
            if self.product is None:
                weight = weight.float()  # once for all rows of the block
            # No tile of logits has a name here: it would live while the next one is computed.
            parts = [
                keep(self._logits(part, weight, columns), first_row + index * num_rows, left)
                for index, part in enumerate(torch.split(states, num_rows))
            ]
            yield torch.cat(parts, dim=1)

    def _logits(self, rows: Tensor, weight: Tensor, columns: slice | Tensor) -> Tensor:
        """One tile of logits, in float32: of rows [n, h] and the weights of some columns."""
        if self.product is None:
            logits = self.linear(rows.float(), weight, None)
        else:
            logits = self.product(rows, weight)
        if self.adapter is not None:
            a, b = self.adapter
            logits.addmm_(rows.float() @ a.float().t(), b[columns].float().t())
        if self.bias is not None:
            logits.add_(self.bias[columns])
        return self._scaled_and_capped(logits)

    def _scaled_and_capped(self, logits: Tensor) -> Tensor:
        """In the memory of the logits."""
        if self.scale != 1:
            logits.mul_(self.scale)
        if self.softcap is not None:
            logits.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits

    def _cut(self, num_results: int) -> tuple[int, int, int]:
        """The `largest_tiles` of this head."""
        vocab_size, hidden_size = self.weight.shape
        converts = self.product is None and self.weight.dtype != torch.float32
        size = vocab_size, hidden_size, self.weight.element_size()
        return largest_tiles(self.weight.device.type, size, num_results, converts=converts)


def states_before_head(checkpoint: Checkpoint, *, through_model: bool, **inputs: Tensor) -> Tensor:
    """Runs a model up to its head. Raises RuntimeError for a head that the model did not call.

    Args:
        checkpoint: The model.
        through_model: Run the model's own call and take what its head reads, for models that
            compute something between trunk and head. The head then gets the first token alone.
        **inputs: The arguments of the call, for b rows of n tokens.

    Returns:
        The hidden states [b, n, h] that the head reads.
    """
    if not through_model:
        states: Tensor = checkpoint.trunk(use_cache=False, **inputs).last_hidden_state
        return states
    inputs_of_head: list[Tensor] = []

    def take(head: Any, arguments: tuple[Tensor]) -> tuple[Tensor]:
        inputs_of_head.append(arguments[0])
        return (arguments[0][:, :1],)

    handle = checkpoint.model.get_output_embeddings().register_forward_pre_hook(take)
    try:
        checkpoint.model(use_cache=False, **inputs)
    finally:
        handle.remove()
    if len(inputs_of_head) != 1:
        raise RuntimeError(f"the head was called {len(inputs_of_head)} times")
    return inputs_of_head[0]

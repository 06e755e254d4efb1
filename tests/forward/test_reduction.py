"""Entropies from tiles of logits, where the difference of two large numbers would have no digits
left."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fakes import oracle
from tokenreward.forward.language_head.reduction import merge_tiles, reduce_tile


def entropies(logits: torch.Tensor, temperature: float, *, columns: int = 4096) -> np.ndarray:
    tiles = [
        reduce_tile(tile.clone(), [temperature], [temperature])
        for tile in logits.split(columns, dim=1)
    ]
    return merge_tiles(torch.stack(tiles), 1)[1][0].numpy()


@pytest.mark.parametrize("temperature", [1.0, 0.1, 0.01, 0.001])
def test_near_ties_at_a_low_temperature_keep_their_entropy(temperature: float) -> None:
    logits = 8 * torch.randn(64, 9000, generator=torch.Generator().manual_seed(0))
    logits[:, 8000] = logits.amax(dim=1) * (1 - 1e-6)  # in another tile than most maxima
    found = entropies(logits, temperature)
    truth = oracle.entropy(logits.double().numpy() / temperature)
    assert (found >= 0).all()
    # Logits / T are rounded to 6e-8 of their size before anything is made of them.
    assert np.abs(found - truth).max() <= 2e-6 + 1.2e-7 * float(logits.abs().max()) / temperature


def test_a_tile_of_masked_logits_has_no_part_in_the_entropy() -> None:
    logits = torch.randn(4, 9000, generator=torch.Generator().manual_seed(0))
    logits[:, :4096] = -torch.inf
    logits[:, 5000:] = -torch.inf
    truth = oracle.entropy(logits[:, 4096:5000].double().numpy())
    assert np.abs(entropies(logits, 1.0) - truth).max() < 1e-5

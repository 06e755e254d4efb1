"""Samples made of ids alone, for scorers that read neither the item's text nor a tokenizer."""

from __future__ import annotations

from typing import Any
from unittest.mock import create_autospec

import numpy as np

from tokenreward.contract import Sample, TokenizerView
from tokenreward.wire import Item


def sample_of_ids(
    prompt_ids: np.ndarray, response_ids: np.ndarray, terminal: bool, keep: np.ndarray
) -> Sample:
    """The sample of an item of token ids. Its tokenizer fails the test of whoever asks it."""
    item = Item(prompt=prompt_ids.tolist(), response=response_ids.tolist())
    tokenizer: Any = create_autospec(TokenizerView, instance=True)
    tokenizer.configure_mock(
        **{
            f"{name}.side_effect": AssertionError("a scorer asked the tokenizer")
            for name in _METHODS
        }
    )
    return Sample(prompt_ids, response_ids, terminal, keep, item, tokenizer)


_METHODS = (
    "prompt_from_text",
    "with_bos",
    "prompt_from_messages",
    "pieces",
    "text",
    "single",
    "without_special",
)

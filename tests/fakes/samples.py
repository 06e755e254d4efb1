"""Samples made of ids alone; and ways to see what a scorer wants of a tokenizer and a model."""

from __future__ import annotations

from typing import Any
from unittest.mock import create_autospec

import numpy as np

from tokenreward.contract import Needs, Sample, Scorer, TokenizerView
from tokenreward.wire import Item

_METHODS = (
    "prompt_from_text",
    "with_bos",
    "prompt_from_messages",
    "pieces",
    "text",
    "single",
    "without_special",
)


def sample_of_ids(
    prompt_ids: np.ndarray, response_ids: np.ndarray, terminal: bool, keep: np.ndarray
) -> Sample:
    """The sample of an item of token ids. A scorer that calls its tokenizer fails the test."""
    tokenizer: Any = create_autospec(TokenizerView, instance=True)
    failure = AssertionError("a scorer called the tokenizer")
    tokenizer.configure_mock(**{f"{name}.side_effect": failure for name in _METHODS})
    return Sample(
        prompt_ids=prompt_ids,
        response_ids=response_ids,
        terminal=terminal,
        keep=keep,
        item=Item(prompt=prompt_ids.tolist(), response=response_ids.tolist()),
        tokenizer=tokenizer,
    )


def single_tokens_of(scorer: Scorer, options: Any) -> list[str]:
    """The texts that a scorer with these options wants to be one token each.

    A tokenizer that has them all serves the scorer, whichever scorer it is.
    """
    ids: dict[str, int] = {}
    tokenizer: Any = create_autospec(TokenizerView, instance=True)
    tokenizer.single.side_effect = lambda text: ids.setdefault(text, len(ids))
    tokenizer.pieces.return_value = (np.zeros(1, dtype=np.int64), None)
    scorer.check(options, tokenizer)
    scorer.labels(options, tokenizer)
    return list(ids)


def watch_needs(engine: Any) -> list[Needs]:
    """A list that gets the needs of every row that the engine's model reads from now on."""
    needs: list[Needs] = []
    launch = engine.runner.launch

    def watched(batch: Any) -> Any:
        needs.extend(request.needs for requests in batch for request in requests)
        return launch(batch)

    engine.runner.launch = watched
    return needs

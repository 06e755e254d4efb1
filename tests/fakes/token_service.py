"""A service for adapters, in the place of an AsyncClient's: its rewards are easy to tell apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tokenreward_client import AsyncClient, Rewards, ScorerInfo

LISTING = [ScorerInfo(name="dense", type="attention_dense"), ScorerInfo(name="rm")]


class TokenService:
    """Token t of a response of ids gets 10 times the first id of its prompt, plus t; a masked one
    gets 0. The score is their sum."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[Any, Any, Any]] = []
        self.num_listings = 0
        self.waited_for: Any = None
        self.listing = LISTING
        patch.setattr(AsyncClient, "score", lambda client, *a, **k: self.score(*a, **k))
        patch.setattr(AsyncClient, "scorers", lambda client, **k: self.scorers(**k))

    async def score(self, items: Any, scorer: Any = None, **settings: Any) -> list[Rewards]:
        self.calls.append((list(items), scorer, settings))
        answers = []
        for item in items:
            num_units = len(item.get("spans") or item["response"])
            first = 0 if isinstance(item["prompt"][0], (dict, str)) else item["prompt"][0]
            rewards = np.arange(num_units, dtype=np.float32) + 10 * first
            rewards *= np.array(item.get("mask") or [1] * num_units, dtype=np.float32)
            answers.append(Rewards(rewards, score=float(rewards.sum())))
        return answers

    async def scorers(self, *, wait_for: Any) -> list[ScorerInfo]:
        self.num_listings += 1
        self.waited_for = wait_for
        return self.listing

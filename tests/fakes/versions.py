"""The rewards of some items under each version of a deployment's weights, where a few checkpoints
take turns: they are known beforehand, from engines of their own."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tokenreward.engine import Engine
from tokenreward.settings import DeploymentSettings
from tokenreward.wire import RewardsRequest, parse

TOLERANCE = 1e-5  # times the largest reward; two checkpoints differ by far more

Vector = npt.NDArray[np.float32]
Answer = Vector | str  # rewards, or the code of the item's error


class Truths:
    """What is right for each version: version 1 is the first checkpoint, 2 the second, and so on
    in a circle.

    Args:
        answers: For each checkpoint, by scorer, the answer to each item.

    Attributes:
        scorers: The names of the scorers.
    """

    def __init__(self, answers: Sequence[dict[str, list[Answer]]]) -> None:
        self._answers = answers
        self.scorers = list(answers[0])

    @classmethod
    async def computed(
        cls, settings: dict[str, Any], checkpoints: Sequence[str], items: Sequence[dict[str, Any]]
    ) -> Truths:
        """Those of the deployment's scorers, by an engine of each checkpoint, alone.

        Args:
            settings: The deployment's settings.
            checkpoints: Those that take turns. Their rewards differ for every item.
            items: The items, some of which may have errors.
        """
        answers = []
        for checkpoint in checkpoints:
            parsed = DeploymentSettings.model_validate({**settings, "checkpoint": checkpoint})
            engine = await asyncio.to_thread(Engine.load, parsed, say=lambda line: None)
            names = [scorer.served_name for scorer in parsed.scorers]
            answers.append({name: await _answers(engine, name, items) for name in names})
            await engine.close()
        truths = cls(answers)
        truths.check_that_checkpoints_differ()
        return truths

    def is_right(self, version: int | None, scorer: str, index: int, answer: Answer) -> bool:
        """Whether an item's answer is that of a fresh engine of this version."""
        if version is None:
            return False
        by_scorer = self._answers[(version - 1) % len(self._answers)]
        expected = by_scorer[scorer][index]
        if isinstance(expected, str) or isinstance(answer, str):
            return isinstance(answer, str) and answer == expected
        if answer.shape != expected.shape or not np.isfinite(answer).all():
            return False
        return float(np.abs(answer - expected).max()) <= self._tolerance(scorer)

    def error_of(self, index: int) -> str | None:
        """The code of an item's error; None if it has rewards."""
        answer = self._answers[0][self.scorers[0]][index]
        return answer if isinstance(answer, str) else None

    def _tolerance(self, scorer: str) -> float:
        vectors = [each for answers in self._answers for each in answers[scorer]]
        largest = max(np.abs(each).max() for each in vectors if not isinstance(each, str))
        return TOLERANCE * max(1.0, float(largest))

    def check_that_checkpoints_differ(self) -> None:
        """Raises AssertionError if two checkpoints give an item nearly the same rewards."""
        for first, second in itertools.combinations(self._answers, 2):
            for scorer in self.scorers:
                for one, other in zip(first[scorer], second[scorer], strict=True):
                    if isinstance(one, str) or isinstance(other, str):
                        assert isinstance(one, str)
                        assert one == other
                        continue
                    gap = float(np.abs(one - other).max())
                    assert gap > 100 * self._tolerance(scorer), f"{scorer}: only {gap} apart"


async def _answers(engine: Engine, scorer: str, items: Sequence[dict[str, Any]]) -> list[Answer]:
    reply = await engine.score(parse(RewardsRequest, {"scorer": scorer, "items": list(items)}))
    return [
        np.asarray(item.rewards, np.float32) if item.error is None else item.error.code
        for item in reply.items
    ]

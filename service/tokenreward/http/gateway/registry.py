"""What has been pushed to each deployment, and whose turn it is to push: entries of a key-value
store that every process of the service reaches and that outlives all of them.

The store does one call after the other, and puts a key only if the key is absent. It knows no
compare-and-swap. So nothing is ever replaced by a competitor: each version has a key of its own,
and so has each turn, whose number is the next one after all before.

A turn is not a lock. Somebody who was stuck for longer than a turn lasts, just after looking at it,
acts once more while another has the next turn, and so does somebody whose clock is wrong by as
much. What makes replicas serve the same even then are the versions: each is recorded once, for
one checkpoint, and every replica goes to the greatest one that is recorded, and never back.

This module knows neither what reads the entries nor whether a checkpoint is there.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict
from typing import Protocol

from tokenreward.errors import VersionConflict
from tokenreward.wire.weights import Weights, parse_weights

TURN_S = 30.0  # a gateway that dies while it pushes holds up others for so long


class KeyValues(Protocol):
    """The store. Its calls block."""

    def get(self, key: str) -> bytes | None:
        """The value of a key, or None."""

    def put(self, key: str, value: bytes, *, overwrite: bool) -> bool:
        """Whether the value is there now. Without `overwrite` it is not if the key has one."""

    def keys(self, prefix: str) -> list[str]:
        """All keys with this prefix."""

    def delete(self, key: str) -> None:
        """Deletes a key, which need not be there."""


class Registry:
    """The newest weights that were pushed to each deployment, and the turns of those who push. Its
    calls block.

    Args:
        store: Where the entries are.
        clock: Seconds since 1970, about the same on all nodes.
    """

    def __init__(self, store: KeyValues, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._clock = clock

    def pushed(self, deployment: str) -> Weights | None:
        """The newest weights that were pushed, or None."""
        while keys := self._store.keys(f"pushed/{deployment}/"):
            value = self._store.get(max(keys))
            if value is not None:  # else it was deleted meanwhile: a newer one is there
                return parse_weights(value)
        return None

    def record(self, deployment: str, weights: Weights) -> None:
        """Makes these the newest.

        Raises:
            VersionConflict: Others have this version already, or a greater one.
        """
        prefix = f"pushed/{deployment}/"
        key = f"{prefix}{weights.version:020d}"
        value = json.dumps(asdict(weights)).encode()
        if not self._store.put(key, value, overwrite=False) and self._store.get(key) != value:
            raise VersionConflict(
                f"version {weights.version} was pushed with another checkpoint meanwhile",
                param="version",
            )
        keys = self._store.keys(prefix)
        for older in (each for each in keys if each < key):
            self._store.delete(older)
        if max(keys, default=key) > key:
            raise VersionConflict("a greater version was pushed meanwhile", param="version")

    def take_turn(self, deployment: str) -> int | None:
        """Takes the turn to push.

        Returns:
            The turn's number; None if somebody else has it, and has renewed it lately.
        """
        prefix = f"turn/{deployment}/"
        last = max(self._store.keys(prefix), default=f"{prefix}{0:020d}")
        if not self._is_over(last):
            return None
        turn = int(last.removeprefix(prefix)) + 1
        key, value = _turn_key(deployment, turn), self._turn_value()
        self._store.put(key, value, overwrite=False)
        # A put whose answer was lost is repeated, and then finds its own entry: so whose an entry
        # is stands in it. Somebody who looked long ago may put a number that others have passed
        # and deleted.
        if self._store.get(key) != value or not self._is_last(deployment, turn):
            return None
        if not self._is_over(last):  # its holder renewed it after we looked, and may go on
            self.end_turn(deployment, turn)
            return None
        for older in self._store.keys(prefix):
            if older < key:
                self._store.delete(older)
        return turn

    def renew_turn(self, deployment: str, turn: int) -> bool:
        """Keeps the turn for another `TURN_S` seconds. Returns False if it was lost."""
        key = _turn_key(deployment, turn)
        # Written first, read second. A gateway that takes the next turn reads after it has written,
        # too, so at least one of the two sees the other.
        self._store.put(key, self._turn_value(), overwrite=True)
        is_ours = self._is_last(deployment, turn)
        if not is_ours:
            self._store.delete(key)
        return is_ours

    def end_turn(self, deployment: str, turn: int) -> None:
        """Gives the turn to whoever wants it next. Its number is not used again."""
        if self._is_last(deployment, turn):
            self._store.put(_turn_key(deployment, turn), b"0", overwrite=True)

    def _is_last(self, deployment: str, turn: int) -> bool:
        keys = self._store.keys(f"turn/{deployment}/")
        return max(keys, default="") == _turn_key(deployment, turn)

    def _is_over(self, key: str) -> bool:
        """Whether a turn was ended, or not renewed for too long. One without an entry is over."""
        value = self._store.get(key)
        return value is None or float(value.split()[0]) <= self._clock()

    def _turn_value(self) -> bytes:
        """When a turn is over, and a word that nobody else writes."""
        return f"{self._clock() + TURN_S!r} {uuid.uuid4().hex}".encode()


def _turn_key(deployment: str, turn: int) -> str:
    return f"turn/{deployment}/{turn:020d}"

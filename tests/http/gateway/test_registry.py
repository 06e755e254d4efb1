"""The registry of pushes, on a store in memory: versions only grow, and a push has its turn."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Any

import pytest

from fakes.pushes import MemoryStore
from tokenreward.errors import VersionConflict
from tokenreward.http.gateway.registry import TURN_S, Registry
from tokenreward.wire.weights import Weights


def weights(version: int, checkpoint: str = "/runs") -> Weights:
    return Weights(checkpoint=checkpoint, version=version, adapter="/lora")


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def registry(store: MemoryStore, clock: Clock) -> Registry:
    return Registry(store, clock)


def test_nothing_is_pushed_at_first(registry: Registry) -> None:
    assert registry.pushed("lm") is None


def test_the_greatest_version_is_the_newest_whatever_its_digits(registry: Registry) -> None:
    for version in (2, 9, 10, 100):
        registry.record("lm", weights(version))
    assert registry.pushed("lm") == weights(100)


def test_older_entries_are_deleted(registry: Registry, store: MemoryStore) -> None:
    for version in range(1, 200):
        registry.record("lm", weights(version))
    assert len(store.values) == 1


def test_deployments_do_not_see_each_other(registry: Registry) -> None:
    registry.record("lm", weights(3))
    registry.record("lm-2", weights(4))
    assert registry.pushed("lm") == weights(3)
    assert registry.pushed("l") is None


def test_an_older_version_replaces_nothing(registry: Registry) -> None:
    registry.record("lm", weights(5))
    with pytest.raises(VersionConflict):
        registry.record("lm", weights(4))
    assert registry.pushed("lm") == weights(5)


def test_a_version_keeps_its_checkpoint(registry: Registry) -> None:
    registry.record("lm", weights(5))
    registry.record("lm", weights(5))  # the same once more
    with pytest.raises(VersionConflict):
        registry.record("lm", weights(5, "/others"))
    assert registry.pushed("lm") == weights(5)


def test_one_turn_at_a_time_and_each_deployment_its_own(registry: Registry) -> None:
    turn = registry.take_turn("lm")
    assert turn is not None
    assert registry.take_turn("lm") is None
    assert registry.take_turn("rm") is not None
    registry.end_turn("lm", turn)
    assert registry.take_turn("lm") is not None


def test_a_turn_that_nobody_renews_is_taken_over(registry: Registry, clock: Clock) -> None:
    first = registry.take_turn("lm")
    assert first is not None
    clock.now += TURN_S - 1
    assert registry.renew_turn("lm", first)
    clock.now += TURN_S - 1
    assert registry.take_turn("lm") is None
    clock.now += 2
    second = registry.take_turn("lm")
    assert second is not None
    assert not registry.renew_turn("lm", first)
    registry.end_turn("lm", first)  # it ends nobody else's
    assert registry.take_turn("lm") is None


def test_turns_leave_one_entry(registry: Registry, store: MemoryStore) -> None:
    for _ in range(50):
        turn = registry.take_turn("lm")
        assert turn is not None
        registry.end_turn("lm", turn)
    assert len(store.values) == 1


def test_of_two_who_see_the_same_expired_turn_one_gets_it(store: MemoryStore, clock: Clock) -> None:
    class Late(MemoryStore):
        """Looks at the keys, and is overtaken before it puts its own."""

        def __init__(self) -> None:
            super().__init__()
            self.values = store.values
            self.is_first = True

        def keys(self, prefix: str) -> list[str]:
            seen = super().keys(prefix)
            if self.is_first:
                self.is_first = False
                for _ in range(3):  # so that its number was used, and deleted again
                    turn = Registry(store, clock).take_turn("lm")
                    assert turn is not None
                    Registry(store, clock).end_turn("lm", turn)
                self.winner = Registry(store, clock).take_turn("lm")
            return seen

    first = Registry(store, clock).take_turn("lm")
    assert first is not None
    clock.now += TURN_S + 1
    late = Late()
    assert Registry(late, clock).take_turn("lm") is None
    assert late.winner is not None
    assert Registry(store, clock).renew_turn("lm", late.winner)


class Interleaved:
    """Runs calls on threads of their own, of which one at a time does one call of the store."""

    def __init__(self, store: MemoryStore, seed: int) -> None:
        self._store = store
        self._random = random.Random(seed)
        self._gates: dict[int, threading.Semaphore] = {}
        self._arrived = threading.Semaphore(0)

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            self._arrived.release()
            self._gates[threading.get_ident()].acquire()
            return getattr(self._store, name)(*args, **options)

        return call

    def run(self, calls: list[Callable[[], Any]]) -> list[Any]:
        results: list[Any] = [None] * len(calls)
        running: list[threading.Thread] = []

        def begin(index: int) -> None:
            self._gates[threading.get_ident()] = threading.Semaphore(0)
            results[index] = calls[index]()
            running.remove(threading.current_thread())
            self._arrived.release()

        for index in range(len(calls)):
            thread = threading.Thread(target=begin, args=(index,), daemon=True)
            running.append(thread)
            thread.start()
            assert self._arrived.acquire(timeout=10)
        while running:
            chosen = self._random.choice(running).ident
            assert chosen is not None
            self._gates[chosen].release()
            assert self._arrived.acquire(timeout=10)
        return results


@pytest.mark.parametrize("num_takers", [1, 2])
def test_however_calls_fall_together_one_has_the_turn(num_takers: int) -> None:
    num_kept = num_taken = 0
    for seed in range(300):
        store, clock = MemoryStore(), Clock()
        first = Registry(store, clock).take_turn("lm")
        assert first is not None
        clock.now += TURN_S + 1
        together = Interleaved(store, seed)
        others = Registry(together, clock)
        renewed, *taken = together.run(
            [lambda: others.renew_turn("lm", first)]  # noqa: B023 - it is called in this turn
            + [lambda: others.take_turn("lm")] * num_takers  # noqa: B023
        )
        holders = [turn for turn in taken if turn is not None]
        assert len(holders) + renewed <= 1, seed
        num_kept += renewed
        num_taken += len(holders)
        for turn in holders:
            assert Registry(store, clock).renew_turn("lm", turn)
    assert num_kept > 10
    assert num_taken > 10


def test_a_put_whose_answer_was_lost_and_that_is_repeated_takes_the_turn(clock: Clock) -> None:
    class Repeating(MemoryStore):
        def put(self, key: str, value: bytes, *, overwrite: bool) -> bool:
            super().put(key, value, overwrite=overwrite)
            return super().put(key, value, overwrite=overwrite)

    assert Registry(Repeating(), clock).take_turn("lm") is not None


def test_a_turn_that_was_lost_leaves_nothing_behind(
    registry: Registry, store: MemoryStore, clock: Clock
) -> None:
    first = registry.take_turn("lm")
    assert first is not None
    clock.now += TURN_S + 1
    assert registry.take_turn("lm") is not None
    assert not registry.renew_turn("lm", first)
    assert len(store.values) == 1


def test_a_version_that_is_recorded_late_does_not_bring_back_older_weights(
    registry: Registry,
) -> None:
    registry.record("lm", weights(6))
    with pytest.raises(VersionConflict, match="greater"):
        registry.record("lm", weights(5))
    assert registry.pushed("lm") == weights(6)

"""A call of another replica runs in this process: at once, or later on the event loop."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from tokenreward.deployment import peers


async def test_a_call_is_answered_at_once_or_handed_to_the_event_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(peers, "here", None)
    with pytest.raises(RuntimeError, match="still loading"):
        peers.call_here(None, "status")
    threads: list[int] = []
    peers.answer_calls(
        at_once={"status": lambda: threading.get_ident()},
        later={"accept": lambda one, two: threads.append(threading.get_ident() + one - two)},
    )
    other = await asyncio.to_thread(peers.call_here, None, "status")
    assert other != threading.get_ident()
    assert await asyncio.to_thread(peers.call_here, None, "accept", 5, 5) is None
    await asyncio.sleep(0)
    assert threads == [threading.get_ident()]


async def test_only_what_is_answered_can_be_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "here", None)
    peers.answer_calls(at_once={}, later={})
    with pytest.raises(KeyError):
        peers.call_here(None, "close")


async def test_peers_that_ray_does_not_find_keep_no_thread_from_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers = threading.Event()
    context = SimpleNamespace(get_actor_name=lambda: "a")
    ray = SimpleNamespace(
        get_runtime_context=lambda: context, get_actor=lambda *_, **__: answers.wait(20)
    )
    monkeypatch.setattr(peers, "ray", ray)
    monkeypatch.setattr(peers, "CALL_S", 0.05)
    others = peers.RayPeers("lm")
    calls = [others.call(f"peer {number}", "status") for number in range(60)]
    try:
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {ConnectionError}
        assert await asyncio.wait_for(asyncio.to_thread(lambda: "a body is read"), 2)
    finally:
        answers.set()


async def test_handles_of_replicas_that_went_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[Any] = ["a", "b", TimeoutError()]

    async def call_replicas(*_: Any) -> list[Any]:
        return answers

    context = SimpleNamespace(get_actor_name=lambda: "a")
    ray = SimpleNamespace(get_runtime_context=lambda: context)
    monkeypatch.setattr(peers, "ray", ray)
    monkeypatch.setattr(peers, "call_replicas", call_replicas)
    others = peers.RayPeers("lm")
    others.actors.update(b="a handle", c="a handle of one that went")
    assert await others.addresses() == ["a", "b"]
    assert list(others.actors) == ["b"]
    answers.clear()  # nobody knows now
    assert await others.addresses() == []
    assert list(others.actors) == ["b"]

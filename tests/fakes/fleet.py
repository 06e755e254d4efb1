"""A deployment that autoscaling grows and shrinks, in simulated time: one queue of tokens, replicas
that need 45 s to start, figures that are 1.5 s old, and Ray's own bounds and delays."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ray.serve import autoscaling_policy
from ray.serve.config import AutoscalingConfig

TOKENS_PER_S = 20_000.0
COLD_START_S = 45.0
FIGURES_AGE_S = 1.5
STEP_S = 0.5
MAX_QUEUED_TOKENS = 10**9

Arrivals = Callable[[float, float], float]
"""Tokens that arrive in the step that begins at a time, with so many waiting before."""


@dataclass
class Run:
    """What happened: at each step the replicas that Ray wants, those that run, and the tokens that
    had arrived and were computed."""

    targets: list[int] = field(default_factory=list)
    running: list[int] = field(default_factory=list)
    arrived: list[float] = field(default_factory=list)
    computed: list[float] = field(default_factory=list)

    def note(self, fleet: Fleet) -> None:
        """Notes how things stand after a step."""
        self.targets.append(fleet.target)
        self.running.append(fleet.num_running)
        self.arrived.append(fleet.arrived)
        self.computed.append(fleet.computed)

    @property
    def reversals(self) -> int:
        """How many times the number changed the other way than the change before it."""
        changes = [change for change in np.sign(np.diff(self.targets)) if change]
        return sum(one != other for one, other in itertools.pairwise(changes))

    @property
    def replica_s(self) -> float:
        return sum(self.targets) * STEP_S

    def waits(self) -> np.ndarray:
        """How long each token waited, one figure per 100 tokens that were computed."""
        times = STEP_S * np.arange(1, 1 + len(self.arrived))
        tokens = np.arange(100.0, self.computed[-1], 100.0)
        began, arrived = (
            np.interp(tokens, self.computed, times),
            np.interp(tokens, self.arrived, times),
        )
        return np.maximum(0.0, began - arrived)


class Fleet:
    """The replicas of a deployment and their queue, moved on step by step.

    Args:
        num_replicas: How many run at first.
        tokens_per_s: The rate that replicas report; None before one has measured it.
    """

    def __init__(self, num_replicas: int, tokens_per_s: float | None) -> None:
        self.target = self.num_running = num_replicas
        self._tokens_per_s = tokens_per_s
        self._starting: list[float] = []  # when each further replica is there
        self._figures = deque[dict[str, Any]]()
        self.waiting = self.arrived = self.computed = 0.0

    def compute(self, now: float, coming: float) -> None:
        """One step: tokens arrive, and replicas compute or come up."""
        self.arrived += coming
        self.waiting += coming
        done = min(self.waiting, self.num_running * TOKENS_PER_S * STEP_S)
        self.waiting -= done
        self.computed += done
        while self._starting and self._starting[0] <= now:
            self._starting.pop(0)
            self.num_running += 1

    def figures(self) -> dict[str, Any]:
        """What the replicas reported `FIGURES_AGE_S` ago."""
        figures = {"pending_tokens": {"r0": self.waiting}, "arrived_tokens": {"r0": self.arrived}}
        if self._tokens_per_s is not None:
            figures["tokens_per_second"] = {"r0": self._tokens_per_s}
        self._figures.append(figures)
        return self._figures.popleft() if len(self._figures) * STEP_S > FIGURES_AGE_S else {}

    def follow(self, now: float, target: int) -> None:
        """Starts and stops replicas."""
        self.target = target
        while self.num_running + len(self._starting) < target:
            self._starting.append(now + COLD_START_S)
        while self.num_running + len(self._starting) > target:
            if self._starting:
                self._starting.pop()
            else:
                self.num_running -= 1


def _ray_config(delays: Mapping[str, float]) -> SimpleNamespace:
    """What Ray's delays read of its own settings."""
    config = SimpleNamespace(
        **{"upscale_delay_s": 5.0, "downscale_delay_s": 600.0, **delays},
        downscale_to_zero_delay_s=None,
        get_upscaling_factor=lambda: 1.0,
        get_downscaling_factor=lambda: 1.0,
    )
    assert set(vars(config)) <= set(dir(AutoscalingConfig)) | set(AutoscalingConfig.model_fields)
    return config


def run(
    policy: Any,
    arrivals: Arrivals,
    seconds: float,
    *,
    monkeypatch: pytest.MonkeyPatch,
    min_replicas: int = 1,
    max_replicas: int = 8,
    tokens_per_s: float | None = TOKENS_PER_S,
    **delays: float,
) -> Run:
    """Runs a deployment for some time.

    Args:
        policy: Called as Ray calls it.
        arrivals: The load.
        seconds: How long.
        monkeypatch: Sets the clock that Ray's delays read.
        min_replicas: As in the settings.
        max_replicas: As in the settings.
        tokens_per_s: The rate that replicas report.
        delays: `upscale_delay_s` and `downscale_delay_s`; by default as in the settings.
    """
    config = _ray_config(delays)
    decide = autoscaling_policy._apply_autoscaling_config(policy)
    outcome, state, fleet = Run(), {}, Fleet(min_replicas, tokens_per_s)
    for step in range(int(seconds / STEP_S)):
        now = step * STEP_S
        fleet.compute(now, arrivals(now, fleet.waiting))
        context = SimpleNamespace(
            aggregated_metrics=fleet.figures(),
            policy_state=state,
            current_time=now,
            current_num_replicas=fleet.num_running,
            target_num_replicas=fleet.target,
            capacity_adjusted_min_replicas=min_replicas,
            capacity_adjusted_max_replicas=max_replicas,
            total_num_requests=1,
            config=config,
        )
        monkeypatch.setattr(autoscaling_policy, "time", SimpleNamespace(time=lambda now=now: now))
        number, state = decide(context)
        fleet.follow(now, max(min_replicas, min(number, max_replicas)))
        outcome.note(fleet)
    return outcome


def drift(now: float, waiting: float) -> float:
    """What one replica computes, growing to what three compute in 30 minutes."""
    return TOKENS_PER_S * STEP_S * (1 + 2 * now / 1800)


def spiky(now: float, waiting: float) -> float:
    """What 0.4 replicas compute, and 14 bursts of 10 to 90 s of one replica's work."""
    sizes = (20, 90, 10, 45, 70, 15, 30, 85, 10, 60, 25, 90, 40, 55)
    times = (60, 150, 330, 410, 560, 700, 760, 905, 1030, 1150, 1290, 1400, 1555, 1690)
    bursts = sum(
        size for size, time in zip(sizes, times, strict=True) if now <= time < now + STEP_S
    )
    return TOKENS_PER_S * (0.4 * STEP_S + bursts)


class SyncTrainer:
    """60 s of one replica's work at once, and again 120 s after the last of it was computed.

    Attributes:
        steps_s: How long each step's work took.
    """

    def __init__(self) -> None:
        self.steps_s: list[float] = []
        self._sent_at: float | None = None
        self._next = 0.0

    def __call__(self, now: float, waiting: float) -> float:
        if self._sent_at is not None:
            if waiting <= 0:
                self.steps_s.append(now - self._sent_at)
                self._sent_at, self._next = None, now + 120
            return 0.0
        if now < self._next:
            return 0.0
        self._sent_at = now
        return 60 * TOKENS_PER_S

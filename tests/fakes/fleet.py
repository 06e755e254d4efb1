"""A deployment that autoscaling grows and shrinks, in simulated time: one queue of tokens, replicas
that need 45 s to start, figures that are 1.5 s old, and Ray's own bounds and delays."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable
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


def run(
    policy: Any,
    arrivals: Arrivals,
    seconds: float,
    *,
    monkeypatch: pytest.MonkeyPatch,
    min_replicas: int = 1,
    max_replicas: int = 8,
    upscale_delay_s: float = 5,
    downscale_delay_s: float = 600,
    tokens_per_s: float | None = TOKENS_PER_S,
) -> Run:
    """Runs a deployment for some time.

    Args:
        policy: Called as Ray calls it.
        arrivals: The load.
        seconds: How long.
        monkeypatch: Sets the clock that Ray's delays read.
        min_replicas: As in the settings, and so on.
        max_replicas: See above.
        upscale_delay_s: See above.
        downscale_delay_s: See above.
        tokens_per_s: The rate that replicas report.
    """
    config = SimpleNamespace(
        upscale_delay_s=upscale_delay_s,
        downscale_delay_s=downscale_delay_s,
        downscale_to_zero_delay_s=None,
        get_upscaling_factor=lambda: 1.0,
        get_downscaling_factor=lambda: 1.0,
    )
    assert set(vars(config)) <= set(dir(AutoscalingConfig)) | set(AutoscalingConfig.model_fields)
    decide = autoscaling_policy._apply_autoscaling_config(policy)
    outcome, state, figures = Run(), {}, deque[dict[str, Any]]()
    starting: list[float] = []  # when each further replica is there
    target = num_running = min_replicas
    num_waiting, num_arrived, num_computed = 0.0, 0.0, 0.0
    for step in range(int(seconds / STEP_S)):
        now = step * STEP_S
        coming = arrivals(now, num_waiting)
        num_arrived += coming
        num_waiting += coming
        done = min(num_waiting, num_running * TOKENS_PER_S * STEP_S)
        num_waiting -= done
        num_computed += done
        while starting and starting[0] <= now:
            starting.pop(0)
            num_running += 1
        figures.append(
            {
                "pending_tokens": {"r0": num_waiting},
                "arrived_tokens": {"r0": num_arrived},
                **({} if tokens_per_s is None else {"tokens_per_second": {"r0": tokens_per_s}}),
            }
        )
        old = figures.popleft() if len(figures) * STEP_S > FIGURES_AGE_S else {}
        context = SimpleNamespace(
            aggregated_metrics=old,
            policy_state=state,
            current_time=now,
            current_num_replicas=num_running,
            target_num_replicas=target,
            capacity_adjusted_min_replicas=min_replicas,
            capacity_adjusted_max_replicas=max_replicas,
            total_num_requests=1,
            config=config,
        )
        monkeypatch.setattr(autoscaling_policy, "time", SimpleNamespace(time=lambda now=now: now))
        number, state = decide(context)
        target = max(min_replicas, min(number, max_replicas))
        while num_running + len(starting) < target:
            starting.append(now + COLD_START_S)
        while num_running + len(starting) > target:
            if starting:
                starting.pop()
            else:
                num_running -= 1
        outcome.targets.append(target)
        outcome.running.append(num_running)
        outcome.arrived.append(num_arrived)
        outcome.computed.append(num_computed)
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

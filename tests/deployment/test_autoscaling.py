"""The policy: its formula with figures made by hand, what it remembers, and thirty minutes of three
loads in simulated time with Ray's own delays."""

from __future__ import annotations

import random
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fakes import fleet
from tokenreward.deployment.autoscaling import TokenPolicy, desired_replicas
from tokenreward.engine.load import Load
from tokenreward.entry import Entry

RATE = 1000.0


def policy(**fields: Any) -> TokenPolicy:
    settings = {"target_queue_s": 30, "tokens_per_second": None, "max_queued_tokens": 10**9}
    return TokenPolicy(**{**settings, **fields})


class Asked:
    """A policy that is asked as Ray asks it: it gets back the state that it returned."""

    def __init__(self, policy: TokenPolicy, *, target: int = 1, most: int = 100) -> None:
        self._policy = policy
        self.state: dict[str, Any] = {}
        self.target = target
        self.most = most

    def __call__(self, now: float, **replicas: dict[str, float]) -> int:
        """The number at a time, for each replica's figures (its queue, arrivals and rate)."""
        names = {"q": "pending_tokens", "a": "arrived_tokens", "r": "tokens_per_second"}
        metrics: dict[str, dict[str, float]] = {}
        for replica, figures in replicas.items():
            for short, value in figures.items():
                metrics.setdefault(names[short], {})[replica] = value
        number, self.state = self._policy(
            SimpleNamespace(
                aggregated_metrics=metrics,
                policy_state=dict(self.state),
                current_time=now,
                target_num_replicas=self.target,
                capacity_adjusted_min_replicas=1,
                capacity_adjusted_max_replicas=self.most,
            )
        )
        return number


@pytest.mark.parametrize(
    ("pending", "arriving", "number"),
    [
        (0, 0, 0),
        (30_000, 0, 1),  # 30 s of work
        (30_001, 0, 2),
        (300_000, 0, 10),
        (0, 800, 1),  # a replica that is busy for 0.8 of the time
        (0, 801, 2),
        (90_000, 2400, 3),
        (90_001, 2400, 4),
        (90_000, 2401, 4),
    ],
)
def test_replicas_work_off_what_waits_and_keep_up_with_what_comes(
    pending: float, arriving: float, number: int
) -> None:
    assert desired_replicas(pending, arriving, tokens_per_s=RATE, target_tokens=30 * RATE) == number


def test_the_queues_of_all_replicas_are_added_and_their_rates_have_a_median() -> None:
    asked = Asked(policy())
    figures = {"a": {"q": 100_000, "r": 900}, "b": {"q": 30_000, "r": 1000}, "c": {"r": 5000}}
    assert asked(0, **figures) == 5  # 130 s at 1000 tokens a second


def test_the_number_keeps_within_the_bounds() -> None:
    asked = Asked(policy(), most=4)
    assert asked(0, a={"q": 10**8, "r": RATE}) == 4
    assert asked(1, a={"q": 0, "r": RATE}) == 1


def test_without_a_rate_the_number_stays_until_one_is_measured_or_guessed() -> None:
    assert Asked(policy(), target=3)(0, a={"q": 10**6, "a": 10**6}) == 3
    assert Asked(policy(tokens_per_second=RATE), target=3)(0, a={"q": 300_000}) == 10
    assert Asked(policy(tokens_per_second=RATE), target=1)(0, a={"q": 300_000, "r": 10_000}) == 1


def test_the_last_rate_that_was_measured_holds_while_none_is() -> None:
    asked = Asked(policy(tokens_per_second=1.0))
    assert asked(0, a={"q": 300_000, "r": RATE}) == 10
    assert asked(1, b={"q": 120_000}) == 4


@pytest.mark.parametrize("metrics", [{}, {"new": {}}])
def test_while_no_replica_reports_the_number_stays(metrics: dict[str, dict[str, float]]) -> None:
    asked = Asked(policy(), target=1)
    asked(0, a={"q": 300_000, "r": RATE})
    asked.target = 7
    assert asked(1, **metrics) == 7


def test_arrivals_count_for_300_s() -> None:
    asked = Asked(policy())
    asked(0, a={"q": 0, "a": 0, "r": RATE})
    assert asked(300, a={"q": 0, "a": 720_000, "r": RATE}) == 3  # 2400 a second
    assert asked(599, a={"q": 0, "a": 720_000, "r": RATE}) == 3
    assert asked(600, a={"q": 0, "a": 720_000, "r": RATE}) == 1


def test_a_policy_that_is_young_counts_arrivals_over_its_age_but_over_a_minute_at_least() -> None:
    asked = Asked(policy())
    asked(0, a={"q": 0, "a": 0, "r": RATE})
    assert asked(1, a={"q": 0, "a": 96_000, "r": RATE}) == 2  # over 60 s
    assert asked(100, a={"q": 0, "a": 240_000, "r": RATE}) == 3  # over 100 s


def test_the_shortest_window_of_arrivals_can_be_chosen_and_nothing_shrinks_within_it() -> None:
    asked = Asked(policy(min_window_s=10), target=4)
    asked(0, a={"q": 0, "a": 0, "r": RATE})
    assert asked(5, a={"q": 0, "a": 16_000, "r": RATE}) == 4  # 1600 a second need 2
    assert asked(10, a={"q": 0, "a": 16_000, "r": RATE}) == 2
    assert asked(20, a={"q": 0, "a": 16_000, "r": RATE}) == 1


def test_a_policy_that_is_made_again_under_load_takes_no_replica_away() -> None:
    """As after the controller's death: the counters are high, and what they were before is lost."""
    asked = Asked(policy(), target=5)
    numbers = [
        asked(float(now), a={"q": 1000, "a": 10**9 + 4000 * now, "r": RATE}) for now in range(400)
    ]
    assert set(numbers) == {5}  # 4000 a second, of 1000 * 0.8


@pytest.mark.parametrize("back_s", [30, 900, 7200])
def test_a_clock_that_is_set_back_makes_no_replicas_and_takes_none_away(back_s: float) -> None:
    asked = Asked(policy(), target=2)
    numbers = []
    for second in range(3600):
        now = 10_000.0 + second - (back_s if second >= 1000 else 0)
        asked.target = asked(now, a={"q": 0, "a": 1000.0 * second, "r": RATE})
        numbers.append(asked.target)
    assert set(numbers[100:]) == {2}  # 1000 a second, of 1000 * 0.8


def test_a_counter_that_begins_again_adds_what_it_counted_since() -> None:
    asked = Asked(policy())
    asked(0, a={"q": 0, "a": 10**9, "r": RATE})
    assert asked(300, a={"q": 0, "a": 240_000, "r": RATE}) == 1  # 800 a second
    assert asked(300, a={"q": 0, "a": 240_001, "r": RATE}) == 2


def test_the_count_of_a_replica_that_was_never_seen_is_no_arrival() -> None:
    asked = Asked(policy())
    assert asked(0, a={"q": 0, "a": 10**9, "r": RATE}) == 1
    assert asked(1, a={"q": 0, "a": 10**9, "r": RATE}, b={"q": 0, "a": 10**9}) == 1


def test_a_replica_that_was_silent_for_a_while_counts_what_arrived_meanwhile() -> None:
    asked = Asked(policy())
    asked(0, a={"q": 0, "a": 0, "r": RATE}, b={"q": 0, "a": 5000})
    asked(200, a={"q": 0, "a": 0, "r": RATE})
    assert asked(299, a={"q": 0, "a": 0}, b={"q": 0, "a": 5000 + 720_000}) == 4
    assert asked(1000, b={"q": 0, "a": 5000 + 720_000}) == 1
    assert asked(1001, a={"q": 0, "a": 0}, b={"q": 0, "a": 5000 + 720_000}) == 1


def test_replicas_that_come_and_go_leave_nothing_behind() -> None:
    asked = Asked(policy())
    for number in range(2000):
        asked(float(number), **{f"r{number}": {"q": 0, "a": 1, "r": RATE}})
    (demand,) = asked.state.values()
    assert len(demand.counters) <= 301
    for number in range(20_000):
        asked(2000 + number / 20, a={"q": 0, "a": float(number), "r": RATE})
    (demand,) = asked.state.values()
    assert len(demand.arrivals) <= 301


def test_a_queue_that_is_nearly_full_is_too_long_however_fast_the_replica_is() -> None:
    asked = Asked(policy(max_queued_tokens=10_000))
    assert asked(0, a={"q": 8000, "r": 10**6}) == 1
    assert asked(0, a={"q": 8001, "r": 10**6}) == 2


def test_any_figures_give_a_number_within_the_bounds() -> None:
    rng = random.Random(5)
    asked = Asked(policy(), most=9)
    for now in np.cumsum([rng.random() * 20 for _ in range(3000)]):
        replicas = {
            f"r{index}": {
                name: rng.choice([0.0, rng.random(), rng.random() * 10**9])
                for name in rng.sample("qar", rng.randrange(4))
            }
            for index in range(rng.randrange(4))
        }
        assert 1 <= asked(float(now), **replicas) <= 9


def test_the_controller_loads_neither_torch_nor_the_engine_for_it() -> None:
    code = (
        "import sys, tokenreward.deployment.autoscaling;"
        "print([n for n in ('torch', 'ray', 'tokenreward.engine') if n in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_a_load_that_grows_hardly_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    run = fleet.run(policy(), fleet.drift, 1800, monkeypatch=monkeypatch)
    assert np.percentile(run.waits(), 95) <= 2.0
    assert run.reversals == 0
    assert max(run.targets) <= 4
    assert run.replica_s <= 6500  # 3,600 are what the load needs


def test_bursts_of_all_sizes_do_not_make_the_number_swing(monkeypatch: pytest.MonkeyPatch) -> None:
    run = fleet.run(policy(), fleet.spiky, 1800, monkeypatch=monkeypatch)
    assert run.reversals <= 4
    assert np.percentile(run.waits(), 95) <= 45
    assert run.replica_s < 8 * 1800 / 2


def test_a_trainers_next_steps_find_the_replicas_of_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainer = fleet.SyncTrainer()
    run = fleet.run(policy(), trainer, 1800, monkeypatch=monkeypatch)
    first, *others = trainer.steps_s
    assert len(others) >= 9
    assert first <= 60
    assert np.mean(others) <= 35
    assert run.reversals <= 4


def test_a_fixed_cadence_with_enough_replicas_waits_for_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainer = fleet.SyncTrainer()
    fleet.run(policy(), trainer, 1800, monkeypatch=monkeypatch, min_replicas=4)
    assert max(trainer.steps_s) == pytest.approx(15, abs=1)


@pytest.mark.parametrize("load", [fleet.drift, fleet.spiky], ids=["drift", "spiky"])
def test_bounds_hold_at_every_moment(monkeypatch: pytest.MonkeyPatch, load: Any) -> None:
    for least, most in ((1, 1), (1, 2), (2, 3), (3, 8)):
        run = fleet.run(
            policy(), load, 1800, monkeypatch=monkeypatch, min_replicas=least, max_replicas=most
        )
        assert set(run.targets) <= set(range(least, most + 1))


def test_small_batches_of_a_light_load_do_not_make_the_number_grow_without_end() -> None:
    """A batch takes 15 ms and 5 us a token: full ones reach 169,000 tokens a second, those of one
    item 23,000. One replica carries 50,000 a second in batches of 1,000 tokens."""
    rng, arriving, number = random.Random(0), 50_000.0, 1
    asked = Asked(policy())
    loads = [Load(max_batch_tokens=16_384, max_batch_requests=512) for _ in range(8)]
    counts = [0.0] * 8
    for now in range(600):
        running = loads[:number]
        for index, load in enumerate(running):
            counts[index] += arriving / number
            share, size = arriving / number, 400
            for _ in range(20):
                items = max(1, round(size / 400 + rng.gauss(0, 0.7)))
                load.note_batch([Entry(num_tokens=400)] * items, 0.015 + 5e-6 * 400 * items)
                size = share * (0.015 + 5e-6 * size)
        figures = {
            f"r{index}": {"q": 1000.0, "a": counts[index], "r": load.tokens_per_s or 0}
            for index, load in enumerate(running)
        }
        number = min(8, max(number, asked(float(now), **figures)))
    assert number == 1

"""Autoscaling on a real Ray, judged: a burst of 1,000 items, and a light load while replicas go.

    python -m scale [python haproxy]

Behind each proxy: how soon more replicas are decided on, how long the burst takes against the best
that is possible given when replicas ran, and whether anything is lost.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from scale import TOKENS_PER_S, burst
from scale.service import PROXIES, outcome_behind

MOST_DECISION_S = 4.0
LEAST_SHARE = 0.9


def main() -> int:
    failures = []
    for proxy in sys.argv[1:] or PROXIES:
        outcome = outcome_behind(proxy, [burst.__file__])
        print(f"{proxy}: {json.dumps(outcome, indent=None)}")
        failures += [f"{proxy}: {line}" for line in judge(outcome, proxy)]
        print(f"{proxy}: decision {decision_s(outcome):.1f} s, {share(outcome):.0%} of the ideal")
    print("\n".join(failures) or "all as promised")
    return bool(failures)


def judge(outcome: dict[str, Any], proxy: str) -> list[str]:
    """What is not as promised."""
    problems = []
    if decision_s(outcome) > MOST_DECISION_S:
        problems.append(f"more replicas were decided on after {decision_s(outcome):.1f} s")
    if share(outcome) < LEAST_SHARE:
        problems.append(
            f"the burst took {outcome['makespan_s']:.1f} s, {ideal_s(outcome):.1f} s were possible"
        )
    for phase in ("burst", "light"):
        callers = outcome[phase]
        if callers["num_lost"] or callers["num_wrong"] or set(callers["statuses"]) != {"200"}:
            problems.append(f"{phase}: {callers}")
    if outcome["changes"][-1][1:] != [1, 1]:
        problems.append(f"replicas did not go: {outcome['changes']}")
    if dict(outcome["counts_in_metrics"]) != {"desired": "1.0", "running": "1.0"}:
        problems.append(f"the metrics say {outcome['counts_in_metrics']}")
    # With node.env Ray writes its logs in blocks of a thousand lines.
    if proxy == "python" and outcome["traced"] != [
        ["Gateway_Gateway", 200, True],
        ["slow_Replica", 200, True],
    ]:
        problems.append(f"of the trace the logs say {outcome['traced']}")
    return problems


def decision_s(outcome: dict[str, Any]) -> float:
    """Seconds from the burst to the decision for more replicas."""
    return next((at for at, wanted, _ in outcome["changes"] if wanted > 1), float("inf"))


def ideal_s(outcome: dict[str, Any]) -> float:
    """The shortest time for the burst's work, given when each replica ran in that very run."""
    work_s = burst.NUM_ITEMS * burst.TOKENS_OF_AN_ITEM / TOKENS_PER_S
    done_s, at, num_running = 0.0, 0.0, 1
    for change, _, running in outcome["changes"]:
        if change > at:
            if done_s + (change - at) * num_running >= work_s:
                break
            done_s += (change - at) * num_running
            at = change
        num_running = max(1, running)
    return at + (work_s - done_s) / num_running


def share(outcome: dict[str, Any]) -> float:
    return ideal_s(outcome) / float(outcome["makespan_s"])


if __name__ == "__main__":
    sys.exit(main())

"""How many replicas a deployment needs: a function of the replicas' figures and of time.

Ray makes one policy per deployment in its controller and asks it ten times a second. Ray itself
keeps the bounds and the delays (`upscale_delay_s`, `downscale_delay_s`): it follows a policy that
has wanted more, or fewer, replicas for so long without a break. This module imports neither Ray nor
the engine, and is cheap.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

_HEADROOM = 0.8  # the share of the time that a replica is to be busy
# A trainer sends in bursts, one a step. Over a shorter window each burst would look like a load
# that stays, and over a longer one a load that grows would be followed late.
_WINDOW_S = 300.0
# As long as the policy is younger than the window, arrivals count over its age. A first burst alone
# tells no rate, so they count over this long at least.
_MIN_WINDOW_S = 60.0
_BUCKET_S = 1.0
_STATE = "tokenreward"  # the key in the state that Ray keeps for a policy


@dataclass(frozen=True, slots=True)
class Demand:
    """What a policy remembers from one call to the next.

    Attributes:
        began: When the policy was first asked.
        counters: For each replica: its latest count of arrived tokens, and when it was last read.
        arrivals: Tokens that arrived in the window: the time of each bucket, and its tokens.
        tokens_per_s: What one replica computes, as measured last; None until one has measured it.
    """

    began: float
    counters: Mapping[Any, tuple[float, float]] = field(default_factory=dict)
    arrivals: tuple[tuple[float, float], ...] = ()
    tokens_per_s: float | None = None

    def at(self, now: float) -> Demand:
        """What of this holds at a time: all of it, or the rate alone if the clock was set back.

        The arrivals would then lie in the future and pile up, all of them in one window.
        """
        latest = max((read_at for _, read_at in self.counters.values()), default=self.began)
        if now > latest - _BUCKET_S:
            return self
        return Demand(began=now, tokens_per_s=self.tokens_per_s)

    def after(self, arrived: Mapping[Any, float], rates: Mapping[Any, float], now: float) -> Demand:
        """What is remembered once these figures were read.

        A count that is lower than before belongs to a replica that began again, at 0. A replica
        that was never seen before adds nothing: nobody knows when its tokens arrived, and after a
        restart of the controller that holds for all of them.

        Args:
            arrived: The replicas' counts of arrived tokens.
            rates: The tokens a second that replicas measured.
            now: The time in seconds.
        """
        num_tokens = 0.0
        for replica, count in arrived.items():
            before, _ = self.counters.get(replica, (count, now))
            num_tokens += count - before if count >= before else count
        read = {replica: (count, now) for replica, count in arrived.items()}
        counters = {
            replica: reading
            for replica, reading in {**self.counters, **read}.items()
            if now - reading[1] <= _WINDOW_S
        }
        arrivals = tuple(bucket for bucket in self.arrivals if now - bucket[0] < _WINDOW_S)
        if num_tokens and arrivals and 0 <= now - arrivals[-1][0] < _BUCKET_S:
            began, earlier = arrivals[-1]
            arrivals = (*arrivals[:-1], (began, earlier + num_tokens))
        elif num_tokens:
            arrivals = (*arrivals, (now, num_tokens))
        measured = [rate for rate in rates.values() if rate > 0]
        tokens_per_s = statistics.median(measured) if measured else self.tokens_per_s
        return replace(self, counters=counters, arrivals=arrivals, tokens_per_s=tokens_per_s)

    def arrivals_per_s(self, now: float, *, min_window_s: float = _MIN_WINDOW_S) -> float:
        """Tokens a second that arrived in the window, which has at least so many seconds."""
        window_s = min(max(now - self.began, min_window_s), _WINDOW_S)
        return sum(num_tokens for _, num_tokens in self.arrivals) / window_s


def desired_replicas(
    pending_tokens: float, arrivals_per_s: float, *, tokens_per_s: float, target_tokens: float
) -> int:
    """The replicas that the load needs, without bounds and delays.

        ceil(max(pending / target, arrivals / (0.8 * rate)))

    The first part works off what waits. The second one keeps up with what comes, before anything
    waits: where the load grows by and by, it takes the wait from 43 s to 1 s (95th percentile,
    simulated with 45 s until a replica has started), with fewer replicas on the whole.

    Args:
        pending_tokens: Tokens that wait for all replicas, or are computed now.
        arrivals_per_s: Tokens a second that arrived in the last 300 s.
        tokens_per_s: What one replica computes.
        target_tokens: The tokens that may wait for one replica.
    """
    arrival_share = arrivals_per_s / (_HEADROOM * tokens_per_s)
    return math.ceil(max(pending_tokens / target_tokens, arrival_share))


class TokenPolicy:
    """The policy of one deployment. What it remembers is in the state that Ray hands back to it.

    Args:
        target_queue_s: Seconds of work that may wait for each replica.
        tokens_per_second: What one replica computes, until one has measured it; None if unknown.
        max_queued_tokens: The tokens that may wait at a replica. What it refuses is in no figure,
            so a queue that is nearly full counts as too long, however fast the replica is.
        min_window_s: Arrivals count over so many seconds at least. A policy that is younger wants
            no fewer replicas than there are.
    """

    def __init__(
        self,
        *,
        target_queue_s: float,
        tokens_per_second: float | None,
        max_queued_tokens: int,
        min_window_s: float = _MIN_WINDOW_S,
    ) -> None:
        self._target_queue_s = target_queue_s
        self._first_guess = tokens_per_second
        self._max_target_tokens = _HEADROOM * max_queued_tokens
        self._min_window_s = min_window_s

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """The number of replicas that is needed now.

        Args:
            context: Ray's AutoscalingContext.

        Returns:
            The number, within the bounds, and the state for the next call. While no replica reports
            (all of them start, or change their weights) and while no rate is known, the number
            stays as it is.
        """
        figures, now = context.aggregated_metrics or {}, context.current_time
        pending = figures.get("pending_tokens", {})
        before: Demand = context.policy_state.get(_STATE) or Demand(began=now)
        demand = before.at(now).after(
            figures.get("arrived_tokens", {}), figures.get("tokens_per_second", {}), now
        )
        state = {_STATE: demand}
        tokens_per_s = demand.tokens_per_s or self._first_guess
        if not pending or tokens_per_s is None:
            return context.target_num_replicas, state
        number = desired_replicas(
            sum(pending.values()),
            demand.arrivals_per_s(now, min_window_s=self._min_window_s),
            tokens_per_s=tokens_per_s,
            target_tokens=min(tokens_per_s * self._target_queue_s, self._max_target_tokens),
        )
        least, most = context.capacity_adjusted_min_replicas, context.capacity_adjusted_max_replicas
        if now - demand.began < self._min_window_s:
            # After a restart of the controller, or another deployment of the settings, arrivals are
            # not known yet. Nothing may be concluded from few of them.
            least = max(least, context.target_num_replicas)
        return max(least, min(number, most)), state

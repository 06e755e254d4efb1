"""What can happen to the cluster: each fault is a method, which does it and says what went wrong.

It knows processes and cables, and no callers.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

from nodes.cluster import GATEWAY, Cluster
from nodes.push import PUSH_S, half_states, newest, push

_GCS_DOWN_S = 5.0
_SHORT_S = 2.0
NUM_RACES = 3
NAMES = ["none", "replica", "gateway", "controller", "haproxy", "gcs"]
NAMES += ["push_controller", "push_gcs", "push_race", "node", "cable"]
LASTING = {"node", "cable"}  # the cluster is not whole again by itself


class Faults:
    """What can happen to a cluster.

    Callers ask at the first two nodes. What dies is elsewhere, or behind the address they ask.
    Each method returns what went wrong beside that.

    Args:
        cluster: It is whole.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._urls = cluster.urls[:2]

    def prepare(self, name: str) -> None:
        """Makes the cluster what the fault of that name wants, before callers ask."""
        if name in LASTING:
            self._cluster.bring(GATEWAY, self._cluster.others[-1])

    def none(self) -> list[str]:
        """Nothing happens."""
        return []

    def node(self) -> list[str]:
        """A machine that no caller asks, and that has a gateway, loses its power."""
        self._cluster.others[-1].kill()
        return []

    def cable(self) -> list[str]:
        """The same machine drops off the network."""
        self._cluster.others[-1].pull_cable()
        return []

    def replica(self) -> list[str]:
        """One of the language model's."""
        self._cluster.replicas("sft")[0].kill()
        return []

    def haproxy(self) -> list[str]:
        """That of a node which callers ask."""
        for process in self._cluster.others[0].processes("haproxy"):
            if process.name() == "haproxy":
                process.kill()
        return []

    def controller(self) -> list[str]:
        """Ray Serve's own."""
        self._kill_controller()
        return []

    def gateway(self) -> list[str]:
        """One of two."""
        self._cluster.replicas(GATEWAY)[0].kill()
        return []

    def gcs(self) -> list[str]:
        """It comes back some seconds later as whatever watches it would start it: by the same
        command. It has what it knew from its folder."""
        self._kill_gcs().join()
        return []

    def push_controller(self) -> list[str]:
        """Weights are pushed as soon as the controller is dead."""
        version = newest(self._urls[0]) + 1
        self._kill_controller()
        return _said(push(self._urls[0], version)) + half_states(self._urls, [version])

    def push_gcs(self) -> list[str]:
        """Weights are pushed while GCS is away: by a trainer with little time, who must hear an
        error in time, and by one who has enough."""
        version = newest(self._urls[0]) + 1
        back = self._kill_gcs()
        began = time.monotonic()
        error = push(self._urls[0], version, timeout_s=_SHORT_S)
        took_s = time.monotonic() - began
        problems = []
        if not error or took_s > _SHORT_S + 1:
            problems.append(f"a push without GCS ended after {took_s:.1f} s with {error!r}")
        problems += _said(push(self._urls[1], version + 1))
        back.join()
        return problems + half_states(self._urls, [version + 1])

    def push_race(self) -> list[str]:
        """Two trainers push at the same time, at two nodes: the greater version wins."""
        problems = []
        for _ in range(NUM_RACES):
            version = newest(self._urls[0]) + 1
            versions = [version, version + 1]
            with ThreadPoolExecutor(2) as pool:
                errors = list(pool.map(push, self._urls, versions))
            if errors[1] or (errors[0] and "version_conflict" not in errors[0]):
                problems.append(f"two pushes at once: {errors}")
            problems += half_states(self._urls, versions[1:])
        return problems

    def _kill_gcs(self) -> threading.Timer:
        """Kills it now. Returns the timer by which it comes back."""
        head = self._cluster.head
        # One that was started again also is in the command line of what brought it there.
        (process,) = [each for each in head.processes("gcs_server") if each.name() == "gcs_server"]
        command, environment = process.cmdline(), process.environ()
        process.kill()
        timer = threading.Timer(_GCS_DOWN_S, head.spawn, (command, environment))
        timer.start()
        return timer

    def _kill_controller(self) -> None:
        (process,) = self._cluster.head.processes("ServeController")
        process.kill()


def _said(error: str) -> list[str]:
    return [f"a push within {PUSH_S:.0f} s: {error}"] if error else []

"""Machines on one network: each has its own processes, network, temporary files and shared memory.

This process must be in a network and process namespace of its own, as root there, and holds the
switch between the machines. It knows nothing of Ray.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import psutil

NETWORK = "10.77.0"
OWN_ADDRESS = f"{NETWORK}.1"
_BOOT_S = 20.0
_ISOLATED = ["unshare", "--net", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc"]
_ISOLATED += ["--uts"]
_BOOT = """
for folder in /tmp/ray /tmp/haproxy-serve /dev/shm; do
  mkdir -p $folder && mount -t tmpfs tmpfs $folder
done
hostname {name}
ip link set lo up
until ip link show eth0 > /dev/null 2>&1; do sleep 0.05; done
ip addr add {address}/24 dev eth0
ip link set eth0 up
ip route add default via {gateway}
touch {mark}
while true; do sleep 3600; done
"""


def open_switch() -> None:
    """Makes the switch. It has an address of its own, at which this process is on the network."""
    # Without a MAC of its own the bridge takes the lowest of its ports', which changes when that
    # machine dies: then all others hang until they have asked anew who has the address.
    _ip("link", "add", "switch", "address", "02:00:00:00:00:01", "type", "bridge")
    _ip("addr", "add", f"{OWN_ADDRESS}/24", "dev", "switch")
    _ip("link", "set", "switch", "up")


class Machine:
    """One machine, which is booted when it is made.

    Args:
        number: From 1; the last part of its address is 10 more.
        folder: For its home.
        environment: Of the commands that run on it.
    """

    def __init__(self, number: int, folder: Path, environment: Mapping[str, str]) -> None:
        self.name = f"node{number}"
        self.address = f"{NETWORK}.{10 + number}"
        self.home = folder / self.name
        self.home.mkdir(exist_ok=True)
        self._port = f"port{number}"
        self._environment = {**environment, "HOME": str(self.home)}
        self.boot()

    @property
    def is_up(self) -> bool:
        """Whether it has power."""
        return self._init.is_running() and self._init.status() != psutil.STATUS_ZOMBIE

    def spawn(self, command: list[str], environment: Mapping[str, str]) -> None:
        """Starts a process on it that stays."""
        subprocess.Popen([*self._enter, *command], env=dict(environment))

    @property
    def _enter(self) -> list[str]:
        return ["nsenter", "-t", str(self._init.pid), "-n", "-p", "-m", "-u", "--"]

    def run(self, command: str, *, timeout_s: float = 180.0) -> str:
        """Runs a shell command on it. Returns what it printed; raises if it fails."""
        done = subprocess.run(
            [*self._enter, "bash", "-e", "-c", command],
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"{self.name}: {command}\n{done.stdout}{done.stderr}")
        return done.stdout

    def processes(self, name: str) -> list[psutil.Process]:
        """Its processes of that name or command line."""
        own = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if _network(process.pid) != self._network:
                    continue
                if name in process.name() or name in " ".join(process.cmdline()):
                    own.append(process)
        return own

    def kill(self) -> None:
        """Ends it at once, with all of its processes."""
        os.kill(self._init.pid, signal.SIGKILL)
        self._unshare.wait()
        subprocess.run(["ip", "link", "del", self._port], check=False, capture_output=True)

    def pull_cable(self) -> None:
        """From now on nothing reaches it, and nothing comes from it."""
        _ip("link", "set", self._port, "down")

    def plug_cable(self) -> None:
        """It is on the network again."""
        _ip("link", "set", self._port, "up")

    def boot(self) -> None:
        """Gives it power. Its home is as it was; it has no processes yet."""
        mark = self.home / "booted"
        mark.unlink(missing_ok=True)
        script = _BOOT.format(name=self.name, address=self.address, gateway=OWN_ADDRESS, mark=mark)
        self._unshare = subprocess.Popen([*_ISOLATED, "bash", "-c", script])
        until = time.monotonic() + _BOOT_S
        while not (children := psutil.Process(self._unshare.pid).children()):
            time.sleep(0.05)
        self._init = children[0]
        own = _network(os.getpid())
        while _network(self._init.pid) == own:
            time.sleep(0.05)
        self._network = _network(self._init.pid)
        _ip(
            "link",
            "add",
            self._port,
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            str(self._init.pid),
        )
        _ip("link", "set", self._port, "master", "switch")
        _ip("link", "set", self._port, "up")
        while not mark.exists():
            if time.monotonic() > until:
                raise RuntimeError(f"{self.name} does not boot")
            time.sleep(0.05)


def _network(pid: int) -> str:
    return os.readlink(f"/proc/{pid}/ns/net")


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)

"""A cluster of one node, started by the commands of docs/cluster.md in a namespace, asked a
few things, stopped.

    python cluster_run.py FOLDER

FOLDER holds `commands.sh` and all that it names, `keys`, and `questions.json`: name -> [method,
path, arguments for httpx]. What came back goes to `answers.json`. It judges nothing.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import psutil

from fakes import callers
from fakes.listeners import is_loopback, wants_the_token

URL = "http://127.0.0.1:8000"


def main(folder: Path) -> None:
    subprocess.run(
        ["bash", "-e", "commands.sh"],
        cwd=folder,
        stdout=(folder / "output.txt").open("w"),
        stderr=subprocess.STDOUT,
        check=True,
    )
    questions = json.loads((folder / "questions.json").read_text())
    answers: dict[str, Any] = {name: ask(*question) for name, question in questions.items()}
    answers["callers"] = dataclasses.asdict(asyncio.run(come_and_go(folder)))
    answers["listeners"] = open_listeners()
    subprocess.run(["ray", "stop", "--grace-period", "10"], capture_output=True, check=True)
    answers["left"] = left()
    (folder / "answers.json").write_text(json.dumps(answers))


def ask(method: str, path: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Status, type and text of the answer."""
    url = path if path.startswith("http") else URL + path
    answer = httpx.request(method, url, timeout=60, trust_env=False, **arguments)
    return {
        "status": answer.status_code,
        "headers": answer.headers.multi_items(),
        "text": answer.text,
    }


async def come_and_go(folder: Path) -> callers.Outcome:
    key = {"authorization": f"Bearer {(folder / 'keys').read_text().strip()}"}
    async with httpx.AsyncClient(
        base_url=URL, headers=key, timeout=callers.PATIENCE_S, trust_env=False
    ) as client:
        return await callers.come_and_go(client, "rm")


def open_listeners() -> list[tuple[str, int, bool]]:
    """Of every process here: its name, the port that is not on loopback alone, whether that wants
    Ray's token."""
    found = {
        (name(process), connection.laddr.port)
        for process in psutil.process_iter()
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN and not is_loopback(connection.laddr.ip)
    }
    return [(who, port, wants_the_token(port)) for who, port in sorted(found)]


def left() -> list[str]:
    """Processes that are still here some seconds after all were told to end."""
    others = [process for process in psutil.process_iter() if process.pid not in (1, os.getpid())]
    _, alive = psutil.wait_procs(others, timeout=5)
    return [" ".join(process.cmdline()) for process in alive]


def name(process: psutil.Process) -> str:
    return process.name()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

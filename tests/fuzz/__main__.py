"""`python -m fuzz --requests 100000 --seed 1`: fuzzes, prints what came of it, and fails if a
request had a 500 or no answer. `--only N` sends one request again and prints it."""

from __future__ import annotations

import argparse
import asyncio
import logging
import tempfile
from pathlib import Path

from fuzz.run import fuzz, request_of
from fuzz.service import serving, valid_bodies

_MIB = 2**20


def main() -> int:
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, help="the number of one request")
    arguments = parser.parse_args()
    first, num_requests = 0, arguments.requests
    if arguments.only is not None:
        first, num_requests = arguments.only, 1
        print(*request_of(first, arguments.seed, valid_bodies()))
    logging.getLogger("tokenreward").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as url:
        report = asyncio.run(fuzz(url, num_requests, arguments.seed, first=first))
    print(f"seed {arguments.seed}: {dict(sorted(report.statuses.items()))}")
    if report.health_s:
        print(f"/healthz: {len(report.health_s)} times, at most {max(report.health_s):.2f} s")
    for seconds, cpu_s, numbers in sorted(report.slow, reverse=True)[:10]:
        print(f"  {seconds:.2f} s, {cpu_s:.2f} s of them computed, beside", *numbers)
    print("MiB after each tenth:", *(num_bytes // _MIB for num_bytes in report.memory))
    for number, request, answer in report.failures[:50]:
        print(f"--only {number}\n  {request}\n  {answer!r}")
    print(f"{len(report.failures)} requests had a 500 or no answer")
    return int(bool(report.failures))


if __name__ == "__main__":
    raise SystemExit(main())

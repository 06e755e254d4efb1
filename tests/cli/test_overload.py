"""`score` and `eval` with 64 requests in flight at a real engine whose queue holds three items."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fakes.eval_data import write
from fakes.eval_service import replica
from tokenreward.cli import main, score
from tokenreward.eval import ask
from tokenreward_client import AsyncClient

NUM = 200
SCORERS = [{"type": "endogenous", "name": "logprob", "options": {"form": "logprob"}}]
ITEM_TOKENS = 20


@pytest.fixture(scope="module")
def url(language_model: Path) -> Iterator[str]:
    with replica(
        str(language_model),
        "causal_lm",
        SCORERS,
        max_queued_tokens=3 * ITEM_TOKENS,
        max_batch_requests=1,
    ) as url:
        yield url


@pytest.fixture
def items() -> list[dict[str, Any]]:
    return [{"prompt": [7] * 8 + [n % 300], "response": [n % 300, 5] * 5 + [6]} for n in range(NUM)]


@pytest.fixture
def one_item_per_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AsyncClient, "max_request_items", 1)
    monkeypatch.setattr(score, "GROUP_SIZE", 1)
    monkeypatch.setattr(ask, "MAX_BATCH_ITEMS", 1)


@pytest.mark.parametrize("in_flight", [64, NUM])
def test_the_clients_batch_gets_through_and_changes_no_number(
    url: str, items: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, in_flight: int
) -> None:
    async def score_all(max_concurrency: int) -> list[Any]:
        async with AsyncClient(
            url, max_retries=0, max_concurrency=max_concurrency, timeout_s=120
        ) as client:
            return await client.score(items, "logprob")

    monkeypatch.setattr(AsyncClient, "max_request_items", 1)
    alone, many = asyncio.run(score_all(1)), asyncio.run(score_all(in_flight))
    for one, other in zip(alone, many, strict=True):
        assert one.rewards.tolist() == pytest.approx(other.rewards.tolist(), abs=1e-4)


@pytest.mark.usefixtures("one_item_per_request")
def test_score_gets_every_line_through(
    url: str, items: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "items.jsonl"
    file.write_text("".join(json.dumps(item) + "\n" for item in items))
    assert (
        main(["score", str(file), "--url", url, "--scorer", "logprob", "--concurrency", "64"]) == 0
    )
    results = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [len(entry["rewards"]) for entry in results] == [11] * NUM


@pytest.mark.parametrize("request_items", [1, 64])
def test_eval_gets_every_pair_through_in_small_requests_and_in_ones_larger_than_the_queue(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request_items: int
) -> None:
    monkeypatch.setattr(ask, "FIRST_BATCH_ITEMS", request_items)
    monkeypatch.setattr(ask, "MAX_BATCH_ITEMS", request_items)
    file = write(
        tmp_path / "pairs.jsonl",
        [{"prompt": "q", "chosen": f"c{n}", "rejected": f"r{n}"} for n in range(100)],
    )
    out = tmp_path / "out.json"
    flags = ["--scorer", "logprob", "--concurrency", "64", "--no-cache", "--json", str(out)]
    assert main(["eval", str(file), "--url", url, *flags]) == 0
    (row,) = json.loads(out.read_text())["scorers"]
    assert row["figures"]["accuracy"]["num"] == 100

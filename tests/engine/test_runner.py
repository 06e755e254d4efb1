"""A device without memory for all rows of an item reads them one at a time, its figures are made on
its thread, and it is lost only where it does not compute any more."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tokenreward.contract import Needs, Row, RowRequest
from tokenreward.engine.runner import Runner, device_computes
from tokenreward.errors import InternalError, ScorerFailed
from tokenreward.wire import RewardsRequest, parse

TREG = {"type": "treg", "options": {"better": "Good.", "worse": "Bad and worse."}}


class Small:
    """The real layout on a device that has memory for so many rows at a time."""

    def __init__(self, engine: Any, num_rows: int) -> None:
        self._layout, self._num_rows = engine.runner.layout, num_rows
        self.passes: list[int] = []
        engine.runner.layout = self

    def run(self, work: Any) -> Any:
        self.passes.append(len(work))
        if len(work) > self._num_rows:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self._layout.run(work)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layout, name)


async def ask(engine: Any, *prompts: str, scorer: str = "treg") -> list[dict[str, Any]]:
    items = [{"prompt": prompt, "response": [10, 11, 12]} for prompt in prompts]
    return list(
        (await engine.score(parse(RewardsRequest, {"scorer": scorer, "items": items}))).items
    )


async def test_an_item_whose_rows_do_not_fit_in_one_pass_is_read_row_by_row(
    make_engine: Callable[..., Any],
) -> None:
    engine = make_engine("causal_lm", [TREG])
    expected = await ask(engine, "2+2?", "3+3?")
    layout = Small(engine, num_rows=1)
    items = await ask(engine, "2+2?", "3+3?")
    assert layout.passes == [4, 2, 1, 1, 2, 1, 1]
    for item, other in zip(items, expected, strict=True):
        assert item.error is None
        np.testing.assert_allclose(item.rewards, other.rewards, rtol=0, atol=1e-5)


async def test_an_item_of_which_one_row_does_not_fit_alone_is_out_of_memory(
    make_engine: Callable[..., Any],
) -> None:
    engine = make_engine("causal_lm", [TREG])
    layout = Small(engine, num_rows=0)
    (item,) = await ask(engine, "2+2?")
    assert item.error.code == "out_of_memory"
    assert layout.passes == [2, 1]


async def test_what_a_pass_computed_is_counted_on_the_devices_thread(
    make_engine: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    reported: dict[str, float] = {}
    report = lambda name, value=1.0, **labels: reported.update({name: value})  # noqa: E731
    engine = make_engine("causal_lm", ["endogenous"], report=report)
    threads, count = [], engine.runner.layout.num_computed

    def counted(rows: Any) -> int:
        threads.append(threading.current_thread())
        return int(count(rows))

    monkeypatch.setattr(engine.runner.layout, "num_computed", counted)
    await ask(engine, "2+2?", scorer="endogenous")
    assert threads
    assert threading.current_thread() not in threads
    assert reported["computed_tokens_total"] == reported["batch_tokens"] > 3


REQUEST = RowRequest(Row(np.array([3, 4]), 1, 2), Needs(pooled=True))


def failing(message: str) -> Runner:
    """A runner whose device fails so on every pass."""

    def run(requests: Any) -> Any:
        raise RuntimeError(message)

    layout: Any = SimpleNamespace(
        name="failing", shares=False, runs_ahead=False, gap=None, measure=None, reason=None, run=run
    )
    layout.launch = layout.num_computed = run
    return Runner(layout)


@pytest.mark.parametrize(
    "message",
    [
        "CUDA error: an illegal memory access was encountered",
        "CUDA error: device-side assert triggered",
        "CUDA error: unspecified launch failure",
        "CUDA error: uncorrectable ECC error encountered",
    ],
)
def test_an_error_that_lasts_loses_the_device_unasked(
    message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tokenreward.engine.runner.device_computes", lambda: 1 / 0)
    runner = failing(message)
    with pytest.raises(InternalError, match="the device is lost"):
        runner.run([[REQUEST]])
    with pytest.raises(InternalError, match="the device is lost"):
        runner.launch([[REQUEST]]).result()


@pytest.mark.parametrize("computes", [True, False])
@pytest.mark.parametrize(
    "message",
    [
        "CUDA error: invalid configuration argument",
        "CUDA error: too many resources requested for launch",
        "CUBLAS_STATUS_NOT_SUPPORTED when calling `cublasLtMatmul`",
        "cuDNN error: CUDNN_STATUS_BAD_PARAM",
    ],
)
def test_an_error_of_one_call_is_the_items_while_the_device_still_computes(
    message: str, computes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tokenreward.engine.runner.device_computes", lambda: computes)
    runner = failing(message)
    if not computes:
        with pytest.raises(InternalError, match="the device is lost"):
            runner.run([[REQUEST]])
        return
    results = runner.run([[REQUEST], [REQUEST]])
    assert [type(result) for result in results] == [ScorerFailed] * 2
    assert runner.lost is None


def test_an_error_that_is_not_the_devices_asks_no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokenreward.engine.runner.device_computes", lambda: 1 / 0)
    (result,) = failing("shape mismatch").run([[REQUEST]])
    assert isinstance(result, ScorerFailed)


def test_a_batch_that_fails_is_one_line_of_the_log_with_one_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    results = failing("shape mismatch").run([[REQUEST]] * 8)
    assert [type(result) for result in results] == [ScorerFailed] * 8
    (record,) = caplog.records
    text = record.getMessage()
    assert text.startswith("a batch of 8 items failed in 15 passes (RuntimeError); the first: ")
    assert text.count("RuntimeError at") == 1


def test_without_a_device_that_computes_it_does_not_compute() -> None:
    assert device_computes() is torch.cuda.is_available()

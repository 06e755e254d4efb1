"""torch's default dtype is the whole process's, and loaders change it: no number follows it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fakes import tiny
from tokenreward.checkpoints import checkpoint as module
from tokenreward.checkpoints.default_dtype import computing, loading
from tokenreward.contract import Needs
from tokenreward.engine import Engine
from tokenreward.engine import loading as engine_loading
from tokenreward.forward.layout import numbers
from tokenreward.forward.probe import choose_layout
from tokenreward.settings import DeploymentSettings


@pytest.fixture(autouse=True)
def default_dtype() -> Iterator[None]:
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_oss", "bloom"])
@pytest.mark.parametrize("task", ["causal_lm", "reward_model"])
def test_a_batch_gives_the_same_numbers_to_the_bit(family: str, task: Any) -> None:
    needs = Needs(values=True)
    if task == "causal_lm":
        needs = Needs(
            temperatures=frozenset({1.0}),
            entropies=frozenset({1.0}),
            labels=frozenset({3}),
            top_k=2,
        )
    layout = choose_layout(
        tiny.checkpoint(tiny.model(family, task), task), needs, say=lambda line: None
    )
    requests = tiny.work(needs)
    truth = layout.run(requests)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        setter = threading.Thread(target=torch.set_default_dtype, args=[dtype])
        setter.start()
        setter.join()
        assert torch.get_default_dtype() == dtype  # in this thread, too
        for ours, theirs in zip(layout.run(requests), truth, strict=True):
            for kind, values in numbers(theirs).items():
                np.testing.assert_array_equal(numbers(ours)[kind], values)


def test_a_change_waits_for_the_pass_that_runs_and_new_passes_wait_for_its_end() -> None:
    dtypes: list[torch.dtype] = []
    runs, may_end, is_changed, may_restore = (threading.Event() for _ in range(4))

    def run() -> None:
        with computing():
            runs.set()
            may_end.wait(5)
            dtypes.append(torch.get_default_dtype())

    def load() -> None:
        with loading():
            torch.set_default_dtype(torch.bfloat16)
            is_changed.set()
            may_restore.wait(5)
            raise ValueError("the checkpoint is damaged")

    def run_later() -> None:
        with computing():
            dtypes.append(torch.get_default_dtype())

    with ThreadPoolExecutor(3) as threads:
        first = threads.submit(run)
        runs.wait(5)
        load_ended = threads.submit(load)
        assert not is_changed.wait(0.05)
        may_end.set()
        assert is_changed.wait(5)
        second = threads.submit(run_later)
        time.sleep(0.05)
        assert not second.done()
        may_restore.set()
        for each in (first, second):
            each.result(5)
        with pytest.raises(ValueError, match="damaged"):
            load_ended.result(5)
    assert dtypes == [torch.float32] * 2
    assert torch.get_default_dtype() == torch.float32


def test_two_loads_at_a_time_come_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = DeploymentSettings(
        name="x",
        checkpoint=str(tiny.save(tmp_path)),
        task="causal_lm",
        scorers=[{"type": "logprob"}],
        dtype="bfloat16",
    )
    real, num_loading, most = module.load_model, 0, 0

    def load_model(*arguments: Any) -> Any:
        nonlocal num_loading, most
        num_loading += 1
        most = max(most, num_loading)
        time.sleep(0.05)
        try:
            return real(*arguments)
        finally:
            num_loading -= 1

    monkeypatch.setattr(module, "load_model", load_model)
    with ThreadPoolExecutor(3) as threads:
        loads = [threads.submit(module.load_checkpoint, settings) for _ in range(3)]
        models = [load.result().model for load in loads]
    assert most == 1
    assert {model.dtype for model in models} == {torch.bfloat16}
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize("task", ["causal_lm", "reward_model"])
def test_no_other_load_changes_the_dtype_while_a_model_is_probed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: Any
) -> None:
    settings = DeploymentSettings(
        name="x",
        checkpoint=str(tiny.save(tmp_path, task=task)),
        task=task,
        scorers=[{"type": "logprob" if task == "causal_lm" else "reward_model"}],
    )
    probes, is_changed, may_restore = (threading.Event() for _ in range(3))
    dtypes: list[torch.dtype] = []
    first = "choose_layouts" if task == "causal_lm" else "compare_with_own_call"
    real = getattr(engine_loading, first)

    def probe(*arguments: Any, **keywords: Any) -> Any:
        probes.set()
        is_changed.wait(0.2)
        dtypes.append(torch.get_default_dtype())
        return real(*arguments, **keywords)

    def load_for_a_push() -> None:
        probes.wait(20)
        with loading():
            torch.set_default_dtype(torch.bfloat16)
            is_changed.set()
            may_restore.wait(5)

    monkeypatch.setattr(engine_loading, first, probe)
    with ThreadPoolExecutor(2) as threads:
        push = threads.submit(load_for_a_push)
        engine = threads.submit(Engine.load, settings)
        gap = engine.result(60).runner.layout.gap
        may_restore.set()
        push.result(5)
    assert is_changed.is_set()
    assert dtypes == [torch.float32]
    assert gap is not None
    assert gap.is_within

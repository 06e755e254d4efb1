"""What was asked for is what runs; a figure that is SHORT, or raises, is the exit code, and the
others still run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from bench.figure import Figure, Point, Result, Skipped
from gpu import __main__ as gpu
from gpu import shapes, throughput
from gpu.clock import Cpu
from gpu.sizes import TINY
from gpu.stand import NotPacked, Stand
from gpu.throughput import over
from tokenreward.forward import probe

GOOD = Figure("pace", 2.0, 9.0, 4.5, 4.0, "s")
SHORT = Figure("memory", 9.0, 2.0, 4.5, 1.0, "MiB", ceiling=True)
Taker = Callable[[Stand], Iterator[Result]]


def fine(stand: Stand) -> Iterator[Result]:
    yield from [GOOD, Skipped("rival", "no room"), Point("profile", "kernel", 3, 2.0)]


def short(stand: Stand) -> Iterator[Result]:
    yield SHORT


def raises(stand: Stand) -> Iterator[Result]:
    yield GOOD
    raise RuntimeError("no such kernel")


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, whose part a CPU plays."""
    monkeypatch.setattr(gpu, "FIGURES", {"fine": fine, "short": short, "raises": raises})
    monkeypatch.setattr(
        gpu, "_stand", lambda options: Stand(Cpu(), TINY, rounds=1, rehearse=options.rehearse)
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


@pytest.mark.usefixtures("measured")
@pytest.mark.parametrize(
    ("names", "code"),
    [(["fine"], 0), (["short"], 1), (["fine", "short", "fine"], 1), (["raises"], 1), ([], 1)],
)
def test_the_exit_code_is_1_if_a_figure_is_short_or_raised(names: list[str], code: int) -> None:
    assert gpu.main(names) == code


@pytest.mark.usefixtures("measured")
def test_what_raises_is_told_and_the_next_figures_run(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "gpu.json"
    assert gpu.main(["raises", "fine", "--json", str(file)]) == 1
    told = capsys.readouterr()
    lines = told.out.splitlines()
    assert any(
        line.startswith("raises") and "SHORT  raised RuntimeError: no such kernel" in line
        for line in lines
    )
    assert (
        GOOD.line()
        in lines[lines.index(next(line for line in lines if line.startswith("raises"))) :]
    )
    assert "no such kernel" in told.err
    assert "  " + f"{2.0:>10.4g} ms in 3 calls of kernel" in lines
    kept = json.loads(file.read_text())
    assert [figure.get("ok") for figure in kept["suites"]["raises"]["figures"]] == [True, False]
    assert kept["suites"]["fine"]["points"] == [
        {"plot": "profile", "series": "kernel", "x": 3, "y": 2.0}
    ]
    assert kept["machine"]["rehearsal"] is False


@pytest.mark.usefixtures("measured")
def test_a_rehearsal_is_never_short_and_hides_no_fault(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--rehearse", "short"]) == 0
    assert "SHORT" not in capsys.readouterr().out
    with pytest.raises(RuntimeError, match="no such kernel"):
        gpu.main(["--rehearse", "raises"])


@pytest.mark.parametrize("arguments", [["no-such", "--rehearse"], ["--rounds", "0", "--rehearse"]])
def test_other_arguments_are_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        gpu.asked(arguments)
    assert refused.value.code == 2


def test_a_rival_that_does_not_fit_is_skipped_and_ours_is_taken(stand: Stand) -> None:
    calls: list[str] = []

    def full() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    taken = stand.turns({"ours": lambda: calls.append("ours"), "theirs": full})
    assert list(taken) == ["ours"]
    assert calls == ["ours"] * 2  # once unmeasured
    assert isinstance(over("ours / theirs", taken["ours"], taken.get("theirs"), 2), Skipped)


def test_a_served_model_is_kept_until_another_is_asked_for(stand: Stand) -> None:
    first = stand.served(shapes.QWEN3_06B, "causal_lm", throughput.LOGITS)
    assert stand.served(shapes.QWEN3_06B, "causal_lm", throughput.LOGITS) is first
    assert first.layout.name == "packed"
    assert stand.served(shapes.LLAMA_8B, "causal_lm", throughput.LOGITS).shape.hidden == 32
    stand.release()
    assert stand._served is None


def test_a_model_that_the_probe_does_not_pack_is_no_figure(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "_misfit", lambda *arguments: "is not for this device")
    with pytest.raises(NotPacked, match="Llama 8B: packed is not for this device"):
        stand.served(shapes.LLAMA_8B, "causal_lm", throughput.LOGITS)

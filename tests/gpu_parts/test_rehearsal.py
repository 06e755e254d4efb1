"""The whole script runs, without what a GPU machine may lack; what it prints is what it keeps; both
sides agree."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from bench.figure import NAME_WIDTH

ABSENT = (
    "ray", "fastapi", "starlette", "uvicorn", "httpx", "psutil", "peft", "prometheus_client",
    "orjson", "msgspec", "litserve", "accelerate", "datasets", "trl", "hypothesis",
    "tokenreward_client",
)  # fmt: skip
NO_NETWORK = (
    "import socket\n"
    "def refuse(*a, **k): raise AssertionError('asks the network')\n"
    "socket.socket.connect = socket.getaddrinfo = refuse\n"
)


@pytest.fixture(scope="module")
def rehearsal(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """One run of every figure, in a process of its own."""
    file = tmp_path_factory.mktemp("gpu") / "new" / "gpu.json"
    code = (
        f"import sys; sys.path[:0] = {sys.path!r}; "
        f"sys.modules.update(dict.fromkeys({ABSENT!r}))\n{NO_NETWORK}"
    )
    code += (
        "from gpu.__main__ import main; sys.exit(main(['--rehearse', '--rounds', '1', '--json', "
        f"{str(file)!r}]))"
    )
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    return done, json.loads(file.read_text())


def figures(kept: dict[str, Any]) -> list[dict[str, Any]]:
    return [figure for suite in kept["suites"].values() for figure in suite["figures"]]


def test_every_figure_is_taken_and_none_is_judged(rehearsal: Any) -> None:
    from gpu.__main__ import FIGURES

    done, kept = rehearsal
    assert list(kept["suites"]) == list(FIGURES)
    assert all(suite["figures"] for suite in kept["suites"].values())
    assert not any("skipped" in figure or figure["judged"] for figure in figures(kept))
    assert "SHORT" not in done.stdout
    assert len({figure["name"] for figure in figures(kept)}) == len(figures(kept))


def test_a_line_for_each_figure_stands_under_what_they_depend_on(rehearsal: Any) -> None:
    done, kept = rehearsal
    machine, lines = kept["machine"], done.stdout.splitlines()
    assert lines[0] == f"CPU, a rehearsal: tiny shapes, nothing is judged; torch {machine['torch']}"
    assert lines[1].startswith(f"bf16 matrix product {machine['matmul_tflops']:.4g} TFLOP/s, copy ")
    assert (
        lines[2]
        == machine["kernels"]
        == "attention by attend_on_cpu (shares prompts), logsumexp in_place"
    )
    assert machine["rehearsal"] is True
    names = [figure["name"] for figure in figures(kept)]
    for name in names:
        assert sum(line.startswith(f"{name:<{NAME_WIDTH}} ") for line in lines) == 1, name


def test_our_side_and_the_rivals_agree(rehearsal: Any) -> None:
    agreeing = [figure for figure in figures(rehearsal[1]) if " off HF" in figure["name"]]
    assert len(agreeing) == 6  # Q and V of two language models, attention, scores
    for figure in agreeing:
        assert figure["target"] == 0.15
        assert figure["ratio"] <= 0.05  # of two layers
        assert figure["rival"] > 0.01


def test_the_promise_on_numbers_is_kept_and_in_float32_by_far(rehearsal: Any) -> None:
    promised = [figure for figure in figures(rehearsal[1]) if figure["name"].startswith("exact ")]
    assert len(promised) == 5 * 6
    assert {figure["unit"] for figure in promised} == {"logits", "values", "attention"}
    for figure in promised:
        assert figure["ceiling"]
        assert figure["target"] == 1
        assert figure["ratio"] <= (0.2 if "fp32" in figure["name"] else 1)


def test_what_a_rehearsal_can_judge_holds(rehearsal: Any) -> None:
    found = {figure["name"]: figure for figure in figures(rehearsal[1])}
    assert found["mixed lengths Llama 8B, padding computed"]["ours"] == 0
    shared = found["shared prompt Llama 8B P=24 R=6 G=4, tok/s naive and computed"]
    assert shared["ratio"] == pytest.approx(4 * 30 / (24 + 4 * 6))
    kinds = [
        figure
        for name, figure in found.items()
        if name.startswith("profile ") and " busy " not in name
    ]
    parts = [figure["ratio"] for figure in kinds if "head" not in figure["name"]]
    assert sum(parts) == pytest.approx(1)
    assert all(part > 0 for part in parts[:2])
    points = rehearsal[1]["suites"]["profile"]["points"]
    assert [point["y"] for point in points] == sorted(
        (point["y"] for point in points), reverse=True
    )


def test_a_machine_without_a_gpu_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    from gpu import __main__ as gpu

    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as refused:
        gpu.main([])
    assert refused.value.code == 2
    assert "sees no CUDA device; --rehearse runs every figure on the CPU" in capsys.readouterr().err

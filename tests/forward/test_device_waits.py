"""A pass asks everything of the device, its answer's way to the host included, and waits for
nothing; whoever wants the answer waits for that and for nothing asked later. No GPU here: `far`
plays one.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.attention.varlen import AuxRequest, varlen_attn

from fakes import tiny
from fakes.far import META, watched
from tokenreward.checkpoints.checkpoint import Checkpoint
from tokenreward.checkpoints.placement import Placement
from tokenreward.contract import Needs, Row, RowRequest
from tokenreward.forward import attention_weights, packed, transfer
from tokenreward.forward.flash import Flash
from tokenreward.forward.kernels import VarlenKernel
from tokenreward.forward.language_head import half_product
from tokenreward.forward.packed import PackedLayout

READINGS: Any = frozenset({"last", "last_step", "mean_step"})
LOGITS = Needs(frozenset({1.0, 0.7}), frozenset({1.0}), attention=READINGS)
ENDS = Needs(pooled=True, attention=READINGS)


def layout(monkeypatch: pytest.MonkeyPatch, architecture: str, task: Any) -> PackedLayout:
    """As on a GPU, with torch's own varlen kernel."""
    kernel = VarlenKernel(Flash(varlen_attn, AuxRequest(lse=True)), windows=True)
    monkeypatch.setattr(packed, "choose_kernel", lambda *arguments: kernel)
    monkeypatch.setitem(attention_weights.BLOCK_WEIGHTS, "meta", 2**20)
    model = tiny.model(architecture, task).to(torch.bfloat16).to(META)
    made = PackedLayout(Checkpoint(model, None, task, Placement((META,))))
    if made.language_head is not None:
        made.language_head = replace(made.language_head, product=half_product)
    return made


def work(needs: Needs) -> list[RowRequest]:
    """Longer than the windows of 8; two rows share a prompt."""
    generator = np.random.default_rng(0)
    draw = lambda size: generator.integers(3, tiny.VOCAB_SIZE, size=size)  # noqa: E731
    shared = draw(20)
    parts = ((draw(5), 9), (shared, 4), (draw(1), 1), (shared, 30))
    labels = frozenset({5, 6}) if needs.reads_logits else frozenset()
    return [
        RowRequest(
            Row(np.concatenate([p, draw(r)]), len(p), len(p) + r),
            replace(needs, labels=labels if r > 5 else frozenset()),
        )
        for p, r in parts
    ]


@pytest.mark.parametrize(
    "architecture", ["llama", "qwen3", "mistral", "gemma2", "gemma3", "gpt_oss"]
)
def test_a_language_models_pass_waits_for_nothing(
    monkeypatch: pytest.MonkeyPatch, architecture: str
) -> None:
    run = layout(monkeypatch, architecture, "causal_lm")
    with watched() as line:
        run.launch(work(LOGITS))
    of_kernel = {"gemma2": 0, "gpt_oss": 0, "mistral": 1, "gemma3": 1}.get(architecture, 2)
    num_copies = 1 + of_kernel + 1  # tokens, what the kernel needs, what the head needs
    assert line.diary == ["to device"] * num_copies + ["to host", "event 1"]


def test_a_pass_that_ranks_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    run = layout(monkeypatch, "llama", "causal_lm")
    with watched() as line:
        run.launch(work(Needs(frozenset({1.0}), top_k=3)))
    assert line.diary == ["to device"] * 4 + ["to host", "event 1"]


def test_a_pass_for_labels_alone_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    run = layout(monkeypatch, "llama", "causal_lm")
    with watched() as line:
        run.launch(work(Needs(labels=frozenset({5, 6}))))
    assert line.diary == ["to device"] * 4 + ["to host", "event 1"]


@pytest.mark.parametrize("prune", [False, True], ids=["whole last layer", "ends alone"])
@pytest.mark.parametrize("architecture", ["llama", "qwen3", "mistral"])
def test_a_reward_models_pass_waits_for_nothing(
    monkeypatch: pytest.MonkeyPatch, architecture: str, prune: bool
) -> None:
    run = layout(monkeypatch, architecture, "reward_model")
    assert run.prune_last_layer(prune) == prune
    with watched():
        run.launch(work(ENDS))


def test_an_answer_waits_for_its_own_copy_and_not_for_the_next_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = layout(monkeypatch, "llama", "reward_model")
    with watched() as line:
        first, second = run.launch(work(ENDS)), run.launch(work(ENDS)[:1])
        asked = [line.diary.index(f"event {number}") for number in (1, 2)]
        assert line.diary[asked[0] - 1] == line.diary[asked[1] - 1] == "to host"
        line.diary.clear()
        values = [[outputs.pooled for outputs in each.result()] for each in (first, second)]
    assert line.diary == ["wait 1", "wait 2"]
    assert values == [[1.0] * 4, [2.0]]


def test_an_answer_raises_what_the_device_failed_with(monkeypatch: pytest.MonkeyPatch) -> None:
    run = layout(monkeypatch, "llama", "reward_model")
    with watched() as line:
        pending = run.launch(work(ENDS))
        line.fault = RuntimeError("CUDA error: an illegal memory access was encountered")
        with pytest.raises(RuntimeError, match="illegal memory access"):
            pending.result()


@pytest.mark.parametrize(("task", "needs"), [("causal_lm", LOGITS), ("reward_model", ENDS)])
def test_states_are_let_go_of_before_the_answer_is_fetched(
    monkeypatch: pytest.MonkeyPatch, task: Any, needs: Needs
) -> None:
    run, states = layout(monkeypatch, "llama", task), []
    trunk = packed.PackedLayout._run_trunk

    def seen(*given: Any) -> Any:
        hidden, places = trunk(*given)
        states.append(weakref.ref(hidden))
        return hidden, places

    monkeypatch.setattr(packed.PackedLayout, "_run_trunk", seen)
    with watched():
        pending = run.launch(work(needs))
        gc.collect()
        assert [state() for state in states] == [None]
        pending.result()


def test_what_a_pass_gives_comes_in_one_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    run = layout(monkeypatch, "llama", "causal_lm")
    with watched() as line:
        outputs = run.run(work(LOGITS))
    assert line.diary.count("to host") == 1
    for (row, needs), found in zip(work(LOGITS), outputs, strict=True):
        num = row.stop - row.start
        assert found.chosen is not None
        assert found.chosen.shape == (num,)
        assert {t: lse.shape for t, lse in found.lse.items()} == {1.0: (num + 1,), 0.7: (num + 1,)}
        assert found.entropy[1.0].shape == (num + 1,)
        assert {label: of.shape for label, of in found.logits.items()} == dict.fromkeys(
            needs.labels, (num + 1,)
        )
        assert found.attention["last"].shape == (len(row.ids),)
        assert found.attention["mean_step"].shape == (num,)
        assert needs | LOGITS == needs


def item(x: torch.Tensor) -> None:
    x.sum().item()


def mask(x: torch.Tensor) -> None:
    x[x > 0]


def blocking(x: torch.Tensor) -> None:
    torch.arange(3).to(x.device)


def listed(x: torch.Tensor) -> None:
    torch.tensor([1, 2, 3], device=x.device)


def unpinned(x: torch.Tensor) -> None:
    torch.arange(3).to(x.device, non_blocking=True)


def fetch(x: torch.Tensor) -> None:
    x.cpu()


def blocking_fetch(x: torch.Tensor) -> None:
    torch.empty(4, pin_memory=True).copy_(x)


def unpinned_fetch(x: torch.Tensor) -> None:
    torch.empty(4).copy_(x, non_blocking=True)


@pytest.mark.parametrize(
    "fault",
    [item, mask, blocking, listed, unpinned, fetch, blocking_fetch, unpinned_fetch],
    ids=lambda of: of.__name__,
)
def test_the_watch_can_fail(fault: Callable[[torch.Tensor], None]) -> None:
    x = torch.empty(4, device=META)
    with pytest.raises((AssertionError, RuntimeError)), watched():
        fault(x)


def test_arrays_come_through_a_copy_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = [np.arange(6).reshape(2, 3), np.empty(0, dtype=np.int64), np.array([7])]
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, device, non_blocking: tensor.clone())
    with watched():
        moved = transfer.to_device(arrays, META)
    for array, tensor in zip(arrays, moved, strict=True):
        assert (
            tensor.device.type == "cpu"
        )  # it stands for the other device here, so as to hold numbers
        assert tensor.shape == array.shape
        np.testing.assert_array_equal(tensor.numpy(), array)


def test_numbers_come_through_copies_under_way_together_as_they_were(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parts = [
        [torch.randn(2, 3), torch.empty(0, 4), torch.randn(5)[::2]],
        [torch.randn(7)],
        [torch.randn(0)],
    ]
    near = [transfer.to_host(tensors) for tensors in parts]
    with watched() as line:
        far = [transfer.copy_to_host(tensors) for tensors in parts]
        for place in (1, 0, 2):
            for expected, first, second in zip(
                parts[place], near[place].result(), far[place].result(), strict=True
            ):
                np.testing.assert_array_equal(first, expected.numpy())
                np.testing.assert_array_equal(second, expected.numpy())
                assert first.shape == second.shape == expected.shape
    assert line.diary == [f"{what}" for n in (1, 2, 3) for what in ("to host", f"event {n}")] + [
        "wait 2", "wait 1", "wait 3",
    ]  # fmt: skip


def test_on_a_cpu_nothing_is_copied() -> None:
    tensors = [torch.randn(2, 3), torch.randn(5)[::2]]
    for tensor, array in zip(tensors, transfer.to_host(tensors).result(), strict=True):
        assert array.__array_interface__["data"][0] == tensor.data_ptr()
    assert transfer.to_host([]).result() == []

"""A pass asks everything of the device and waits for nothing until its end.

No GPU here: `meta` stands for one. Its tensors hold nothing, so whatever must look at a value fails; and each copy
between it and the host is seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.attention.varlen import AuxRequest, varlen_attn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import tiny
from tokenreward.contract import Needs, Row
from tokenreward.models import attention_weights, packed, transfer
from tokenreward.models.checkpoint import Checkpoint
from tokenreward.models.head import half_product
from tokenreward.models.kernels import Kernel
from tokenreward.models.packed import PackedLayout
from tokenreward.models.varlen import Flash, VarlenKernel

META = torch.device("meta")
READINGS: Any = frozenset({"last", "last_step", "mean_step"})
LOGITS = Needs(frozenset({1.0, 0.7}), frozenset({1.0}), attention=READINGS)
ENDS = Needs(pooled=True, attention=READINGS)
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "_assert_async", "is_nonzero", "equal", "item"}


class Watch(TorchDispatchMode):
    """Raises for what makes the host wait; counts the copies to the device."""

    def __init__(self) -> None:
        super().__init__()
        self.copies = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        assert name not in WAITS, f"{name} waits for the device"
        if name in ("index", "index_put", "index_put_"):
            masks = [index for index in args[1] if index is not None and index.dtype in (torch.bool, torch.uint8)]
            assert not masks, "a mask as index waits for the device to count it"
        out = func(*args, **kwargs)
        devices = {tensor.device.type for tensor in tensors if tensor.dim()}
        devices |= {leaf.device.type for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)}
        if len(devices) > 1:
            given = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)) | kwargs
            assert "non_blocking" in given, f"{name} mixes devices"
            assert tensors[0].device.type == "cpu", f"{name} brings a tensor to the host"
            assert given["non_blocking"], f"{name} copies to the device and waits"
            self.copies += 1
        return out


class NoLists(TorchFunctionMode):
    """Raises for tensors made of Python's numbers, whose copy to the device no dispatch mode sees."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func not in (torch.tensor, torch.as_tensor), f"{func.__name__} copies to the device and waits"
        return func(*args, **(kwargs or {}))


@contextmanager
def watched() -> Iterator[Watch]:
    watch = Watch()
    with watch, NoLists():
        yield watch


def layout(monkeypatch: pytest.MonkeyPatch, architecture: str, task: Any) -> PackedLayout:
    """As on a GPU, with torch's own varlen kernel."""
    kernel = Kernel(VarlenKernel(Flash(varlen_attn, AuxRequest(lse=True))), shares=True, windows=True)
    monkeypatch.setattr(packed, "choose_kernel", lambda *arguments: kernel)
    monkeypatch.setitem(attention_weights._BLOCK_WEIGHTS, "meta", 2**20)
    model = tiny.model(architecture, task).to(torch.bfloat16).to(META)
    made = PackedLayout(Checkpoint(model, None, task, META))
    if made._head is not None:
        made._head = replace(made._head, product=half_product)
    return made


def work(needs: Needs) -> list[tuple[Row, Needs]]:
    """Longer than the windows of 8; two rows share a prompt."""
    generator = np.random.default_rng(0)
    draw = lambda size: generator.integers(3, tiny.VOCAB_SIZE, size=size)  # noqa: E731
    shared = draw(20)
    parts = ((draw(5), 9), (shared, 4), (draw(1), 1), (shared, 30))
    labels = frozenset({5, 6}) if needs.temperatures else frozenset()
    return [
        (Row(np.concatenate([p, draw(r)]), len(p), len(p) + r, labels=labels if r > 5 else frozenset()), needs)
        for p, r in parts
    ]


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "mistral", "gemma2", "gemma3", "gpt_oss"])
def test_a_language_models_pass_waits_for_nothing(monkeypatch: pytest.MonkeyPatch, architecture: str) -> None:
    run = layout(monkeypatch, architecture, "causal_lm")
    with watched() as watch:
        run.launch(work(LOGITS))
    of_kernel = {"gemma2": 0, "gpt_oss": 0, "mistral": 1, "gemma3": 1}.get(architecture, 2)
    assert watch.copies == 1 + of_kernel + 1  # tokens, what the kernel needs, what the head needs


@pytest.mark.parametrize("prune", [False, True], ids=["whole last layer", "ends alone"])
@pytest.mark.parametrize("architecture", ["llama", "qwen3", "mistral"])
def test_a_reward_models_pass_waits_for_nothing(
    monkeypatch: pytest.MonkeyPatch, architecture: str, prune: bool
) -> None:
    run = layout(monkeypatch, architecture, "reward_model")
    assert run.prune_last_layer(prune) == prune
    with watched():
        run.launch(work(ENDS))


def test_what_a_pass_gives_comes_in_one_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    run = layout(monkeypatch, "llama", "causal_lm")
    fetched: list[tuple[int, ...]] = []

    def cpu(tensor: torch.Tensor) -> torch.Tensor:
        fetched.append(tuple(tensor.shape))
        return torch.zeros(tensor.shape, dtype=tensor.dtype)

    monkeypatch.setattr(torch.Tensor, "cpu", cpu)
    outputs = run.run(work(LOGITS))
    assert len(fetched) == 1
    for (row, needs), found in zip(work(LOGITS), outputs, strict=True):
        num = row.stop - row.start
        assert found.chosen is not None
        assert found.chosen.shape == (num,)
        assert {t: lse.shape for t, lse in found.lse.items()} == {1.0: (num + 1,), 0.7: (num + 1,)}
        assert found.entropy[1.0].shape == (num + 1,)
        assert {label: of.shape for label, of in found.logits.items()} == dict.fromkeys(row.labels, (num + 1,))
        assert found.attention["last"].shape == (len(row.ids),)
        assert found.attention["mean_step"].shape == (num,)
        assert needs is LOGITS


def item(x: torch.Tensor) -> None:
    x.sum().item()


def mask(x: torch.Tensor) -> None:
    x[x > 0]


def blocking(x: torch.Tensor) -> None:
    torch.arange(3).to(x.device)


def listed(x: torch.Tensor) -> None:
    torch.tensor([1, 2, 3], device=x.device)


def fetch(x: torch.Tensor) -> None:
    x.cpu()


@pytest.mark.parametrize("fault", [item, mask, blocking, listed, fetch])
def test_the_watch_can_fail(fault: Callable[[torch.Tensor], None]) -> None:
    x = torch.empty(4, device=META)
    with pytest.raises((AssertionError, NotImplementedError, RuntimeError)), watched():
        fault(x)


def test_arrays_come_through_a_copy_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = [np.arange(6).reshape(2, 3), np.empty(0, dtype=np.int64), np.array([7])]
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, device, non_blocking: tensor.clone())
    for array, tensor in zip(arrays, transfer.to_device(arrays, META), strict=True):
        assert tensor.device.type == "cpu"  # it stands for the other device here, so as to hold numbers
        assert tensor.shape == array.shape
        np.testing.assert_array_equal(tensor.numpy(), array)


def test_numbers_come_through_a_copy_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = [torch.randn(2, 3), torch.empty(0, 4), torch.randn(5)[::2]]
    found = transfer.to_host(tensors)
    monkeypatch.setattr(transfer, "_is_on_host", lambda tensor: False)
    for expected, first, second in zip(tensors, found, transfer.to_host(tensors), strict=True):
        np.testing.assert_array_equal(first, expected.numpy())
        np.testing.assert_array_equal(second, expected.numpy())
        assert first.shape == second.shape == expected.shape

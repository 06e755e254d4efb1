"""A checkpoint after further training: the same files with other numbers."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

Tensors = dict[str, Tensor]
FILE = "model.safetensors"


def tensors_of(folder: Path) -> Tensors:
    """The tensors of a folder's one file, in memory of their own."""
    return {name: tensor.clone() for name, tensor in load_file(folder / FILE).items()}


def rewrite(folder: Path, change: Callable[[Tensors], Tensors]) -> Path:
    """Changes the tensors of each file of weights in a folder."""
    for file in [*folder.rglob("*.safetensors"), *folder.rglob("*.bin")]:
        if file.suffix == ".bin":
            tensors = change(torch.load(file))
            torch.save(tensors, file)
            continue
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata()
        # Without sharing its memory with the file that is written.
        tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
        save_file(change(tensors), file, metadata=metadata)
    return folder


def further(folder: Path, to: Path, *, seed: int = 3) -> Path:
    """A copy of a folder whose floating tensors are all others. Copies of a base's weights, which
    PEFT stores beside an adapter, are left out."""
    shutil.copytree(folder, to)
    generator = torch.Generator().manual_seed(seed)

    def change(tensors: Tensors) -> Tensors:
        return {
            name: (tensor * (1 + 0.3 * torch.rand(tensor.shape, generator=generator))).to(tensor)
            if tensor.is_floating_point()
            else tensor
            for name, tensor in tensors.items()
            if ".base_layer." not in name
        }

    return rewrite(to, change)


def amid_the_cast(monkeypatch: pytest.MonkeyPatch, change: Callable[[], object]) -> None:
    """Has a change happen once, when a load has cast some of a model's tensors to bfloat16."""
    real, casts = Tensor.to, []

    def to(tensor: Tensor, *arguments: Any, **options: Any) -> Tensor:
        result = real(tensor, *arguments, **options)
        if (tensor.dtype, result.dtype) == (torch.float32, torch.bfloat16):
            casts.append(tensor.shape)
            if len(casts) == 4:
                change()
        return result

    monkeypatch.setattr(Tensor, "to", to)


def overwrite(file: Path, content: bytes) -> None:
    """Writes into a file itself, which is not cut in between."""
    with file.open("r+b") as target:
        target.write(content)

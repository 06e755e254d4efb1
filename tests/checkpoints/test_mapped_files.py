"""A loaded model is not its files: what becomes of them afterwards changes no number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fakes import lora, tiny
from tokenreward.checkpoints import mapped_files
from tokenreward.checkpoints.mapped_files import MappedFiles, Place, own_memory, tensors_of
from tokenreward.engine import Engine
from tokenreward.settings import DeploymentSettings
from tokenreward.wire import RewardsRequest, parse

ITEMS = [{"prompt": [5, 6, 7], "response": [8, 9, 10, 11]}, {"prompt": [3], "response": [30, 40]}]


def mlp_head(folder: Path) -> Path:
    """A reward model as its trainer saves it: a trunk, and a head of two layers beside it."""
    tiny.save(folder, task="reward_model")
    file = folder / "model.safetensors"
    tensors = load_file(file)
    del tensors["score.weight"]
    generator = torch.Generator().manual_seed(0)
    for name, shape in (("score.0.weight", (16, 32)), ("score.2.weight", (1, 16))):
        tensors[name] = torch.randn(shape, generator=generator)
    save_file(tensors, file, metadata={"format": "pt"})
    return folder


def pickled(folder: Path) -> Path:
    tiny.save(folder)
    file = folder / "model.safetensors"
    torch.save(load_file(file), folder / "pytorch_model.bin")
    file.unlink()
    return folder


def whole_modules(folder: Path) -> Path:
    return lora.save(folder, modules_to_save=["lm_head"], target_modules=["q_proj", "v_proj"])


def overwrite_weights(folder: Path) -> None:
    """Writes zeros into the files themselves: into the pages that are mapped, not a new file."""
    for file in folder.rglob("*"):
        if file.suffix in (".safetensors", ".bin"):
            with file.open("r+b") as target:
                target.write(bytes(file.stat().st_size))


def settings(kind: str, folder: Path) -> dict[str, Any]:
    base = folder / "base"
    if kind == "reward model":
        return {"task": "reward_model", "checkpoint": tiny.save(base, task="reward_model")}
    if kind == "head of two layers":
        return {"task": "reward_model", "checkpoint": mlp_head(base)}
    if kind == "pickled":
        return {"checkpoint": pickled(base), "allow_pickle": True}
    more: dict[str, Any] = {"checkpoint": tiny.save(base)}
    if kind == "adapter":
        more["adapter"] = lora.save(folder / "adapter")
    if kind == "whole modules":
        more["adapter"] = whole_modules(folder / "adapter")
    if kind == "reference":
        more["reference_checkpoint"] = tiny.save(folder / "reference", seed=1)
    return more


@pytest.mark.parametrize(
    "kind",
    [
        "language model",
        "reward model",
        "head of two layers",
        "pickled",
        "adapter",
        "whole modules",
        "reference",
    ],
)
async def test_files_that_are_overwritten_in_place_change_no_reward(
    kind: str, tmp_path: Path
) -> None:
    named = {"task": "causal_lm", **settings(kind, tmp_path)}
    chosen = {key: str(value) if isinstance(value, Path) else value for key, value in named.items()}
    scorer = {"adapter": "implicit", "whole modules": "implicit", "reference": "implicit"}.get(kind)
    if chosen["task"] == "reward_model":
        scorer = "reward_model"
    scorer = scorer or "logprob"
    engine = Engine.load(
        DeploymentSettings(name="x", scorers=[{"type": scorer}], **chosen), say=lambda line: None
    )
    request = parse(RewardsRequest, {"scorer": scorer, "items": ITEMS})
    before = (await engine.score(request)).items
    overwrite_weights(tmp_path)
    after = (await engine.score(request)).items
    await engine.close()
    for ours, theirs in zip(after, before, strict=True):
        assert np.abs(theirs.rewards).max() > 0
        np.testing.assert_array_equal(ours.rewards, theirs.rewards)


def test_the_place_of_a_tensor_is_where_its_bytes_are_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "numbers"
    numbers = np.arange(5000, dtype=np.float32)
    numbers.tofile(file)
    mapped = torch.from_numpy(np.memmap(file, dtype=np.float32, mode="c"))
    files = MappedFiles()
    assert files.place_of(mapped[17:]) == Place(str(file), file.stat().st_ino, 68)
    assert files.place_of(mapped.clone()) is None
    mapped[3] = 1.0  # in this process alone
    assert MappedFiles().place_of(mapped) == Place(
        str(file), file.stat().st_ino, 0, is_intact=False
    )
    assert files.place_of(torch.empty(3, device="meta")) is None


def test_without_a_list_of_mappings_every_tensor_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny.model("gpt2")
    memory = [tensor.untyped_storage() for tensor in tensors_of(model)]  # not to be used again
    addresses = {storage.data_ptr() for storage in memory}
    own_memory(model)
    assert {tensor.data_ptr() for tensor in tensors_of(model)} == addresses
    monkeypatch.setattr(mapped_files, "_MAPPINGS", tmp_path / "nothing")
    own_memory(model)
    assert not addresses & {tensor.data_ptr() for tensor in tensors_of(model)}
    assert model.lm_head.weight is model.transformer.wte.weight

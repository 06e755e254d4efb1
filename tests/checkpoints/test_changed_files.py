"""Files that change while a start reads them: no model of two versions is served."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fakes import lora, tiny, trained
from tokenreward.checkpoints.checkpoint import CheckpointRefused, load_checkpoint
from tokenreward.settings import DeploymentSettings


def settings(folder: Path, **more: Any) -> DeploymentSettings:
    return DeploymentSettings(
        name="x",
        checkpoint=str(folder),
        task="causal_lm",
        scorers=[{"type": "logprob"}],
        **{"dtype": "bfloat16", **more},
    )


@pytest.mark.parametrize("kind", ["safetensors", "pickled", "adapter"])
def test_a_file_that_is_overwritten_while_it_is_read_is_refused_by_name(
    kind: str, tmp_path: Path
) -> None:
    folder = tmp_path / "base"
    file, more = tiny.save(folder) / trained.FILE, dict[str, Any]()
    if kind == "pickled":
        torch.save(trained.tensors_of(folder), folder / "pytorch_model.bin")
        file.unlink()
        file, more = folder / "pytorch_model.bin", {"allow_pickle": True}
    if kind == "adapter":
        file = lora.save(tmp_path / "adapter") / "adapter_model.safetensors"
        more = {"adapter": str(file.parent)}
    other = trained.further(file.parent, tmp_path / "later") / file.name
    content = other.read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        trained.amid_the_cast(patch, lambda: trained.overwrite(file, content))
        with pytest.raises(CheckpointRefused, match=f"{file.name} changed while it was read"):
            load_checkpoint(settings(folder, **more))
    load_checkpoint(settings(folder, **more))


def test_another_file_of_the_folder_may_be_written_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny.save(tmp_path / "base")
    others = [folder / name for name in ("training_args.bin", "optimizer.pt", "README.md")]
    for file in others:
        file.write_text("before")

    def change() -> None:
        for file in [*others, folder / "pytorch_model.bin"]:
            file.write_text("some time later")

    trained.amid_the_cast(monkeypatch, change)
    load_checkpoint(settings(folder))
    assert others[0].read_text() == "some time later"


def test_a_file_that_is_removed_while_it_is_read_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny.save(tmp_path / "base")
    trained.amid_the_cast(monkeypatch, (folder / trained.FILE).unlink)
    load_checkpoint(settings(folder))
    assert not (folder / trained.FILE).exists()

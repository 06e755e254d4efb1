"""Which files a checkpoint has: a folder or a hub that cannot be read is never a file that is not
there."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from fakes import lora, tiny
from fakes.hub import Hub, point_to, use
from tokenreward.checkpoints.checkpoint import Checkpoint, CheckpointRefused, load_checkpoint
from tokenreward.checkpoints.weight_files import find
from tokenreward.settings import DeploymentSettings

REPOSITORY = "somebody/model"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hub:
    """A hub with one repository of one file, `there.txt`."""
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "there.txt").write_text("x")
    hub = use(monkeypatch, tmp_path / "cache")
    hub.folders[REPOSITORY] = folder
    return hub


@pytest.fixture
def dead_port() -> str:
    """A place where nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def look_for(*names: str, source: str = REPOSITORY) -> str | None:
    path = find(source, *names, revision=None)
    return path and path.name


def test_the_first_file_that_a_folder_has_is_found(tmp_path: Path) -> None:
    (tmp_path / "b").write_text("x")
    (tmp_path / "c").write_text("x")
    assert find(str(tmp_path), "a", "b", "c", revision=None) == tmp_path / "b"
    assert find(str(tmp_path), "a", revision=None) is None


def test_a_file_of_a_folder_that_cannot_be_read_is_not_said_to_be_absent(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match=r"could not look for loop in the folder `/.*symbolic links"):
        find(str(tmp_path), "loop", revision=None)


def test_a_folder_that_is_not_there_has_no_files(tmp_path: Path) -> None:
    assert find(str(tmp_path / "nowhere"), "a", revision=None) is None


def test_the_first_file_that_the_hub_has_is_found(hub: Hub) -> None:
    assert look_for("absent.txt", "there.txt") == "there.txt"
    assert look_for("absent.txt") is None


def test_a_hub_that_fails_is_said_to_fail(hub: Hub) -> None:
    hub.broken = {"there.txt", "absent.txt"}
    for name in hub.broken:
        with pytest.raises(
            OSError, match=f"could not look for {name} in `{REPOSITORY}` on the hub .*'503 "
        ):
            look_for(name)


def test_a_hub_that_is_not_reached_is_said_not_to_be(
    hub: Hub, dead_port: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    point_to(dead_port, monkeypatch)
    for name in ("there.txt", "absent.txt"):
        with pytest.raises(OSError, match=f"could not look for {name} in .*Connection refused"):
            look_for(name)


def test_what_the_hub_said_while_it_was_there_is_known_when_it_is_not(
    hub: Hub, dead_port: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert look_for("absent.txt", "there.txt") == "there.txt"
    point_to(dead_port, monkeypatch)
    assert look_for("absent.txt", "there.txt") == "there.txt"
    assert look_for("absent.txt") is None
    with pytest.raises(OSError, match="Connection refused"):
        look_for("another.txt")


def test_in_offline_mode_a_cached_repository_has_the_files_that_are_cached(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert look_for("there.txt") == "there.txt"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert look_for("another.txt", "there.txt") == "there.txt"
    with pytest.raises(OSError, match="OfflineModeIsEnabled"):
        look_for("there.txt", source="somebody/else")


def test_a_repository_that_the_hub_does_not_have_or_does_not_show_is_not_an_absent_file(
    hub: Hub,
) -> None:
    with pytest.raises(OSError, match=r"(?s)in `somebody/else` on the hub .*Repository Not Found"):
        look_for("there.txt", source="somebody/else")


def load(**settings: Any) -> Checkpoint:
    return load_checkpoint(DeploymentSettings(name="x", scorers=[{"type": "constant"}], **settings))


def reward_model(folder: Path, *, head_beside: bool) -> Path:
    """A reward model as LLaMA-Factory stores it: a language model, and its head in another file."""
    tiny.save(folder)
    if head_beside:
        head = {"v_head.summary.weight": torch.ones(1, 32), "v_head.summary.bias": torch.ones(1)}
        save_file(head, folder / "value_head.safetensors")
    return folder


@pytest.mark.parametrize("task", ["causal_lm", "reward_model"])
def test_a_checkpoint_loads_from_the_hub(hub: Hub, tmp_path: Path, task: str) -> None:
    hub.folders[REPOSITORY] = reward_model(tmp_path / "model", head_beside=True)
    assert load(checkpoint=REPOSITORY, task=task).task == task


@pytest.mark.parametrize("task", ["causal_lm", "reward_model"])
@pytest.mark.parametrize("file", ["adapter_config.json", "config.json", "model.safetensors"])
def test_a_checkpoint_that_the_hub_does_not_answer_for_is_refused_for_that(
    hub: Hub, tmp_path: Path, task: str, file: str
) -> None:
    hub.folders[REPOSITORY] = reward_model(tmp_path / "model", head_beside=True)
    hub.broken = {file}
    with pytest.raises(CheckpointRefused, match=f"`{REPOSITORY}` cannot be loaded") as error:
        load(checkpoint=REPOSITORY, task=task)
    message = str(error.value)
    assert "503" in message or "couldn't connect" in message
    assert "no value head" not in message
    assert "it has no" not in message


def test_a_value_head_that_the_hub_does_not_answer_for_is_not_said_to_be_absent(
    hub: Hub, tmp_path: Path
) -> None:
    hub.folders[REPOSITORY] = reward_model(tmp_path / "model", head_beside=False)
    with pytest.raises(CheckpointRefused, match="holds no value head"):
        load(checkpoint=REPOSITORY, task="reward_model")
    hub.broken = {"value_head.bin"}  # the one file that it was not asked for yet
    with pytest.raises(CheckpointRefused, match=r"could not look for value_head\.bin.*503"):
        load(checkpoint=REPOSITORY, task="reward_model", allow_pickle=True)


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_adapter_that_the_hub_does_not_answer_for_is_not_said_to_be_absent(
    hub: Hub, tmp_path: Path, file: str
) -> None:
    base = tiny.save(tmp_path / "base")
    hub.folders["somebody/adapter"] = lora.save(tmp_path / "adapter")
    settings = {"checkpoint": str(base), "task": "causal_lm", "adapter": "somebody/adapter"}
    hub.broken = {file}
    with pytest.raises(CheckpointRefused, match=rf"could not look for {file} in `somebody.*503"):
        load(**settings)
    hub.broken = set()
    assert isinstance(load(**settings), Checkpoint)


def test_a_reward_model_without_weights_that_may_be_read_is_refused_by_their_names(
    tmp_path: Path,
) -> None:
    folder = tiny.save(tmp_path, task="reward_model")
    (folder / "model.safetensors").unlink()
    with pytest.raises(
        CheckpointRefused, match=r"no model\.safetensors and no model\.safetensors\.index\.json"
    ):
        load(checkpoint=str(folder), task="reward_model")

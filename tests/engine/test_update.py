"""Weights that change while an engine serves: to the bit those of a fresh start, or not at all."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fakes import lora, tiny, trained
from fakes.web import until
from tokenreward.engine import Engine
from tokenreward.forward import probe
from tokenreward.settings import DeploymentSettings
from tokenreward.wire import RewardsRequest, parse
from tokenreward.wire.weights import Weights

IDS = np.random.default_rng(0).integers(3, tiny.VOCAB_SIZE, size=(4, 40)).tolist()
ITEMS = [
    {"prompt": ids[:7], "response": ids[7 : 12 + 5 * number]} for number, ids in enumerate(IDS)
]
ITEMS.append({"prompt": IDS[3][:7], "response": IDS[0][:3]})


def sharded(folder: Path) -> Path:
    tiny.model("gpt2").save_pretrained(folder, max_shard_size="20KB")
    copy.deepcopy(tiny.tokenizer()).save_pretrained(folder)
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    return folder


def pickled(folder: Path) -> Path:
    tiny.save(folder)
    torch.save(trained.tensors_of(folder), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


def adapter(**options: Any) -> Callable[[Path], Path]:
    return lambda folder: lora.save(folder, **options)


def base(architecture: str = "llama", task: str = "causal_lm") -> Callable[[Path], Path]:
    return lambda folder: tiny.save(folder, architecture, task)


RM = "reward_model"
# What is served, what of it a push replaces, and the settings beside.
Kind = tuple[dict[str, Callable[[Path], Path]], tuple[str, ...], dict[str, Any]]
CHECKPOINT = ("checkpoint",)
KINDS: dict[str, Kind] = {
    "untied": ({"checkpoint": base("qwen3")}, CHECKPOINT, {}),
    "tied": ({"checkpoint": base("gemma2")}, CHECKPOINT, {}),
    "tied, shards": ({"checkpoint": sharded}, CHECKPOINT, {}),
    "pickled": ({"checkpoint": pickled}, CHECKPOINT, {"allow_pickle": True}),
    "bfloat16": ({"checkpoint": base()}, CHECKPOINT, {"dtype": "bfloat16"}),
    "padded": ({"checkpoint": base("bloom")}, CHECKPOINT, {}),
    "plain": ({"checkpoint": base("llama_dynamic")}, CHECKPOINT, {}),
    "experts": ({"checkpoint": base("gpt_oss")}, CHECKPOINT, {}),
    "reward model": ({"checkpoint": base(task=RM)}, CHECKPOINT, {"task": RM}),
    "classifier": ({"checkpoint": base("roberta", RM)}, CHECKPOINT, {"task": RM}),
    "adapter": (
        {"checkpoint": base(), "adapter": adapter(target_modules=["q_proj", "lm_head"])},
        ("adapter",),
        {},
    ),
    "base of an adapter": ({"checkpoint": base(), "adapter": adapter()}, CHECKPOINT, {}),
    "both": ({"checkpoint": base(), "adapter": adapter()}, ("checkpoint", "adapter"), {}),
    "DoRA and whole modules": (
        {
            "checkpoint": base(),
            "adapter": adapter(use_dora=True, modules_to_save=["embed_tokens", "lm_head"]),
        },
        ("adapter",),
        {"dtype": "bfloat16"},
    ),
    "adapter of a reward model": (
        {
            "checkpoint": base(task=RM),
            "adapter": adapter(task=RM, target_modules=["q_proj", "score"]),
        },
        ("checkpoint", "adapter"),
        {"task": RM},
    ),
    "adapter with a whole head": (
        {
            "checkpoint": base(task=RM),
            "adapter": adapter(task=RM, target_modules=["q_proj"], modules_to_save=["score"]),
        },
        ("adapter",),
        {"task": RM},
    ),
    "reference": (
        {"checkpoint": base(), "reference_checkpoint": base()},
        ("checkpoint", "reference_checkpoint"),
        {"scorers": ["implicit"]},
    ),
    "policy of a reference": (
        {"checkpoint": base(), "reference_checkpoint": base()},
        CHECKPOINT,
        {"scorers": ["implicit"]},
    ),
    "reference without the adapter": (
        {"checkpoint": base(), "adapter": adapter(target_modules=["q_proj", "lm_head"])},
        ("checkpoint", "adapter"),
        {"scorers": ["implicit"]},
    ),
}


def load(named: dict[str, Path], *, version: int = 1, **more: Any) -> Engine:
    task = more.pop("task", "causal_lm")
    scorers = more.pop("scorers", [RM if task == RM else "logprob"])
    settings = DeploymentSettings(
        name="x",
        task=task,
        scorers=[{"type": scorer} for scorer in scorers],
        version=version,
        **{name: str(folder) for name, folder in named.items()},
        **more,
    )
    return Engine.load(settings, say=lambda line: None)


async def replies(engine: Engine) -> Any:
    (scorer,) = engine.scorers
    return await engine.score(parse(RewardsRequest, {"scorer": scorer, "items": ITEMS}))


def weights(named: dict[str, Path], version: int = 2) -> Weights:
    return Weights(version=version, **{name: str(folder) for name, folder in named.items()})


def assert_equal(ours: Any, theirs: Any, *, equal: bool = True) -> None:
    pairs = list(zip(ours.items, theirs.items, strict=True))
    same = all(np.array_equal(one.rewards, other.rewards) for one, other in pairs)
    assert same is equal


@pytest.mark.parametrize(
    ("kind", "onednn_gain"),
    [*((kind, None) for kind in KINDS), ("untied", 2.0), ("reward model", 2.0), ("adapter", 2.0)],
)
async def test_an_updated_engine_is_to_the_bit_a_fresh_one(
    kind: str, onednn_gain: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two starts may choose by the clock, and then their numbers differ in the last bits.
    monkeypatch.setattr(probe, "onednn_gain", lambda model: onednn_gain)
    places, pushed, more = KINDS[kind]
    served = {name: make(tmp_path / f"served {name}") for name, make in places.items()}
    if "reference_checkpoint" in served:
        trained.further(served["reference_checkpoint"], tmp_path / "reference", seed=5)
        served["reference_checkpoint"] = tmp_path / "reference"
    new = served | {
        name: trained.further(served[name], tmp_path / f"new {name}", seed=7 + len(name))
        for name in pushed
    }
    engine, fresh = load(served, **more), load(new, version=2, **more)
    before, truth = await replies(engine), await replies(fresh)
    assert_equal(before, truth, equal=False)
    await engine.prepare(weights(new))
    assert_equal(await replies(engine), before)
    assert engine.version == 1
    await engine.commit(2)
    assert engine.describe()[0]["probe_difference"] is None
    assert engine.describe()[0]["probe_note"] == "version 2 has not been probed yet"
    after = await replies(engine)
    assert_equal(after, truth)
    assert (before.version, after.version, engine.version) == (1, 2, 2)
    assert after.model == fresh.settings.model
    await until(lambda: engine.describe()[0]["probe_note"] is None)
    assert engine.describe() == fresh.describe()  # the difference that the probe has found, too
    # And back: nothing was left behind.
    await engine.prepare(weights(served, 3))
    await engine.commit(3)
    assert_equal(await replies(engine), before)
    await engine.close()
    await fresh.close()


async def test_a_revision_comes_back_with_the_repository_that_it_was_declared_for(
    tmp_path: Path,
) -> None:
    served = tiny.save(tmp_path / "served")
    new = trained.further(served, tmp_path / "new", seed=7)
    engine = load({"checkpoint": served}, revision="a")
    for version, checkpoint, revision in [(2, new, None), (3, served, "a")]:
        await engine.prepare(Weights(checkpoint=str(checkpoint), version=version))
        await engine.commit(version)
        assert engine.settings.revision == revision
    await engine.close()

"""A pair: every row by its own model, in order; two checkpoints, or one with its adapter on and
off."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fakes import lora, oracle, tiny
from fakes.tiny import tokenizer_of
from tokenreward.checkpoints.checkpoint import Checkpoint, CheckpointRefused, load_checkpoint
from tokenreward.checkpoints.reference import with_reference
from tokenreward.contract import Model, Needs, Outputs, Row, RowRequest
from tokenreward.forward import patches
from tokenreward.forward.layout import Layout
from tokenreward.forward.pair import choose_layouts
from tokenreward.settings import DeploymentSettings

NEEDS = Needs(temperatures=frozenset({1.0}))
BOTH: dict[Model, Needs] = {"policy": NEEDS, "reference": NEEDS}


def of_settings(folder: Path, **more: Any) -> Checkpoint:
    scorers = [{"type": "implicit"}]
    settings = DeploymentSettings(
        name="x", checkpoint=str(folder), task="causal_lm", scorers=scorers, **more
    )
    loaded = load_checkpoint(settings)
    return with_reference(loaded, settings, tokenizer_of(loaded))


def two(policy: Any, reference: Any) -> Checkpoint:
    other = Checkpoint(model=reference, tokenizer=None, task="causal_lm")
    return Checkpoint(model=policy, tokenizer=None, task="causal_lm", reference=other)


def probed(checkpoint: Checkpoint) -> Layout:
    return choose_layouts(checkpoint, BOTH, say=lambda line: None)


def rows(*models: Model, seed: int = 0) -> list[Row]:
    generator = np.random.default_rng(seed)
    lengths = (30, 9, 17, 2, 25, 12)
    ids = [generator.integers(3, tiny.VOCAB_SIZE, size=length) for length in lengths]
    return [
        Row(each, 1 + len(each) // 3, len(each), model=model)
        for each, model in zip(ids, models, strict=False)
    ]


def run(layout: Layout, batch: list[Row]) -> list[Outputs]:
    return layout.run([RowRequest(row, NEEDS) for row in batch])


def assert_is(outputs: Outputs, row: Row, exact: Any) -> None:
    """What the float64 model says of the row, to the contract's tolerance."""
    z = oracle.logits(exact, row.ids)[row.start - 1 : row.stop]
    bound = 1e-5 * max(1.0, float(np.abs(z).max()))
    assert (
        np.abs(outputs.chosen - z[np.arange(len(z) - 1), row.ids[row.start : row.stop]]).max()
        <= bound
    )
    assert np.abs(outputs.lse[1.0] - oracle.logsumexp(z)).max() <= bound


MIXED: tuple[Model, ...] = ("reference", "policy", "policy", "reference", "policy", "reference")


@pytest.mark.parametrize(
    ("policy", "reference", "name"),
    [
        ("llama", "qwen3", "packed"),
        ("bloom", "llama", "policy padded, reference packed"),
        ("gpt2", "llama_dynamic", "policy packed, reference plain"),
        ("mamba", "bloom", "padded"),
    ],
)
def test_every_row_is_read_by_its_own_model_and_the_order_is_kept(
    policy: str, reference: str, name: str
) -> None:
    models = {"policy": tiny.model(policy), "reference": tiny.model(reference, seed=1)}
    exact = {
        name: oracle.double(model) if "mamba" not in policy else model
        for name, model in models.items()
    }
    layout = probed(two(models["policy"], models["reference"]))
    assert layout.name == name
    batch = rows(*MIXED)
    for row, outputs in zip(batch, run(layout, batch), strict=True):
        assert_is(outputs, row, exact[row.model])


def test_a_batch_may_ask_one_of_the_two_or_none() -> None:
    models = {"policy": tiny.model("llama"), "reference": tiny.model("llama", seed=1)}
    exact = {name: oracle.double(model) for name, model in models.items()}
    layout = probed(two(models["policy"], models["reference"]))
    for model in ("policy", "reference"):
        batch = rows(model, model)
        for row, outputs in zip(batch, run(layout, batch), strict=True):
            assert_is(outputs, row, exact[model])
    assert layout.run([]) == []


def test_tokens_computed_are_those_of_both_models() -> None:
    layout = probed(two(tiny.model("llama_dynamic"), tiny.model("llama", seed=1)))
    batch = rows(*MIXED)
    assert layout.num_computed(batch) == sum(len(row.ids) for row in batch)


@pytest.mark.parametrize("gain", [None, 2.0])
def test_the_reasons_and_the_largest_gap_of_both_are_told(
    gain: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tokenreward.forward.probe.onednn_gain", lambda model: gain)
    lines: list[str] = []
    layout = choose_layouts(
        two(tiny.model("llama"), tiny.model("llama_dynamic", seed=1)), BOTH, say=lines.append
    )
    assert str(layout.reason).startswith("reference: packed shares rotary")
    of_linears, layouts_of = [], ["policy", "reference"]
    if gain:
        # The policy is probed again, without oneDNN.
        layouts_of.append("policy")
        of_linears = [
            f"policy: float32 linears through oneDNN: {gain:.2f} times as fast as torch's own",
            "policy: float32 linears are torch's own after all, as the reference's must be",
        ]
        assert lines[-1] == (
            f"policy: packed layout: differs from the model's own forward in {layout.gap}"
        )
    assert [line for line in lines if "linears" in line] == of_linears
    layout_lines = [line for line in lines if "layout" in line]
    assert [line.split(":")[0] for line in layout_lines] == layouts_of
    assert layout.gap is not None
    assert layout.gap.is_within


def test_the_gap_told_is_that_of_the_linears_that_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    off = lambda x, weight, bias: patches.torch_linear(x, weight, bias) * (1 + 1e-6)  # noqa: E731
    monkeypatch.setattr("tokenreward.forward.probe.onednn_linear", off)
    gaps = {}
    for gain in (None, 2.0):
        monkeypatch.setattr("tokenreward.forward.probe.onednn_gain", lambda model, gain=gain: gain)
        layout = probed(two(tiny.model("llama"), tiny.model("llama_dynamic", seed=1)))
        gaps[gain] = layout.gap
    assert gaps[2.0] == gaps[None]


def test_equal_models_give_equal_numbers_bit_for_bit_when_rows_come_in_the_same_order() -> None:
    layout = probed(two(tiny.model("llama"), tiny.model("llama")))
    alone = rows("policy", "policy", "policy")
    outputs = run(layout, [*alone, *(replace(row, model="reference") for row in alone)])
    for ours, theirs in zip(outputs[:3], outputs[3:], strict=True):
        np.testing.assert_array_equal(ours.chosen, theirs.chosen)
        np.testing.assert_array_equal(ours.lse[1.0], theirs.lse[1.0])


@pytest.mark.parametrize(
    ("architecture", "options", "name"),
    [
        ("llama", {}, "packed"),
        ("gpt2", {}, "packed"),
        ("gemma2", {}, "packed"),
        (
            "gpt_oss",
            {"target_modules": [], "target_parameters": ["mlp.experts.down_proj"]},
            "packed",
        ),
        ("bloom", {}, "padded"),
        ("llama", {"target_modules": ["q_proj", "lm_head"]}, "packed"),
        (
            "llama",
            {"target_modules": ["q_proj", "lm_head"], "use_dora": True},
            "policy plain, reference packed",
        ),
    ],
    ids=str,
)
def test_one_model_is_the_policy_with_its_adapter_and_the_reference_without(
    architecture: str, options: dict[str, Any], name: str, tmp_path: Path
) -> None:
    adapter = lora.save(tmp_path / "adapter", architecture, **options)
    layout = probed(of_settings(tiny.save(tmp_path / "base", architecture), adapter=str(adapter)))
    assert layout.name == name
    base = tiny.model(architecture)
    exact = {"reference": oracle.double(base)}
    if "target_parameters" in options or "use_dora" in options:
        exact["policy"] = lora.as_peft_has_it(adapter, architecture)
    else:
        exact["policy"] = lora.merged(oracle.double(base), adapter)
    for seed in (0, 1):
        batch = rows(*MIXED, seed=seed)
        for row, outputs in zip(batch, run(layout, batch), strict=True):
            assert_is(outputs, row, exact[row.model])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_without_its_adapter_the_model_is_its_base_bit_for_bit(dtype: str, tmp_path: Path) -> None:
    folder, adapter = tiny.save(tmp_path / "base"), lora.save(tmp_path / "adapter")
    pair = probed(of_settings(folder, adapter=str(adapter), dtype=dtype))
    assert pair.name == "packed"
    two_copies = probed(of_settings(folder, reference_checkpoint=str(folder), dtype=dtype))
    batch = rows(*["reference"] * 4)
    for ours, theirs in zip(run(pair, batch), run(two_copies, batch), strict=True):
        np.testing.assert_array_equal(ours.chosen, theirs.chosen)
        np.testing.assert_array_equal(ours.lse[1.0], theirs.lse[1.0])


def test_in_bf16_a_pair_of_rows_errs_no_more_than_twice_what_it_errs_alone(tmp_path: Path) -> None:
    folder, adapter = tiny.save(tmp_path / "base"), lora.save(tmp_path / "adapter")
    layout = probed(of_settings(folder, adapter=str(adapter), dtype="bfloat16"))
    base = oracle.double(tiny.model("llama"))
    exact = {"reference": base, "policy": lora.merged(oracle.double(base), adapter)}
    batch = rows(*MIXED)
    for row, outputs in zip(batch, run(layout, batch), strict=True):
        (alone,) = run(layout, [row])
        z = oracle.logits(exact[row.model], row.ids)[row.start - 1 : row.stop]
        bound = 1e-5 * np.abs(z).max() + 2 * np.abs(alone.lse[1.0] - oracle.logsumexp(z)).max()
        assert np.abs(outputs.lse[1.0] - oracle.logsumexp(z)).max() <= bound


def test_a_failed_pass_leaves_the_adapter_on(tmp_path: Path) -> None:
    adapter = lora.save(tmp_path / "adapter")
    layout = probed(of_settings(tiny.save(tmp_path / "base"), adapter=str(adapter)))
    (row,) = rows("policy")
    (before,) = run(layout, [row])
    beyond = Row(np.array([5, tiny.VOCAB_SIZE + 10]), 1, 2, model="reference")
    with pytest.raises(IndexError):
        run(layout, [beyond])
    (after,) = run(layout, [row])
    np.testing.assert_array_equal(before.chosen, after.chosen)


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize(("gain", "equal"), [(2.0, True), (2.0, False), (None, True)])
def test_both_compute_linears_through_one_operator_and_each_is_probed_against_its_own(
    adapted: bool, gain: float | None, equal: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or equal models would not give equal numbers, and one model cannot have two. What is faster
    is timed once."""
    swapped_when_asked: list[bool] = []

    def faster(model: Any) -> float | None:
        swapped_when_asked.append(is_swapped(model))
        return gain

    def agrees(model: Any) -> bool:
        swapped_when_asked.append(is_swapped(model))
        return equal

    monkeypatch.setattr("tokenreward.forward.probe.onednn_gain", faster)
    monkeypatch.setattr("tokenreward.forward.pair.onednn_agrees", agrees)
    through = gain is not None and equal
    folder = tiny.save(tmp_path / "base")
    other = (
        {"adapter": str(lora.save(tmp_path / "a"))}
        if adapted
        else {"reference_checkpoint": str(folder)}
    )
    pair = of_settings(folder, **other)
    lines: list[str] = []
    layout = choose_layouts(pair, BOTH, say=lines.append)
    assert pair.reference is not None
    assert swapped_when_asked == [False, False][: 1 if gain is None else 2]
    assert [is_swapped(checkpoint.model) for checkpoint in (pair, pair.reference)] == [through] * 2
    assert sum("torch's own after all" in line for line in lines) == (
        gain is not None and not through
    )
    exact = {"reference": oracle.double(tiny.model("llama"))}
    exact["policy"] = (
        lora.merged(oracle.double(tiny.model("llama")), tmp_path / "a")
        if adapted
        else exact["reference"]
    )
    batch = rows(*MIXED)
    for row, outputs in zip(batch, run(layout, batch), strict=True):
        assert_is(outputs, row, exact[row.model])


def is_swapped(model: Any) -> bool:
    return any(
        "forward" in vars(module) for module in model.modules() if type(module) is torch.nn.Linear
    )


def test_a_model_with_an_adapter_is_held_once(tmp_path: Path) -> None:
    folder, adapter = (
        tiny.save(tmp_path / "base"),
        lora.save(tmp_path / "adapter", target_modules=["q_proj"]),
    )
    alone = num_bytes(load_checkpoint(settings_of(folder)).model)
    pair = of_settings(folder, adapter=str(adapter))
    probed(pair)
    of_adapter = (
        4 * 3 * lora.RANK * (32 + 32)
    )  # float32, three layers, A and B of a 32 x 32 projection
    assert pair.reference is not None
    assert num_bytes(pair.model, pair.reference.model) == alone + of_adapter
    twice = of_settings(folder, reference_checkpoint=str(folder))
    assert twice.reference is not None
    assert num_bytes(twice.model, twice.reference.model) == 2 * alone


def num_bytes(*models: Any) -> int:
    """Of the distinct storages behind all parameters."""
    storages = [tensor.untyped_storage() for model in models for tensor in model.parameters()]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def settings_of(folder: Path, **more: Any) -> DeploymentSettings:
    return DeploymentSettings(
        name="x", checkpoint=str(folder), task="causal_lm", scorers=[{"type": "endogenous"}], **more
    )


def test_an_adapter_and_a_second_checkpoint_make_an_adapted_policy_and_that_reference(
    tmp_path: Path,
) -> None:
    base, other = tiny.save(tmp_path / "base"), tiny.save(tmp_path / "other", seed=5)
    adapter = lora.save(tmp_path / "adapter")
    layout = probed(of_settings(base, adapter=str(adapter), reference_checkpoint=str(other)))
    exact = {
        "policy": lora.merged(oracle.double(tiny.model("llama")), adapter),
        "reference": oracle.double(tiny.model("llama", seed=5)),
    }
    batch = rows(*MIXED)
    for row, outputs in zip(batch, run(layout, batch), strict=True):
        assert_is(outputs, row, exact[row.model])


def test_a_reference_with_other_tokens_is_refused_with_both_fingerprints(tmp_path: Path) -> None:
    base, other = tiny.save(tmp_path / "base"), tiny.save(tmp_path / "other")
    file = other / "tokenizer.json"
    file.write_text(file.read_text().replace('"<|system|>"', '"<|sistem|>"'))
    with pytest.raises(
        CheckpointRefused, match=r"tokenizers of .*\((\w{16})\).*\((?!\1)\w{16}\) differ"
    ):
        of_settings(base, reference_checkpoint=str(other))


def test_a_reference_that_cannot_be_loaded_is_refused_by_its_own_name(tmp_path: Path) -> None:
    with pytest.raises(CheckpointRefused, match="nowhere` cannot be loaded"):
        of_settings(tiny.save(tmp_path / "base"), reference_checkpoint=str(tmp_path / "nowhere"))


def test_ids_and_lengths_must_suit_both_models() -> None:
    small, dynamic = tiny.model("llama"), tiny.model("llama_dynamic", seed=1)
    small.resize_token_embeddings(300)
    for pair in (two(small, dynamic), two(dynamic, small)):
        assert (pair.vocab_size, pair.max_positions) == (300, 32)
    bloom = tiny.model("bloom")
    assert two(bloom, bloom).max_positions is None
    assert two(bloom, dynamic).max_positions == 32

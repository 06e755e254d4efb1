"""LoRA adapters: exactly W + s B A while on, exactly the base while off, and refused when they are
anything else."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fakes import lora, oracle, tiny
from tokenreward.checkpoints.adapter import lora_layers, without_adapter
from tokenreward.checkpoints.checkpoint import Checkpoint, CheckpointRefused, load_checkpoint
from tokenreward.contract import Needs, Row, RowRequest
from tokenreward.forward.packed import PackedLayout
from tokenreward.forward.pair import choose_layouts
from tokenreward.forward.plain import PlainLayout
from tokenreward.settings import DeploymentSettings

IDS = np.random.default_rng(0).integers(3, tiny.VOCAB_SIZE, size=30)
WEIGHTS = "adapter_model.safetensors"


def load(base: Path, adapter: Path | None, task: str = "causal_lm", **more: Any) -> Checkpoint:
    named = {"checkpoint": str(base), "adapter": adapter and str(adapter)}
    return load_checkpoint(
        DeploymentSettings(name="x", task=task, scorers=[{"type": "constant"}], **named, **more)
    )


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tiny.save(tmp_path / "base")


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return lora.save(tmp_path / "adapter")


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2", "gpt_neox"])
def test_the_model_is_its_base_plus_the_product_of_the_adapters_matrices(
    architecture: str, tmp_path: Path
) -> None:
    adapter = lora.save(tmp_path / "adapter", architecture)
    checkpoint = load(tiny.save(tmp_path / "base", architecture), adapter)
    truth = oracle.logits(lora.merged(oracle.double(tiny.model(architecture)), adapter), IDS)
    plain = oracle.logits(tiny.model(architecture), IDS)
    assert np.abs(truth - plain).max() > 1.0
    got = oracle.logits(checkpoint.model, IDS)
    assert np.abs(got - truth).max() <= 1e-5 * np.abs(truth).max()
    with without_adapter(lora_layers(checkpoint.model)):
        np.testing.assert_array_equal(oracle.logits(checkpoint.model, IDS), plain)
    np.testing.assert_array_equal(oracle.logits(checkpoint.model, IDS), got)


@pytest.mark.parametrize(
    "options",
    [
        {"use_dora": True},
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 3}},
        {"target_modules": ["q_proj"], "layers_to_transform": [1]},
        {"exclude_modules": r".*layers\.0\..*"},
        {"rank_pattern": {r"^model\.layers\.1\.mlp\.up_proj": 7}, "use_rslora": True},
        {"lora_dropout": 0.5},
        {"init_lora_weights": "orthogonal"},
        {"modules_to_save": ["lm_head"], "target_modules": ["q_proj"]},
        {"modules_to_save": ["embed_tokens", "lm_head"], "use_dora": True},
    ],
    ids=str,
)
def test_what_peft_serves_is_served_the_same(
    options: dict[str, Any], base: Path, tmp_path: Path
) -> None:
    """PEFT's own model is the truth here: these are read by its layers."""
    folder = lora.save(tmp_path / "adapter", **options)
    ours = load(base, folder).model
    truth = oracle.logits(lora.as_peft_has_it(folder), IDS)
    assert np.abs(truth - oracle.logits(tiny.model("llama"), IDS)).max() > 0.1
    np.testing.assert_array_equal(oracle.logits(ours, IDS), truth)
    with without_adapter(lora_layers(ours)):
        np.testing.assert_array_equal(
            oracle.logits(ours, IDS), oracle.logits(tiny.model("llama"), IDS)
        )


def test_whole_modules_are_switched_in_the_layouts_that_read_them(
    base: Path, tmp_path: Path
) -> None:
    """The head and the embedding are other weights with the adapter and without."""
    saved = {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}
    checkpoint = load(base, lora.save(tmp_path / "adapter", **saved))
    needs = {model: Needs(temperatures=frozenset({1.0})) for model in ("policy", "reference")}
    layout = choose_layouts(replace(checkpoint, reference=checkpoint), needs, say=lambda _: None)
    assert layout.name == "packed"
    rows = [Row(IDS, 1, len(IDS), model=model) for model in needs]
    outputs = layout.run([RowRequest(row, needs[row.model]) for row in rows])
    folder = tmp_path / "adapter"
    for model, ours in zip(
        (lora.as_peft_has_it(folder), tiny.model("llama")), outputs, strict=True
    ):
        logits = oracle.logits(model, IDS)
        truth = logits[np.arange(len(IDS) - 1), IDS[1:]] - oracle.logsumexp(logits[:-1])
        assert np.abs(ours.log_probs(1.0) - truth).max() <= 1e-5 * np.abs(logits).max()


def test_it_is_on_again_after_a_pass_that_raised(base: Path, adapter: Path) -> None:
    model = load(base, adapter).model
    before = oracle.logits(model, IDS)
    with pytest.raises(IndexError), without_adapter(lora_layers(model)):
        model(input_ids=torch.tensor([[tiny.VOCAB_SIZE]]))
    np.testing.assert_array_equal(oracle.logits(model, IDS), before)


def test_layers_that_would_stay_on_are_found_and_not_read_as_the_base(
    base: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft.tuners.tuners_utils import BaseTunerLayer

    model = load(base, adapter).model
    monkeypatch.setattr(BaseTunerLayer, "disable_adapters", False)
    with pytest.raises(RuntimeError, match="in another way"), without_adapter(lora_layers(model)):
        pass


def test_nothing_is_trainable_and_nothing_drops_out(base: Path, tmp_path: Path) -> None:
    model = load(base, lora.save(tmp_path / "adapter", lora_dropout=0.5)).model
    with without_adapter(lora_layers(model)):
        pass
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not any(module.training for module in model.modules())
    np.testing.assert_array_equal(oracle.logits(model, IDS), oracle.logits(model, IDS))


@pytest.mark.parametrize("options", [{}, {"use_dora": True}], ids=str)
def test_in_bf16_the_base_is_bit_for_bit_what_it_is_alone(
    options: dict[str, Any], base: Path, tmp_path: Path
) -> None:
    model = load(base, lora.save(tmp_path / "adapter", **options), dtype="bfloat16").model
    alone = load(base, None, dtype="bfloat16").model
    with without_adapter(lora_layers(model)):
        np.testing.assert_array_equal(oracle.logits(model, IDS), oracle.logits(alone, IDS))
    assert model(input_ids=torch.from_numpy(IDS)[None]).logits.dtype == torch.bfloat16
    assert np.abs(oracle.logits(model, IDS) - oracle.logits(alone, IDS)).max() > 1.0


def test_the_adapter_is_in_the_trunks_dtype_but_doras_magnitudes_which_stand_for_the_bases(
    base: Path, tmp_path: Path
) -> None:
    model = load(base, lora.save(tmp_path / "adapter", use_dora=True), dtype="bfloat16").model
    dtypes = {
        name: parameter.dtype for name, parameter in model.named_parameters() if ".lora_" in name
    }
    of_magnitudes = {dtype for name, dtype in dtypes.items() if "magnitude" in name}
    assert of_magnitudes == {torch.float32}
    assert {dtype for name, dtype in dtypes.items() if "magnitude" not in name} == {torch.bfloat16}


def test_a_reward_model_takes_an_adapter(tmp_path: Path) -> None:
    base = tiny.save(tmp_path / "base", task="reward_model")
    adapter = lora.save(
        tmp_path / "adapter", task="reward_model", target_modules=["q_proj", "down_proj"]
    )
    model = load(base, adapter, "reward_model").model
    truth = oracle.head_values(
        lora.merged(oracle.double(tiny.model("llama", "reward_model")), adapter), IDS[:8]
    )
    np.testing.assert_allclose(oracle.head_values(model, IDS[:8]), truth, atol=1e-4)


SAVED_HEAD = {"task_type": "SEQ_CLS", "target_modules": ["q_proj", "down_proj"]}


@pytest.mark.parametrize(
    ("base_task", "num_labels", "options"),
    [
        ("causal_lm", 1, SAVED_HEAD),
        ("reward_model", 2, SAVED_HEAD),
        ("reward_model", 1, {"target_modules": ["q_proj", "score"]}),
    ],
    ids=["saved, no head in the base", "saved, another in the base", "matrices on the base's"],
)
def test_a_value_head_of_an_adapter_is_the_head_whatever_the_base_holds(
    tmp_path: Path, base_task: str, num_labels: int, options: dict[str, Any]
) -> None:
    base = tiny.save(tmp_path / "base", task=base_task, num_labels=num_labels)
    adapter = lora.save(tmp_path / "adapter", task="reward_model", **options)
    checkpoint = load(base, adapter, "reward_model")
    truth = oracle.head_values(lora.as_peft_has_it(adapter, task="reward_model"), IDS)
    assert np.abs(truth - oracle.head_values(tiny.model("llama", "reward_model"), IDS)).max() > 0.1
    (outputs,) = PlainLayout(checkpoint).run(
        [RowRequest(Row(IDS, 1, len(IDS)), Needs(values=True))]
    )
    np.testing.assert_allclose(outputs.values, truth, atol=1e-4)


def test_a_value_head_in_a_file_beside_the_adapter_is_on_its_trunk(tmp_path: Path) -> None:
    """So LLaMA-Factory leaves a reward model that it trained with LoRA. The names of the adapter
    are those of a language model, and the trunk is loaded alone."""
    base = tiny.save(tmp_path / "base")
    options = {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": [1, 2]}
    adapter = lora.save(tmp_path / "adapter", **options)
    weight = torch.randn(1, 32, generator=torch.Generator().manual_seed(0))
    head = {"v_head.summary.weight": weight, "v_head.summary.bias": torch.tensor([0.5])}
    save_file(head, adapter / "value_head.safetensors")
    checkpoint = load(base, adapter, "reward_model")
    exact = lora.merged(oracle.double(tiny.model("llama")), adapter)
    with torch.no_grad():
        states = exact.base_model(input_ids=torch.from_numpy(IDS)[None]).last_hidden_state[0]
    truth = (states @ weight[0].double() + 0.5).numpy()
    for layout in (PlainLayout, PackedLayout):
        (outputs,) = layout(checkpoint).run([RowRequest(Row(IDS, 1, len(IDS)), Needs(values=True))])
        np.testing.assert_allclose(outputs.values, truth, atol=1e-4)
    # A policy that was trained with PPO has such a file, too, and is read without it.
    assert load(base, adapter).head_format is None


def test_a_language_head_that_was_trained_beside_a_value_head_is_not_read(tmp_path: Path) -> None:
    base, whole = tiny.save(tmp_path / "base"), ["embed_tokens", "lm_head"]
    adapter = lora.save(tmp_path / "adapter", target_modules=["q_proj"], modules_to_save=whole)
    weight = torch.randn(1, 32, generator=torch.Generator().manual_seed(0))
    save_file({"v_head.summary.weight": weight}, adapter / "value_head.safetensors")
    request = RowRequest(Row(IDS, 1, len(IDS)), Needs(values=True))
    (outputs,) = PlainLayout(load(base, adapter, "reward_model")).run([request])
    trunk = lora.as_peft_has_it(adapter).base_model.model.base_model
    with torch.no_grad():
        states = trunk(input_ids=torch.from_numpy(IDS)[None]).last_hidden_state[0]
    np.testing.assert_allclose(outputs.values, (states @ weight[0]).numpy(), atol=1e-4)


def test_a_whole_module_that_is_missing_or_of_another_size_is_refused_by_its_name(
    base: Path, tmp_path: Path
) -> None:
    adapter = lora.save(tmp_path / "adapter", modules_to_save=["embed_tokens"])
    weights = load_file(adapter / WEIGHTS)
    name = "base_model.model.model.embed_tokens.weight"
    save_file({**weights, name: torch.zeros(tiny.VOCAB_SIZE + 8, 32)}, adapter / WEIGHTS)
    with pytest.raises(
        CheckpointRefused, match=r"embed_tokens\.weight \[320, 32\].*holds \[328, 32\]"
    ):
        load(base, adapter)
    del weights[name]
    save_file(weights, adapter / WEIGHTS)
    with pytest.raises(
        CheckpointRefused, match=r"model\.embed_tokens\.weight \[320, 32\].*holds none"
    ):
        load(base, adapter)


def test_an_adapter_of_another_shape_is_refused_with_the_shapes(base: Path, adapter: Path) -> None:
    weights = load_file(adapter / WEIGHTS)
    name = next(name for name in weights if name.endswith("lora_A.weight"))
    save_file({**weights, name: torch.zeros(lora.RANK, 7)}, adapter / WEIGHTS)
    with pytest.raises(CheckpointRefused, match=r"(?s)does not fit the model.*\[4, 7\]"):
        load(base, adapter)


def test_an_adapter_of_another_rank_than_it_says_is_refused(base: Path, adapter: Path) -> None:
    lora.config(adapter, r=8)
    with pytest.raises(CheckpointRefused, match="does not fit the model"):
        load(base, adapter)


def test_an_adapter_of_a_larger_base_is_refused_by_the_weights_that_have_no_place(
    base: Path, adapter: Path
) -> None:
    weights = load_file(adapter / WEIGHTS)
    deeper = {
        name.replace("layers.0", "layers.3"): tensor.clone()
        for name, tensor in weights.items()
        if "layers.0" in name
    }
    save_file({**weights, **deeper}, adapter / WEIGHTS)
    with pytest.raises(CheckpointRefused, match=r"holds .*layers\.3.* no place for"):
        load(base, adapter)


def test_an_adapter_that_lacks_weights_is_refused_by_their_names(base: Path, adapter: Path) -> None:
    weights = load_file(adapter / WEIGHTS)
    del weights["base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"]
    save_file(weights, adapter / WEIGHTS)
    with pytest.raises(CheckpointRefused, match=r"does not hold .*layers\.1\.mlp\.up_proj\.lora_B"):
        load(base, adapter)


def test_an_adapter_of_another_architecture_is_refused(tmp_path: Path) -> None:
    base = tiny.save(tmp_path / "base", "gpt_neox")
    with pytest.raises(CheckpointRefused, match="does not fit the model"):
        load(base, lora.save(tmp_path / "adapter", target_modules=["q_proj", "v_proj"]))


def test_a_copy_of_the_bases_own_weight_is_let_pass_and_another_weight_in_its_place_is_not(
    base: Path, tmp_path: Path
) -> None:
    """PEFT stores the embedding that it adapts, too."""
    adapter = lora.save(tmp_path / "adapter", target_modules=["embed_tokens", "q_proj"])
    weights, copied = (
        load_file(adapter / WEIGHTS),
        "base_model.model.model.embed_tokens.base_layer.weight",
    )
    assert copied in weights
    model = load(base, adapter).model
    np.testing.assert_array_equal(
        oracle.logits(model, IDS), oracle.logits(lora.as_peft_has_it(adapter), IDS)
    )
    for other in (weights[copied] + 1e-3, torch.zeros(tiny.VOCAB_SIZE + 1, 32)):
        save_file({**weights, copied: other}, adapter / WEIGHTS)
        with pytest.raises(
            CheckpointRefused, match=r"embed_tokens.*in place of the base's.*merge_and_unload"
        ):
            load(base, adapter)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"bias": "all"}, "sets `bias`"),
        ({"ensure_weight_tying": True}, "sets `ensure_weight_tying`.*merge_and_unload"),
        ({"layer_replication": [[0, 2], [1, 3]]}, "sets `layer_replication`"),
        ({"alora_invocation_tokens": [5]}, "sets `alora_invocation_tokens`"),
        ({"trainable_token_indices": [5]}, "sets `trainable_token_indices`"),
        ({"of_a_later_peft": {"a": 1}}, "sets `of_a_later_peft`"),
        (
            {"init_lora_weights": "pissa"},
            "`init_lora_weights` 'pissa', which changes the weights of the base",
        ),
        ({"peft_type": "LOHA"}, "of type LOHA; only LORA"),
        ({"peft_type": "PREFIX_TUNING"}, "positions of its own"),
    ],
)
def test_more_than_lora_weights_on_a_base_is_refused_by_name(
    changes: dict[str, Any], why: str, base: Path, adapter: Path
) -> None:
    lora.config(adapter, **changes)
    with pytest.raises(CheckpointRefused, match=why):
        load(base, adapter)


def test_a_field_of_a_later_peft_that_is_off_is_no_matter(base: Path, adapter: Path) -> None:
    lora.config(adapter, of_a_later_peft=None, another=False)
    assert load(base, adapter).vocab_size == tiny.VOCAB_SIZE


def test_a_real_prompt_adapter_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointRefused, match="PROMPT_TUNING, which reads positions of its own"):
        load(base, lora.save_prompt(tmp_path / "prompt"))


def test_a_pickled_adapter_is_loaded_only_if_the_operator_says_so(
    base: Path, adapter: Path
) -> None:
    same = oracle.logits(load(base, adapter).model, IDS)
    torch.save(load_file(adapter / WEIGHTS), adapter / "adapter_model.bin")
    (adapter / WEIGHTS).unlink()
    with pytest.raises(CheckpointRefused, match=r"has no adapter_model\.safetensors$"):
        load(base, adapter)
    np.testing.assert_array_equal(
        oracle.logits(load(base, adapter, allow_pickle=True).model, IDS), same
    )


def test_a_folder_without_an_adapter_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointRefused, match=r"`adapter` .*nowhere.* has no adapter_config\.json"
    ):
        load(base, tmp_path / "nowhere")
    with pytest.raises(CheckpointRefused, match=r"has no adapter_config\.json"):
        load(base, base)


@pytest.mark.parametrize("with_weights", [False, True])
def test_a_checkpoint_folder_that_holds_an_adapter_is_refused_and_not_adapted_unsaid(
    base: Path, adapter: Path, with_weights: bool
) -> None:
    lora.config(adapter, base_model_name_or_path="the/base")
    if with_weights:
        shutil.copytree(base, adapter, dirs_exist_ok=True)
    settings = DeploymentSettings(
        name="x", checkpoint=str(adapter), task="causal_lm", scorers=[{"type": "constant"}]
    )
    cause = rf"holds an adapter .*: write `checkpoint: the/base` and `adapter: {adapter}`"
    if with_weights:
        cause += r", or take adapter_config\.json away if the weights beside it are the whole model"
    with pytest.raises(CheckpointRefused, match=f"{cause}$"):
        load_checkpoint(settings)
    lora.config(adapter, peft_type="LOHA")
    with pytest.raises(CheckpointRefused, match="of type LOHA; only LORA can be served"):
        load_checkpoint(settings)

"""Real folders in each form that value heads are stored in: loaded values against float64, and what
is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fakes import oracle, tiny, trained
from fakes.pages import page
from fakes.tiny import tokenizer_of
from tokenreward.checkpoints.checkpoint import Checkpoint, CheckpointRefused, load_checkpoint
from tokenreward.checkpoints.heads.head_formats import FORMATS
from tokenreward.checkpoints.update import prepare_update
from tokenreward.contract import Needs, Row, RowRequest
from tokenreward.forward.own_call import compare_with_own_call, skipped_token
from tokenreward.forward.packed import PackedLayout
from tokenreward.forward.plain import PlainLayout
from tokenreward.forward.probe import choose_layout
from tokenreward.settings import DeploymentSettings

HIDDEN = 32
Tensors = dict[str, torch.Tensor]


def random_tensor(*shape: int, seed: int = 7) -> torch.Tensor:
    return (
        torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))
        / shape[-1] ** 0.5
    )


def linear(prefix: str, num_labels: int = 1, *, bias: bool, width: int = HIDDEN) -> Tensors:
    tensors = {f"{prefix}.weight": random_tensor(num_labels, width)}
    return tensors | ({f"{prefix}.bias": random_tensor(num_labels)} if bias else {})


def mlp(
    prefix: str, num_labels: int, *, widths: tuple[int, ...] = (HIDDEN,), bias: bool = True
) -> Tensors:
    tensors: Tensors = {}
    for depth, (before, after) in enumerate(pairwise((HIDDEN, *widths, num_labels))):
        tensors |= linear(f"{prefix}.{2 * depth}", after, bias=bias, width=before)
    return tensors


def trunk_of_a_classifier(model: Any) -> Tensors:
    """Names as transformers' classes with a head have them."""
    return {
        name: tensor
        for name, tensor in model.state_dict().items()
        if not name.startswith("lm_head")
    }


def trunk_alone(model: Any) -> Tensors:
    return dict(model.base_model.state_dict())


def under(prefix: str, tensors: Tensors) -> Tensors:
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


# What each writer's files hold: trunk, head, and what else stands in config.json.
Case = tuple[Callable[[Any], Tensors], Tensors, dict[str, Any]]
CASES: dict[str, Case] = {
    "score": (trunk_of_a_classifier, linear("score", bias=False), {"num_labels": 1}),
    "score, two labels, none in config.json": (
        trunk_of_a_classifier,
        linear("score", 2, bias=False),
        {},
    ),
    "score, one label, none in config.json": (
        trunk_of_a_classifier,
        linear("score", bias=False),
        {},
    ),
    "score of a token classifier": (
        trunk_of_a_classifier,
        linear("score", 2, bias=True),
        {"num_labels": 2},
    ),
    "score, with a bias that the class would not have": (
        trunk_of_a_classifier,
        linear("score", 2, bias=True),
        {"num_labels": 2, "token_classification_bias": False},
    ),
    "score.mlp, PRM": (lambda model: dict(model.state_dict()), mlp("score", 2), {}),
    "score.mlp, RM": (lambda model: dict(model.state_dict()), mlp("score", 1), {}),
    "value_head": (trunk_of_a_classifier, linear("value_head", bias=False), {}),
    "reward, named by value_head_prefix": (
        trunk_of_a_classifier,
        linear("reward", bias=False),
        {"value_head_prefix": "reward"},
    ),
    "v_head.summary": (
        lambda model: dict(model.state_dict()),
        linear("v_head.summary", bias=True),
        {},
    ),
    "v_head.summary, wrapped": (
        lambda model: under("pretrained_model", dict(model.state_dict())),
        linear("v_head.summary", bias=True),
        {},
    ),
    "v_head": (
        lambda model: under("rwtransformer", trunk_alone(model)),
        linear("v_head", bias=False),
        {},
    ),
    "v_head, as it was spelled": (
        lambda model: under("rwtranrsformer", trunk_alone(model)),
        linear("v_head", bias=False),
        {},
    ),
    "v_head, Starling": (
        lambda model: under("transformer", trunk_alone(model)),
        linear("v_head", bias=False),
        {"architectures": ["LlamaForSequenceClassification"]},
    ),
    "v_head.summary.mlp": (
        lambda model: dict(model.state_dict()),
        mlp("v_head.summary", 1, widths=(48,)),
        {"vhead_layer_type": "mlp"},
    ),
    "score.mlp, three layers without biases": (
        trunk_of_a_classifier,
        mlp("score", 1, widths=(48, 24), bias=False),
        {},
    ),
    "regression_head": (trunk_of_a_classifier, linear("regression_head", bias=False), {}),
    "out_proj": (trunk_alone, linear("out_proj", bias=True), {}),
    "module.score": (
        lambda model: under("module", trunk_of_a_classifier(model)),
        linear("module.score", bias=False),
        {},
    ),
    "score, below another name of the trunk": (
        lambda model: under("backbone", trunk_alone(model)),
        linear("score", bias=False),
        {},
    ),
}
ARCHITECTURES = ("llama", "qwen3", "gpt2", "opt", "gpt_neox", "cohere")


def write(
    folder: Path, architecture: str, tensors: Tensors, config: dict[str, Any] | None = None
) -> Path:
    """A folder as a trainer leaves it: the base model's config.json with its own fields, one file
    of tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    own = tiny.model(architecture).config.to_dict()
    own = {
        name: value
        for name, value in own.items()
        if name not in ("id2label", "label2id", "architectures")
    }
    (folder / "config.json").write_text(json.dumps(own | (config or {})))
    save_file(
        {name: tensor.clone() for name, tensor in tensors.items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    tiny.tokenizer().save_pretrained(folder)
    return folder


def settings_of(folder: Path, **more: Any) -> DeploymentSettings:
    return DeploymentSettings(
        name="x",
        checkpoint=str(folder),
        task="reward_model",
        scorers=[{"type": "reward_model"}],
        **more,
    )


def load(folder: Path, **more: Any) -> Checkpoint:
    return load_checkpoint(settings_of(folder, **more))


def truth(
    architecture: str, head: Tensors, ids: np.ndarray, label: int | None = None
) -> np.ndarray:
    """The head by hand, float64, on the float64 states of the base model that the folder was made
    of."""
    with torch.no_grad():
        exact = oracle.double(tiny.model(architecture)).base_model
        x = (
            exact(input_ids=torch.from_numpy(ids)[None], use_cache=False)
            .last_hidden_state[0]
            .numpy()
        )
    head = {name: tensor for name, tensor in head.items() if "normalizer" not in name}
    by_place = {name.rsplit(".", 1)[0]: index for index, name in enumerate(sorted(head))}
    for depth, place in enumerate(sorted(by_place)):
        x = np.maximum(x, 0) if depth else x
        x = x @ head[f"{place}.weight"].double().numpy().T
        x = x + head[f"{place}.bias"].double().numpy() if f"{place}.bias" in head else x
    if label is not None:
        return x[:, label]
    return x[:, 0] if x.shape[1] == 1 else x[:, 1] - x[:, 0]


def assert_values(checkpoint: Checkpoint, expected: Callable[[np.ndarray], np.ndarray]) -> None:
    ids = np.random.default_rng(0).integers(3, tiny.VOCAB_SIZE, size=40)
    assert_values_at(checkpoint, ids, expected(ids))


def assert_values_at(checkpoint: Checkpoint, ids: np.ndarray, values: np.ndarray) -> None:
    for layout in (PlainLayout, PackedLayout):
        (outputs,) = layout(checkpoint).run([RowRequest(Row(ids, 1, len(ids)), Needs(values=True))])
        assert outputs.values is not None
        bound = 1e-5 * max(1.0, float(np.abs(values).max()))
        assert np.abs(outputs.values - values).max() <= bound
        assert abs(outputs.pooled - values[-1]) <= bound


PLACES = ("0.weight", "0.bias", "2.weight", "2.bias")
# Every form on one architecture, and a form of each way to load on all others.
ON_ARCHITECTURES = [(case, "llama") for case in CASES] + [
    (case, architecture)
    for case in ("score", "score.mlp, RM", "v_head.summary, wrapped", "v_head, Starling")
    for architecture in ARCHITECTURES[1:]
]


@pytest.mark.parametrize(("case", "architecture"), ON_ARCHITECTURES)
def test_a_head_in_any_known_form_gives_its_values(
    tmp_path: Path, case: str, architecture: str
) -> None:
    trunk, head, config = CASES[case]
    folder = write(tmp_path, architecture, trunk(tiny.model(architecture)) | head, config)
    checkpoint = load(folder)
    assert checkpoint.head_format == case.split(",")[0].split(" ")[0]
    assert_values(checkpoint, lambda ids: truth(architecture, head, ids))


@pytest.mark.parametrize("case", CASES)
def test_the_load_line_says_how_the_head_was_stored_and_compares_where_there_is_something_to(
    tmp_path: Path, case: str
) -> None:
    trunk, head, config = CASES[case]
    checkpoint = load(write(tmp_path, "llama", trunk(tiny.model("llama")) | head, config))
    line = compare_with_own_call(checkpoint, tokenizer_of(checkpoint), None)
    assert f"stored as `{checkpoint.head_format}`" in line
    has_class = checkpoint.head_format == "score" and "would not have" not in case
    assert ("of the model's own templated call" in line) == has_class
    assert 'set `suffix_text: "\\n"`' in line  # the template of the tests goes on after the turn


def test_a_classifier_of_tokens_is_compared_with_its_own_last_logits(tmp_path: Path) -> None:
    from transformers import GPT2ForTokenClassification

    config = tiny.ARCHITECTURES["gpt2"]()
    config.num_labels = 2
    torch.manual_seed(0)
    model = GPT2ForTokenClassification(config).eval()
    model.save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    checkpoint = load(tmp_path)
    assert checkpoint.head_format == "classifier"
    ids = np.arange(3, 30)
    with torch.no_grad():
        logits = oracle.double(model)(input_ids=torch.from_numpy(ids)[None]).logits[0].numpy()
    (outputs,) = PlainLayout(checkpoint).run(
        [RowRequest(Row(ids, 1, len(ids)), Needs(values=True))]
    )
    np.testing.assert_allclose(outputs.values, logits[:, 1] - logits[:, 0], atol=1e-5)
    assert "of the model's own templated call" in compare_with_own_call(
        checkpoint, tokenizer_of(checkpoint), None
    )


def test_a_bfloat16_trunk_keeps_a_float32_head(tmp_path: Path) -> None:
    trunk, head, _ = CASES["v_head.summary"]
    checkpoint = load(write(tmp_path, "llama", trunk(tiny.model("llama")) | head), dtype="bfloat16")
    assert checkpoint.model.dtype == torch.bfloat16
    assert torch.equal(checkpoint.value_head.layers[0].weight, head["v_head.summary.weight"])


def test_shards_are_read_where_the_index_says(tmp_path: Path) -> None:
    trunk, head, _ = CASES["v_head.summary, wrapped"]
    tensors = trunk(tiny.model("llama")) | head
    folder = write(tmp_path, "llama", tensors)
    (folder / "model.safetensors").unlink()
    names, index = sorted(tensors), {}
    for number, part in enumerate((names[::2], names[1::2])):
        shard = f"model-{number}.safetensors"
        save_file({name: tensors[name].clone() for name in part}, folder / shard, {"format": "pt"})
        index |= dict.fromkeys(part, shard)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": index})
    )
    assert_values(load(folder), lambda ids: truth("llama", head, ids))
    (folder / "model-1.safetensors").unlink()
    with pytest.raises(CheckpointRefused, match="model-1"):
        load(folder)


@pytest.mark.parametrize("name", ["value_head.safetensors", "value_head.bin"])
def test_a_head_in_a_file_of_its_own_is_found_beside_the_trunk(tmp_path: Path, name: str) -> None:
    _, head, _ = CASES["v_head.summary"]
    folder = write(tmp_path, "llama", dict(tiny.model("llama").state_dict()))
    if name.endswith(".bin"):
        torch.save(head, folder / name)
        with pytest.raises(CheckpointRefused, match="holds no value head"):
            load(folder)
        assert_values(load(folder, allow_pickle=True), lambda ids: truth("llama", head, ids))
    else:
        save_file(head, folder / name, {"format": "pt"})
        assert_values(load(folder), lambda ids: truth("llama", head, ids))


def test_pickled_tensors_are_read_only_if_the_operator_says_so(tmp_path: Path) -> None:
    trunk, head, _ = CASES["v_head, as it was spelled"]
    tensors = trunk(tiny.model("opt")) | head
    folder = write(tmp_path, "opt", tensors)
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointRefused):
        load(folder)
    assert_values(load(folder, allow_pickle=True), lambda ids: truth("opt", head, ids))


def refusal_of(folder: Path, **more: Any) -> str:
    with pytest.raises(CheckpointRefused) as refusal:
        load(folder, **more)
    return str(refusal.value)


def test_a_head_that_is_missing_lists_what_is_there_and_what_is_known(tmp_path: Path) -> None:
    message = refusal_of(write(tmp_path, "llama", dict(tiny.model("llama").state_dict())))
    assert str(tmp_path) in message
    assert "there are lm_head.weight, model.embed_tokens.weight, model.norm.weight" in message
    for head_format in FORMATS:
        assert head_format in message.split("known heads are")[1]
    assert "a token's logit is read with `task: causal_lm`" in message
    alone = refusal_of(write(tmp_path / "alone", "llama", trunk_alone(tiny.model("llama"))))
    assert "causal_lm" not in alone


@pytest.mark.parametrize(
    "head",
    [
        {
            "v_head.0.weight": random_tensor(HIDDEN, HIDDEN),
            "v_head.3.weight": random_tensor(1, HIDDEN),
        },
        {
            "score.0.weight": random_tensor(HIDDEN, HIDDEN),
            "score.4.weight": random_tensor(1, HIDDEN),
        },
        {
            "score.dense.weight": random_tensor(HIDDEN, HIDDEN),
            "score.out_proj.weight": random_tensor(1, HIDDEN),
        },
        {"reward_head.weight": random_tensor(1, HIDDEN)},
        {"v_head.summary.bias": random_tensor(1)},
    ],
    ids=lambda head: min(head),
)
def test_a_head_in_no_known_form_is_refused_by_its_names(tmp_path: Path, head: Tensors) -> None:
    message = refusal_of(
        write(tmp_path, "llama", trunk_of_a_classifier(tiny.model("llama")) | head)
    )
    assert "holds no value head" in message
    assert min(head) in message


def test_two_heads_are_refused_because_which_is_meant_cannot_be_told(tmp_path: Path) -> None:
    heads = linear("score", bias=False) | linear("v_head.summary", bias=True)
    message = refusal_of(
        write(tmp_path, "llama", trunk_of_a_classifier(tiny.model("llama")) | heads)
    )
    assert (
        "more than one value head, score.weight, v_head.summary.bias, v_head.summary.weight"
        in message
    )


@pytest.mark.parametrize("architecture", ["llama", "big_bird"])
def test_a_head_in_a_file_of_its_own_is_not_passed_over_where_a_class_has_one(
    tmp_path: Path, architecture: str
) -> None:
    folder = tiny.save(tmp_path, architecture, "reward_model")
    save_file(linear("v_head.summary", bias=True), folder / "value_head.safetensors")
    assert "v_head.summary.bias, v_head.summary.weight" in refusal_of(folder)


@pytest.mark.parametrize(
    "case", ["score", "score of a token classifier", "score.mlp, PRM", "v_head"]
)
@pytest.mark.parametrize(
    "extra", ["gating.0.weight", "projection.weight", "model.layers.1.adapter.weight"]
)
def test_tensors_that_nothing_would_read_are_refused(tmp_path: Path, case: str, extra: str) -> None:
    trunk, head, config = CASES[case]
    tensors = trunk(tiny.model("llama")) | head | {extra: random_tensor(4, HIDDEN)}
    message = refusal_of(write(tmp_path, "llama", tensors, config))
    assert f"holds {extra}, which nothing would read" in message


@pytest.mark.parametrize("case", ["score", "score.mlp, PRM", "v_head.summary, wrapped"])
@pytest.mark.parametrize("architecture", ["llama", "phi", "gpt_neox"])
def test_a_language_models_own_head_is_no_harm(
    tmp_path: Path, case: str, architecture: str
) -> None:
    _, head, config = CASES[case]
    tensors = dict(tiny.model(architecture).state_dict()) | head
    if architecture == "gpt_neox":
        tensors["embed_out.weight"] = tensors.pop(
            "lm_head.weight"
        )  # as it is in this architecture's files
    assert_values(
        load(write(tmp_path, architecture, tensors, config)),
        lambda ids: truth(architecture, head, ids),
    )


@pytest.mark.parametrize("case", ["score", "v_head.summary", "v_head"])
def test_a_trunk_that_lacks_a_tensor_is_refused_by_its_name(tmp_path: Path, case: str) -> None:
    trunk, head, config = CASES[case]
    tensors = trunk(tiny.model("llama")) | head
    del tensors[next(name for name in tensors if name.endswith("layers.1.mlp.up_proj.weight"))]
    assert "layers.1.mlp.up_proj.weight: these weights would be random" in refusal_of(
        write(tmp_path, "llama", tensors, config)
    )


def test_a_config_that_says_another_number_of_labels_than_the_head_has_is_no_matter(
    tmp_path: Path,
) -> None:
    """Trainers leave the labels of the base in config.json; the tensor is what was trained."""
    trunk, head, _ = CASES["score"]
    checkpoint = load(
        write(tmp_path, "llama", trunk(tiny.model("llama")) | head, {"num_labels": 2})
    )
    assert_values(checkpoint, lambda ids: truth("llama", head, ids))


@pytest.mark.parametrize("case", ["score", "v_head"])
def test_a_head_of_three_labels_is_refused(tmp_path: Path, case: str) -> None:
    trunk, head, _ = CASES[case]
    head = {name: random_tensor(3, HIDDEN) for name in head}
    names = {"0": "helpful", "1": "correct", "2": "brief"}
    folder = write(tmp_path, "llama", trunk(tiny.model("llama")) | head, {"id2label": names})
    assert (
        "the value head has 3 labels (0 helpful, 1 correct, 2 brief): `head: {label: ...}`"
        in refusal_of(folder)
    )
    assert "`label` is 3; the value head's labels are 0 to 2: 0 helpful" in refusal_of(
        folder, head={"label": 3}
    )
    assert "`label_weights` has 2 entries for the 3 labels" in refusal_of(
        folder, head={"label_weights": [1, 2]}
    )


@pytest.mark.parametrize(
    ("case", "num_labels", "settings", "weights"),
    [
        ("score", 3, {"label": 1}, [0, 1, 0]),
        ("score.mlp, PRM", 3, {"label_weights": [0.5, -2.0, 0.0]}, [0.5, -2, 0]),
        ("score of a token classifier", 2, {"label": 0}, [1, 0]),
    ],
)
def test_a_label_or_a_weighted_sum_of_labels_is_the_value_and_all_of_them_are_told(
    tmp_path: Path, case: str, num_labels: int, settings: dict[str, Any], weights: list[float]
) -> None:
    trunk, head, _ = CASES[case]
    last = max(name.rsplit(".", 1)[0] for name in head)
    for name in [name for name in head if name.startswith(f"{last}.")]:
        head = head | {name: random_tensor(num_labels, *head[name].shape[1:])}
    folder = write(tmp_path, "llama", trunk(tiny.model("llama")) | head)
    checkpoint, ids = load(folder, head=settings), np.arange(3, 40)
    labels = np.stack([truth("llama", head, ids, label) for label in range(num_labels)], axis=1)
    rows = [RowRequest(Row(ids[:n], 1, n), Needs(values=True)) for n in (9, len(ids))]
    names = [f"LABEL_{label}" for label in range(num_labels)]
    for layout in (PlainLayout, PackedLayout):
        for (row, _), outputs in zip(rows, layout(checkpoint).run(rows), strict=True):
            scores = [outputs.scores[name] for name in names]
            own = labels[: len(row.ids)]
            np.testing.assert_allclose(scores, own[-1], atol=1e-4)
            np.testing.assert_allclose(outputs.values, own @ weights, atol=1e-4)
            np.testing.assert_allclose(outputs.pooled, own[-1] @ weights, atol=1e-4)


def test_labels_that_a_gate_weighs_are_served_by_name_and_not_without(tmp_path: Path) -> None:
    """As ArmoRM: the gate makes another weight of each label for every prompt."""
    head = linear("regression_layer", 3, bias=False)
    gate = {
        "gating.layers.0.weight": random_tensor(16, HIDDEN),
        "gating.layers.1.weight": random_tensor(3, 16),
        "gating.logit_scale": torch.ones(1),
        "reward_transform_matrix": torch.eye(3),
    }
    tensors = trunk_of_a_classifier(tiny.model("llama")) | head | gate
    folder = write(tmp_path, "llama", tensors)
    assert "weighs the labels of its head by the state at the prompt's end" in refusal_of(folder)
    assert_values(load(folder, head={"label": 2}), lambda ids: truth("llama", head, ids, 2))


def test_large_weights_of_labels_that_cancel_are_no_reason_to_refuse(tmp_path: Path) -> None:
    """Rounding to bfloat16 is of each label, and is large beside a sum that is nearly zero."""
    folder = tiny.save(tmp_path, task="reward_model", num_labels=3)

    def pooled(**head: Any) -> float:
        checkpoint = load(folder, head=head, dtype="bfloat16")
        line = compare_with_own_call(checkpoint, tokenizer_of(checkpoint), None)
        return float(line.split("pooled value of a conversation ")[1].split(",")[0])

    first, second = pooled(label=0), pooled(label=1)
    assert abs(pooled(label_weights=[1000 * second, -1000 * first, 0.0])) < 1.0


@pytest.mark.parametrize("name", ["v_head", "score"])
def test_a_head_of_another_width_is_refused(tmp_path: Path, name: str) -> None:
    tensors = trunk_of_a_classifier(tiny.model("llama")) | linear(name, bias=False, width=48)
    assert "reads 48 numbers a token, the trunk gives 32" in refusal_of(
        write(tmp_path, "llama", tensors)
    )


@pytest.mark.parametrize("shapes", [{"weight": (32,)}, {"weight": (1, 32), "bias": (2,)}], ids=str)
def test_a_head_whose_tensors_are_no_linear_is_refused_by_their_shapes(
    tmp_path: Path, shapes: dict[str, tuple[int, ...]]
) -> None:
    head = {f"score.{place}": torch.ones(shape) for place, shape in shapes.items()}
    message = refusal_of(
        write(tmp_path, "llama", trunk_of_a_classifier(tiny.model("llama")) | head)
    )
    assert "are no weight and bias of a Linear" in message


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_trunk_whose_tokens_see_the_ones_after_them_is_refused(
    tmp_path: Path, dtype: str
) -> None:
    from transformers import Gemma3TextConfig, Gemma3TextForSequenceClassification

    config = Gemma3TextConfig(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_labels=1,
        use_bidirectional_attention=True,
    )
    torch.manual_seed(0)
    model = Gemma3TextForSequenceClassification(config)
    for parameter in model.parameters():
        parameter.data.mul_(8.0)
    model.save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    checkpoint = load(tmp_path, dtype=dtype)
    with pytest.raises(CheckpointRefused) as refusal:
        choose_layout(checkpoint, Needs(values=True), say=lambda line: None)
    assert (
        "Gemma3TextForSequenceClassification does not read from left to right: the values"
        in str(refusal.value)
    )


def openrlhf(folder: Path, **config: Any) -> Path:
    trunk, head, _ = CASES["value_head"]
    return write(folder, "llama", trunk(tiny.model("llama")) | head, config)


@pytest.mark.parametrize("case", ["value_head", "score"])
@pytest.mark.parametrize(
    ("in_config", "setting", "applied"),
    [
        (None, None, False),
        (False, None, False),
        (True, None, True),
        (False, True, True),
        (True, False, False),
    ],
)
def test_mean_and_std_are_applied_if_the_checkpoint_or_else_the_operator_says_so(
    tmp_path: Path, case: str, in_config: bool | None, setting: bool | None, applied: bool
) -> None:
    trunk, head, _ = CASES[case]
    config = {"mean": 0.75, "std": 3.0} | (
        {} if in_config is None else {"normalize_reward": in_config}
    )
    folder = write(tmp_path, "llama", trunk(tiny.model("llama")) | head, config)
    checkpoint = load(folder, normalize_reward=setting)
    line = compare_with_own_call(checkpoint, tokenizer_of(checkpoint), "\n")
    assert ("then (value - 0.75) / 3" in line) == applied
    assert ("mean 0.75 and std 3.0 of the checkpoint are not applied" in line) != applied
    shift, scale = (0.75, 3.0) if applied else (0.0, 1.0)
    assert_values(checkpoint, lambda ids: (truth("llama", head, ids) - shift) / scale)


@pytest.mark.parametrize(
    ("config", "setting", "message"),
    [
        ({"normalize_reward": True, "mean": 0.1, "std": 0.0}, None, "std above 0"),
        ({"normalize_reward": True, "mean": 0.1}, None, "only `mean`"),
        ({}, True, "no `mean` and `std`"),
    ],
)
def test_an_affine_that_cannot_be_applied_is_refused_at_load(
    tmp_path: Path, config: dict[str, Any], setting: bool | None, message: str
) -> None:
    assert message in refusal_of(openrlhf(tmp_path, **config), normalize_reward=setting)


def test_a_prefix_of_the_configuration_that_is_known_anyway_adds_nothing(tmp_path: Path) -> None:
    trunk, head, _ = CASES["score"]
    tensors = trunk(tiny.model("llama")) | head
    assert (
        load(write(tmp_path, "llama", tensors, {"value_head_prefix": "score"})).head_format
        == "score"
    )


@pytest.mark.parametrize(
    ("config", "pools_end"),
    [
        ({}, True),
        ({"architectures": ["RewardModel"], "mean": -0.5, "std": 2.0}, True),
        ({"num_labels": 1, "value_head_prefix": "score"}, True),
        ({"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}, True),
        ({"num_labels": 1}, False),
    ],
    ids=str,
)
def test_a_head_that_no_class_of_transformers_trained_pools_the_last_token_also_if_it_is_padding(
    tmp_path: Path, config: dict[str, Any], pools_end: bool
) -> None:
    """OpenRLHF pools the last token of the attention mask, and its config.json is the language
    model's: two labels, transformers' default. A class of transformers writes one."""
    trunk, head, _ = CASES["score"]
    tokenizer = tiny.tokenizer()
    pad_id = tokenizer.eos_token_id
    folder = write(
        tmp_path, "llama", trunk(tiny.model("llama")) | head, {"pad_token_id": pad_id, **config}
    )
    checkpoint = load(folder)
    assert skipped_token(checkpoint) == (None if pools_end else pad_id)
    if pools_end:
        line = compare_with_own_call(checkpoint, tokenizer_of(checkpoint), None)
        assert "of the same head's templated call" in line and "pooled before" not in line


def test_statistics_of_several_labels_are_no_matter_where_they_are_not_applied(
    tmp_path: Path,
) -> None:
    folder, head = safe_rlhf(tmp_path, do_normalize=False)
    tensors = load_file(folder / "model.safetensors")
    tensors |= {f"normalizer.{name}": torch.ones(2) for name in ("mean", "var")}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert_values(load(folder), lambda ids: truth("llama", head, ids))
    assert "normalizer.mean of 2 labels" in refusal_of(folder, normalize_reward=True)


def safe_rlhf(folder: Path, **config: Any) -> tuple[Path, Tensors]:
    """As safe-rlhf writes a reward model: the statistics of its training beside the head."""
    head = linear("score_head", bias=True)
    statistics = {
        "normalizer.mean": torch.tensor([0.75]),
        "normalizer.var": torch.tensor([9.0]),
        "normalizer.count": torch.tensor([4]),
    }
    tensors = trunk_of_a_classifier(tiny.model("llama")) | head | statistics
    return write(folder, "llama", tensors, config), head


@pytest.mark.parametrize(
    ("config", "setting", "mean", "std"),
    [
        ({"do_normalize": True}, None, 0.75, 3.0),
        ({"do_normalize": True, "score_type": "reward"}, None, 0.75, 3.0),
        ({"do_normalize": True, "score_type": "cost"}, None, 0.0, 3.0),
        ({"do_normalize": True, "score_type": "critic"}, None, 0.0, 1.0),
        ({"do_normalize": True, "normalize_function": "scale"}, None, 0.0, 3.0),
        ({"do_normalize": True, "normalize_function": "translate"}, None, 0.75, 1.0),
        ({"do_normalize": False}, None, 0.0, 1.0),
        ({"do_normalize": False}, True, 0.75, 3.0),
        ({"do_normalize": True}, False, 0.0, 1.0),
    ],
    ids=str,
)
def test_a_stored_mean_and_variance_are_applied_as_the_checkpoint_or_else_the_operator_says(
    tmp_path: Path, config: dict[str, Any], setting: bool | None, mean: float, std: float
) -> None:
    folder, head = safe_rlhf(tmp_path, **config)
    checkpoint = load(folder, normalize_reward=setting)
    assert_values(checkpoint, lambda ids: (truth("llama", head, ids) - mean) / std)


def test_a_stored_variance_below_0_is_refused_where_it_is_applied(tmp_path: Path) -> None:
    folder, _ = safe_rlhf(tmp_path, do_normalize=True)
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "normalizer.var": torch.tensor([-1.0])}, folder / "model.safetensors")
    assert "std nan both must be finite" in refusal_of(folder)
    assert load(folder, normalize_reward=False).value_head.std == 1.0


def test_the_settings_name_a_head_and_what_stands_between_its_layers(tmp_path: Path) -> None:
    """Numbers with a gap are a layer without weights, as dropout, which does nothing here."""
    head = mlp("reward.out", 1)
    renumbered = {name.replace(".2.", ".3."): tensor for name, tensor in head.items()}
    other = linear("score", bias=False)
    tensors = under("backbone.lm", trunk_alone(tiny.model("llama"))) | renumbered | other
    folder = write(tmp_path, "llama", tensors)
    ids = np.arange(3, 30)
    with torch.no_grad():
        states = oracle.double(tiny.model("llama")).base_model(torch.from_numpy(ids)[None])
    w0, b0, w2, b2 = (head[f"reward.out.{place}"].double() for place in PLACES)
    x = torch.tanh(states.last_hidden_state[0] @ w0.T + b0)
    expected = (x @ w2[0] + b2).numpy()
    for tensor in ("reward.out", "reward.out.0.weight"):
        settings = {"tensor": tensor, "activation": "tanh", "trunk_prefix": "backbone.lm"}
        checkpoint = load(folder, head=settings)
        assert_values_at(checkpoint, ids, expected)
    assert "Tanh" in checkpoint.value_head.note


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tensor": "absent"}, "`head: {tensor: absent}` names no Linear and no MLP"),
        ({"trunk_prefix": "absent"}, "`head: {trunk_prefix: absent}` is before no tensor"),
        ({"activation": "tanh"}, "`head: {activation: ...}` has no effect"),
    ],
)
def test_settings_of_a_head_that_have_no_effect_are_refused(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    tensors = trunk_of_a_classifier(tiny.model("llama")) | linear("score", bias=False)
    refusal = refusal_of(write(tmp_path, "llama", tensors), head=settings)
    assert message in refusal
    assert "known heads" not in refusal


def test_a_trunk_that_is_there_twice_is_read_once_if_both_are_equal(tmp_path: Path) -> None:
    """As in Starling's 7B, where the policy it was made of is in the file, too."""
    trunk, head, config = CASES["v_head, Starling"]
    model = tiny.model("llama")
    tensors = trunk(model) | under("model", dict(model.state_dict())) | head
    folder = write(tmp_path / "equal", "llama", tensors, config)
    assert_values(load(folder), lambda ids: truth("llama", head, ids))
    tensors["model.model.norm.weight"] = tensors["model.model.norm.weight"] + 1
    folder = write(tmp_path / "other", "llama", tensors, config)
    message = refusal_of(folder)
    assert r"several trunks, model.model., transformer., which differ" in message
    checkpoint = load(folder, head={"trunk_prefix": "transformer"})
    assert_values(checkpoint, lambda ids: truth("llama", head, ids))


def test_a_head_whose_layers_do_not_follow_one_another_is_refused(tmp_path: Path) -> None:
    head = mlp("score", 1) | {"score.2.weight": random_tensor(1, 48)}
    tensors = trunk_of_a_classifier(tiny.model("llama")) | head
    assert "one gives 32 numbers, the next reads 48" in refusal_of(
        write(tmp_path, "llama", tensors)
    )


def test_the_page_of_models_has_every_form() -> None:
    models = page("docs/models.md")
    for head_format in FORMATS:
        assert f"| `{head_format}` |" in models


@pytest.mark.parametrize(
    "case", ["score", "score of a token classifier", "score.mlp, RM", "v_head.summary, wrapped"]
)
def test_further_training_of_a_head_in_any_form_is_taken_in_place(
    case: str, tmp_path: Path
) -> None:
    trunk, head, config = CASES[case]
    folder = write(tmp_path / "old", "llama", trunk(tiny.model("llama")) | head, config)
    assert_updated(folder, trained.further(folder, tmp_path / "new"))


@pytest.mark.parametrize("writer", [openrlhf, lambda folder, **of: safe_rlhf(folder, **of)[0]])
def test_the_affine_of_a_head_changes_with_its_weights(
    writer: Callable[..., Path], tmp_path: Path
) -> None:
    config = {"normalize_reward": True, "mean": 1.5, "std": 2.0}
    folder = writer(tmp_path / "old", **config)
    new = trained.further(folder, tmp_path / "new")
    file = new / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"mean": -0.5, "std": 3.0}))
    assert_updated(folder, new)


def assert_updated(folder: Path, new: Path) -> None:
    """The layout of a model gives what that of a fresh load gives once the model is updated."""
    served, fresh = load(folder), load(new)
    layout = PackedLayout(served)
    ids = np.random.default_rng(0).integers(3, tiny.VOCAB_SIZE, size=40)
    requests = [RowRequest(Row(ids, 1, len(ids)), Needs(values=True))]
    (before,) = layout.run(requests)
    update = prepare_update(served, settings_of(new))
    update.copy()
    update.close()
    (after,), (expected,) = layout.run(requests), PackedLayout(fresh).run(requests)
    assert not np.array_equal(after.values, before.values)
    np.testing.assert_array_equal(after.values, expected.values)

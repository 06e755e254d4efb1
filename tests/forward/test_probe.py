"""The load-time probe: packed or padded only where that is exact, plain where neither is, refused
where nothing is right."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fakes import oracle, tiny
from tokenreward.checkpoints.checkpoint import Checkpoint, CheckpointRefused
from tokenreward.checkpoints.placement import Placement
from tokenreward.contract import Needs, Row, RowRequest
from tokenreward.forward.language_head import head
from tokenreward.forward.layout import Layout
from tokenreward.forward.packed import PackedLayout
from tokenreward.forward.probe import choose_layout

LM_NEEDS = Needs(temperatures=frozenset({1.0}))
RM_NEEDS = Needs(values=True, attention=frozenset({"last"}))


def probe(model: object, task: str = "causal_lm", lines: list[str] | None = None) -> Layout:
    checkpoint = Checkpoint(model=model, tokenizer=None, task=task)
    needs = LM_NEEDS if task == "causal_lm" else RM_NEEDS
    return choose_layout(checkpoint, needs, say=(lines if lines is not None else []).append)


@pytest.mark.parametrize("architecture", tiny.PACKED)
def test_architectures_of_the_attention_interface_are_served_packed(architecture: str) -> None:
    layout = probe(tiny.model(architecture))
    assert layout.name == "packed"
    assert layout.reason is None
    assert layout.gap.is_within
    assert layout.gap.bound < 1e-3


@pytest.mark.parametrize(
    ("architecture", "name"),
    [*((of, "padded") for of in tiny.PADDED), *((of, "plain") for of in tiny.PLAIN)],
)
def test_others_are_served_padded_or_plain_with_a_reason_and_right_numbers(
    architecture: str, name: str
) -> None:
    lines: list[str] = []
    model = tiny.model(architecture)
    exact = oracle.double(model) if architecture != "mamba" else model
    layout = probe(model, lines=lines)
    assert layout.name == name
    assert layout.reason
    assert layout.reason in lines[-1]
    ids = np.random.default_rng(1).integers(3, tiny.VOCAB_SIZE, size=50)
    (outputs,) = layout.run([RowRequest(Row(ids, 10, 50), LM_NEEDS)])
    rows = oracle.logits(exact, ids)[9:]
    bound = 1e-5 * max(1.0, float(np.abs(rows).max()))
    assert np.abs(outputs.chosen - rows[np.arange(40), ids[10:]]).max() <= bound
    assert np.abs(outputs.lse[1.0] - oracle.logsumexp(rows)).max() <= bound


@pytest.mark.parametrize(
    ("architecture", "name"), [("bert", "packed"), ("roberta", "packed"), ("big_bird", "padded")]
)
def test_a_model_that_computes_between_trunk_and_head_is_read_at_its_head(
    architecture: str, name: str
) -> None:
    model = tiny.model(architecture)
    exact = oracle.double(model)
    layout = probe(model)
    assert layout.name == name
    lengths = (50, 30)
    rows = [np.random.default_rng(size).integers(3, tiny.VOCAB_SIZE, size=size) for size in lengths]
    requests = [RowRequest(Row(ids, 10, len(ids)), LM_NEEDS) for ids in rows]
    for ids, outputs in zip(rows, layout.run(requests), strict=True):
        truth = oracle.logits(exact, ids)[9:]
        bound = 1e-5 * max(1.0, float(np.abs(truth).max()))
        assert np.abs(outputs.chosen - truth[np.arange(len(ids) - 10), ids[10:]]).max() <= bound
        assert np.abs(outputs.lse[1.0] - oracle.logsumexp(truth)).max() <= bound


def test_an_alibi_reward_model_gives_its_own_attention_from_the_padded_layout() -> None:
    model = tiny.model("bloom", "reward_model")
    exact = oracle.double(model)
    layout = probe(model, "reward_model")
    assert layout.name == "padded"
    ids = np.random.default_rng(1).integers(3, tiny.VOCAB_SIZE, size=30)
    (outputs,) = layout.run([RowRequest(Row(ids, 10, 30), RM_NEEDS)])
    assert np.abs(outputs.attention["last"] - oracle.last_attention_row(exact, ids)).max() < 1e-6
    assert np.abs(outputs.values - oracle.head_values(exact, ids)[9:]).max() < 1e-4


def test_dynamic_rotary_rewards_do_not_depend_on_history() -> None:
    layout = probe(tiny.model("llama_dynamic"))
    generator = np.random.default_rng(2)
    short, long = (generator.integers(3, tiny.VOCAB_SIZE, size=size) for size in (40, 60))
    (first,) = layout.run([RowRequest(Row(short, 5, 40), LM_NEEDS)])
    layout.run([RowRequest(Row(long, 5, 60), LM_NEEDS)])
    (again,) = layout.run([RowRequest(Row(short, 5, 40), LM_NEEDS)])
    np.testing.assert_array_equal(first.lse[1.0], again.lse[1.0])


def test_a_logit_scale_that_the_head_does_not_know_is_served_plain_and_exact() -> None:
    model = tiny.model("llama")
    own = type(model).forward

    def forward(self: object, *args: object, **kwargs: object) -> object:
        output = own(self, *args, **kwargs)
        output.logits = output.logits * 1.5
        return output

    model.forward = forward.__get__(model)
    ids = np.random.default_rng(1).integers(3, tiny.VOCAB_SIZE, size=20)
    rows = oracle.logits(model, ids)[4:]
    layout = probe(model)
    assert layout.name == "plain"
    assert "logits by" in str(layout.reason)
    (outputs,) = layout.run([RowRequest(Row(ids, 5, 20), LM_NEEDS)])
    np.testing.assert_allclose(outputs.lse[1.0], oracle.logsumexp(rows), rtol=1e-5)


def test_attention_in_chunks_is_not_packed_but_padded() -> None:
    model = tiny.model("llama")
    model.config.attention_chunk_size = 8
    layout = probe(model)
    assert layout.name == "padded"
    assert "chunks" in str(layout.reason)


def test_a_model_that_reads_beside_a_row_is_served_plain() -> None:
    """Its states hold a little of the mean of all rows of a call, token by token."""
    model = tiny.model("bloom")
    layer = model.transformer.h[0]

    class Looking(type(layer)):  # type: ignore[misc]
        def forward(self, hidden: torch.Tensor, *args: object, **kwargs: object) -> object:
            beside = 0.01 * hidden.mean(dim=0, keepdim=True)
            return super().forward(hidden + beside, *args, **kwargs)

    layer.__class__ = Looking
    layout = probe(model)
    assert layout.name == "plain"
    assert "padded differs from the model's own forward in logits" in str(layout.reason)


def test_a_model_that_gives_nan_is_refused_by_name() -> None:
    model = tiny.model("llama")
    model.lm_head.weight.data[7] = float("nan")
    with pytest.raises(CheckpointRefused, match=r"LlamaForCausalLM.*not finite"):
        probe(model)


def test_in_bf16_a_uniform_attention_row_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """One bound for logits, values and attention alike would let it pass beside large values. The
    padded layout reads the model's own map."""
    model = tiny.model("llama", "reward_model")
    model.score.weight.data *= 8
    assert probe(model.to(torch.bfloat16), "reward_model").name == "packed"
    flat = lambda q, k, bias: torch.full((k.shape[1],), 1 / k.shape[1])  # noqa: E731
    monkeypatch.setattr("tokenreward.forward.attention_weights.last_row", flat)
    model = tiny.model("llama", "reward_model").to(torch.bfloat16)
    layout = probe(model, "reward_model")
    assert layout.name == "padded"
    assert "attention by" in str(layout.reason)


def test_in_bf16_a_state_that_leaks_between_segments_is_found() -> None:
    """A little of the token before, added to the first layer's output: of the row before, where a
    row begins in a packed sequence. bf16's own rounding is not much less."""
    model = tiny.model("llama").to(torch.bfloat16)
    layer = model.model.layers[0]

    class Leaky(type(layer)):  # type: ignore[misc]
        def forward(self, hidden: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
            before = torch.nn.functional.pad(hidden, (0, 0, 1, -1))
            return super().forward(hidden, *args, **kwargs) + 0.01 * before

    layer.__class__ = Leaky
    layout = probe(model)
    assert layout.name == "padded"
    assert "packed differs from the model's own forward in logits" in str(layout.reason)


def test_without_room_for_a_float32_copy_the_coarse_bound_is_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tokenreward.forward.trial._SHARE_OF_FREE_MEMORY", 0.0)
    layout = probe(tiny.model("llama").to(torch.bfloat16))
    assert layout.name == "packed"
    assert layout.gap.bound > 1e-2


def test_a_model_whose_weights_are_still_quantised_is_probed_without_a_float32_copy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """transformers refuses to cast one, and the probe would end there."""
    model = tiny.model("llama").to(torch.bfloat16)
    model.hf_quantizer = object()
    monkeypatch.setattr(type(model), "float", lambda self: pytest.fail("is cast"))
    layout = probe(model)
    assert layout.name == "packed"
    assert layout.gap.bound > 1e-2


def test_the_head_takes_the_fastest_logsumexp_of_a_gpu_and_keeps_a_cpus(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def quick(logits: torch.Tensor) -> torch.Tensor:
        return torch.logsumexp(logits, dim=-1)

    asked: list[tuple[str, tuple[int, int]]] = []
    monkeypatch.setattr(
        head,
        "fastest",
        lambda device, shape: asked.append((device.type, shape)) or (quick, 3.0),
    )
    layouts = {
        device: PackedLayout(
            Checkpoint(
                tiny.model("llama").to(device),
                None,
                "causal_lm",
                Placement((torch.device(device),)),
            )
        )
        for device in ("cpu", "meta")  # which stands for a GPU
    }
    assert [layout.choose_logsumexp() for layout in layouts.values()] == [1.0, 3.0]
    assert asked == [("meta", (1024, tiny.VOCAB_SIZE))]
    assert layouts["cpu"].note == "attention by attend_on_cpu (shares prompts), logsumexp in_place"
    assert layouts["meta"].note == "attention by attend_alone (shares none), logsumexp quick"


def test_a_probe_lets_the_layout_choose_its_logsumexp_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines: list[str] = []
    monkeypatch.setattr(PackedLayout, "choose_logsumexp", lambda layout: 3.0)
    probe(tiny.model("llama"), lines=lines)
    assert "the head's logsumexp is compiled: 3.00 times as fast" in lines

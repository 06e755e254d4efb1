"""A model that looks ahead is refused by name and cause, and so is a map of attention that is not
the one the model mixes by; a decoder passes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    CpmAntConfig,
    FalconConfig,
    Gemma3TextConfig,
    GraniteSWAConfig,
    MiniMaxConfig,
    XLMConfig,
    XLNetConfig,
)

from fakes import oracle, tiny
from tokenreward.checkpoints.checkpoint import CheckpointRefused
from tokenreward.contract import Needs, Reading, Row, RowRequest
from tokenreward.forward import soundness
from tokenreward.forward.layout import Layout
from tokenreward.forward.plain import PlainLayout
from tokenreward.forward.probe import choose_layout

IDS: dict[str, Any] = {"vocab_size": 320, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
SIZES: dict[str, Any] = {
    **IDS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
XLM: dict[str, Any] = {"n_words": 320, "emb_dim": 32, "n_layers": 2, "n_heads": 4, "n_langs": 1}
GEMMA3 = Gemma3TextConfig(
    **SIZES,
    num_key_value_heads=2,
    head_dim=8,
    sliding_window=8,
    query_pre_attn_scalar=8,
    use_bidirectional_attention=True,
)
READINGS: frozenset[Reading] = frozenset({"last", "last_step", "mean_step"})


def random_model(config: Any, task: str = "causal_lm") -> Any:
    torch.manual_seed(0)
    config.num_labels = 1
    auto = AutoModelForCausalLM if task == "causal_lm" else AutoModelForSequenceClassification
    model = auto.from_config(config).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and "conv" not in name:
            parameter.mul_(12.0)
    return model


def probe(model: Any, task: str = "causal_lm", *, attention: bool = False) -> Layout:
    needs = Needs(attention=READINGS if attention else frozenset())
    return choose_layout(tiny.checkpoint(model, task), needs, say=lambda line: None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("config", "task", "cause"),
    [
        (BertConfig(**SIZES), "causal_lm", "`is_decoder: false`"),
        (BertConfig(**SIZES), "reward_model", "`is_decoder: false`"),
        (XLMConfig(**XLM, pad_index=2), "causal_lm", "`causal: false`"),
        (GEMMA3, "causal_lm", "`use_bidirectional_attention: true`"),
        (GEMMA3, "reward_model", "`use_bidirectional_attention: true`"),
        (XLNetConfig(vocab_size=320, d_model=32, n_layer=2, n_head=4), "causal_lm", "`attn_type"),
        (
            CpmAntConfig(
                vocab_size=320,
                hidden_size=32,
                num_attention_heads=4,
                dim_head=8,
                dim_ff=48,
                num_hidden_layers=2,
            ),
            "causal_lm",
            "when it ends earlier",  # its configuration does not say that prefixes look ahead
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_a_model_that_looks_ahead_is_refused_by_name_and_cause(
    config: Any, task: str, cause: str, dtype: torch.dtype
) -> None:
    model = random_model(config, task).to(dtype)
    with pytest.raises(CheckpointRefused, match="does not read from left to right") as refused:
        probe(model, task)
    assert type(model).__name__ in str(refused.value)
    assert cause in str(refused.value)


def test_the_same_classes_are_served_where_they_are_decoders() -> None:
    assert probe(random_model(XLMConfig(**XLM, pad_index=2, causal=True))).gap is not None


def test_without_room_for_a_float32_copy_a_model_that_looks_ahead_is_refused_in_its_own_dtype(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tokenreward.forward.trial._SHARE_OF_FREE_MEMORY", 0.0)
    with pytest.raises(CheckpointRefused, match="does not read from left to right"):
        probe(random_model(GEMMA3).to(torch.bfloat16))


def test_a_model_that_sees_how_long_a_row_is_and_no_later_token_is_refused() -> None:
    model = tiny.model("llama")
    own = type(model).forward

    def forward(self: Any, input_ids: Any, **arguments: Any) -> Any:
        output = own(self, input_ids=input_ids, **arguments)
        output.logits = output.logits * (1 + 1e-3 * input_ids.shape[1])
        return output

    model.forward = forward.__get__(model)
    with pytest.raises(CheckpointRefused, match=r"not read from left to right.*it ends earlier"):
        probe(model)
    model.config.index_topk = 4  # as of models whose attention chooses keys
    with pytest.raises(CheckpointRefused, match=r"`index_topk: 4`.*the length of a row decides"):
        probe(model)


def test_what_a_model_raises_in_a_layout_is_one_line_of_its_reason() -> None:
    model = tiny.model("llama")
    own = type(model.model).forward

    def forward(self: Any, *, position_ids: Any = None, **arguments: Any) -> Any:
        if position_ids is not None:
            raise ValueError("no positions\n" * 1000)
        return own(self, **arguments)

    model.model.forward = forward.__get__(model.model)
    reason = probe(model).reason
    assert reason is not None
    assert "raises ValueError: no positions" in reason
    assert "\n" not in reason


def test_a_models_maps_are_right_where_its_attention_cannot_be_set_when_it_is_loaded() -> None:
    """Falcon chooses its attention when it is made: asked for maps later, it ignores its mask."""
    model = random_model(
        FalconConfig(**IDS, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
    )
    eager = AutoModelForCausalLM.from_config(model.config, attn_implementation="eager")
    eager.load_state_dict(model.state_dict())
    ids = np.random.default_rng(1).integers(3, 320, size=30)
    layout = probe(model, attention=True)
    request = RowRequest(Row(ids, 10, 30), Needs(attention=frozenset({"last"})))
    (outputs,) = layout.run([request])
    truth = oracle.last_attention_row(eager.double().eval(), ids)
    np.testing.assert_allclose(outputs.attention["last"], truth, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "fault"),
    [
        (
            FalconConfig(
                **IDS, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, alibi=True
            ),
            "FalconForCausalLM gives is not the one that it mixes by: with it, the model computes "
            "other states",
        ),
        (
            GraniteSWAConfig(**SIZES, num_key_value_heads=2),
            "its rows sum to 1, without the share that the layer's sinks take",
        ),
        (
            MiniMaxConfig(
                **SIZES,
                num_key_value_heads=2,
                head_dim=8,
                num_local_experts=2,
                num_experts_per_tok=1,
                block_size=16,
                layer_types=["full_attention", "linear_attention"],
            ),
            "the last layer of MiniMaxForCausalLM gives no map",
        ),
    ],
    ids=["bias twice", "sinks left out", "linear last layer"],
)
def test_a_model_whose_maps_are_not_its_own_is_refused_only_where_a_scorer_reads_them(
    config: Any, fault: str
) -> None:
    model = random_model(config)
    with pytest.raises(CheckpointRefused, match=fault):
        probe(model, attention=True)
    assert probe(model).gap is not None


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda weights: weights + 0.01, "later tokens"),
        (lambda weights: weights * 0.9, "do not sum to 1"),
        (lambda weights: weights * 1.1, "no distribution"),
        (lambda weights: 2 * weights - weights.mean(dim=0), "no distribution"),
    ],
)
def test_a_map_that_is_no_causal_distribution_is_refused(
    monkeypatch: pytest.MonkeyPatch, change: Any, fault: str
) -> None:
    right = PlainLayout.attention_map

    def changed(self: PlainLayout, row: Row) -> Any:
        weights, states = right(self, row)
        return change(weights), states

    monkeypatch.setattr(PlainLayout, "attention_map", changed)
    with pytest.raises(CheckpointRefused, match=fault):
        probe(tiny.model("llama"), attention=True)


def test_sinks_may_take_a_share_of_the_attention() -> None:
    model = tiny.model("gpt_oss")
    (request,) = [RowRequest(Row(np.arange(3, 33), 10, 30), Needs(attention=READINGS))]
    soundness.refuse_wrong_map(tiny.checkpoint(model), request)
    for name, parameter in model.named_parameters():
        if "sinks" in name:
            parameter.fill_(50.0)
    soundness.refuse_wrong_map(tiny.checkpoint(model), request)

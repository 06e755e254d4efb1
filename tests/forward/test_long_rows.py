"""A GPU's memory for one long row, counted on `meta` with its kernels and a real model's widths."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.attention.varlen import AuxRequest, varlen_attn
from transformers import AutoModelForSequenceClassification, LlamaConfig

from fakes.far import META, watched
from fakes.live import Live
from tokenreward.checkpoints.checkpoint import Checkpoint
from tokenreward.checkpoints.placement import Placement
from tokenreward.contract import Needs, Row, RowRequest
from tokenreward.forward import attention_weights, packed
from tokenreward.forward.flash import Flash
from tokenreward.forward.kernels import VarlenKernel
from tokenreward.forward.packed import PackedLayout
from tokenreward.forward.patches import MLP_PIECES

LENGTH = 32_768
MOST_BYTES = 2 * 2**30
DENSE = Needs(pooled=True, attention=frozenset({"last"}))
# As wide as Llama 3.1 8B. All layers but the last need the same, so one of them will do.
CONFIG = LlamaConfig(
    hidden_size=4096,
    num_hidden_layers=2,
    num_attention_heads=32,
    num_key_value_heads=8,
    intermediate_size=14_336,
    vocab_size=1000,
    max_position_embeddings=LENGTH,
    pad_token_id=0,
    num_labels=1,
)


@pytest.fixture
def layout(monkeypatch: pytest.MonkeyPatch) -> PackedLayout:
    kernel = VarlenKernel(Flash(varlen_attn, AuxRequest(lse=True)), windows=True)
    monkeypatch.setattr(packed, "choose_kernel", lambda *arguments: kernel)
    monkeypatch.setitem(
        attention_weights.BLOCK_WEIGHTS, "meta", attention_weights.BLOCK_WEIGHTS["cuda"]
    )
    with META:
        model: Any = AutoModelForSequenceClassification.from_config(CONFIG, dtype=torch.bfloat16)
    made = PackedLayout(Checkpoint(model.eval(), None, "reward_model", Placement((META,))))
    assert made.prune_last_layer(True)
    return made


def peak_bytes(layout: PackedLayout, length: int = LENGTH) -> int:
    ids = np.random.default_rng(0).integers(3, 1000, size=length)
    with watched(), Live() as live:
        layout.launch([RowRequest(Row(ids, length // 2, length), DENSE)])
    return live.most


def test_a_row_of_32k_tokens_takes_less_than_2_gib_above_a_model_of_8b(
    layout: PackedLayout,
) -> None:
    at_once = peak_bytes(layout)
    assert layout.split_mlps(MLP_PIECES["cuda"])
    in_pieces = peak_bytes(layout)
    assert in_pieces < MOST_BYTES < at_once


def test_what_a_row_takes_grows_no_faster_than_the_row(layout: PackedLayout) -> None:
    layout.split_mlps(MLP_PIECES["cuda"])
    assert peak_bytes(layout) < 4.2 * peak_bytes(layout, LENGTH // 4)

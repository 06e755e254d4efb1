"""In float32, where rounding hides nothing, the rivals' numbers are ours; and a rival leaves the
model as it was."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bench import workload
from gpu import rivals
from gpu.busy import kind
from gpu.rewards import DENSE
from gpu.shapes import LLAMA_8B, QWEN3_06B, build
from gpu.stand import Stand
from gpu.throughput import LOGITS, agreement
from tokenreward.contract import Needs
from tokenreward.forward.attention import IMPLEMENTATION
from tokenreward.forward.packed import PackedLayout

LENGTHS = [9, 24, 2, 17]


def both(stand: Stand, shape: Any, task: str) -> tuple[Any, PackedLayout]:
    model = build(shape.tiny(), task, stand.clock.device).float()
    return model, PackedLayout(stand.checkpoint(model, task))


@pytest.mark.parametrize("rival", [rivals.by_sdpa, rivals.by_log_softmax])
@pytest.mark.parametrize("shape", [LLAMA_8B, QWEN3_06B], ids=lambda shape: shape.name)
def test_q_and_v_are_ours(stand: Stand, shape: Any, rival: Any) -> None:
    model, layout = both(stand, shape, "causal_lm")
    items = stand.items(LENGTHS, 320)
    ours = layout.run(workload.rows(items, LOGITS))
    theirs = rival(model, [item.ids for item in items], 3)
    assert model.config._attn_implementation == IMPLEMENTATION
    for outputs, (q, v) in zip(ours, theirs, strict=True):
        assert np.abs(outputs.chosen - q).max() < 1e-5
        assert np.abs(outputs.lse[1.0] - v).max() < 1e-5
    assert max(figure.ratio for figure in agreement("x", ours, theirs)) < 1e-5
    shifted = [(np.roll(q, 1), v) for q, v in theirs]
    assert not all(figure.ok for figure in agreement("x", ours, shifted))


def test_scores_and_attention_are_ours(stand: Stand) -> None:
    model, layout = both(stand, LLAMA_8B, "reward_model")
    items = stand.items(LENGTHS, 320)
    ours = layout.run(workload.rows(items, DENSE))
    sequences = [item.ids for item in items]
    for outputs, (score, row) in zip(ours, rivals.with_attentions(model, sequences), strict=True):
        assert abs(outputs.pooled - score) < 1e-5  # type: ignore[operator]
        assert np.abs(outputs.attention["last"] - row).max() < 1e-6
    found, num_computed = rivals.scores(model, sequences, 2)
    assert np.abs(np.array([outputs.pooled for outputs in ours]) - found).max() < 1e-5
    assert num_computed == 2 * 24 + 2 * 17
    assert model.config._attn_implementation == IMPLEMENTATION


def test_every_token_but_the_first_is_scored_unless_a_prompt_is_named(stand: Stand) -> None:
    ((row, _),) = workload.rows(stand.items([9], 320), Needs())
    assert (row.start, row.stop, len(row.ids)) == (1, 9, 9)
    ((row, _),) = workload.rows(stand.items([9], 320, prompt=4), Needs())
    assert (row.start, row.stop) == (4, 9)


@pytest.mark.parametrize(
    ("kernel", "of"),
    [
        ("nvjet_hsh_256x128_64x4_1x2_h_bz_coopA_TNT", "matrix product"),
        (
            "sm90_xmma_gemm_bf16f32_bf16f32_f32_tn_n_tilesize128x128x64_warpgroupsize1x1x1",
            "matrix product",
        ),
        ("void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm_relu>", "matrix product"),
        ("void cublasLt::splitKreduce_kernel<32, 16, int, float, __nv_bfloat16>", "matrix product"),
        (
            "void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<128, "
            "cutlass::bfloat16_t>>",
            "attention",
        ),
        ("fmha_cutlassF_f32_aligned_64x64_rf_sm80(PyTorchMemEffAttention)", "attention"),
        (
            "void at::native::vectorized_elementwise_kernel<4, at::native::silu_kernel>",
            "elementwise and the rest",
        ),
        (
            "void at::native::(anonymous namespace)::CatArrayBatchedCopy<...>",
            "elementwise and the rest",
        ),
        (
            "void at::native::reduce_kernel<512, 1, at::native::ReduceOp<float, MeanOps>>",
            "reduction",
        ),
        ("triton_red_fused_logsumexp_0", "reduction"),
        ("triton_poi_fused_mul_0", "elementwise and the rest"),
        ("Memcpy HtoD (Pinned -> Device)", "copy"),
        ("aten::addmm", "matrix product"),
        ("aten::mm", "matrix product"),
    ],
)
def test_a_kernels_kind_is_read_from_its_name(kernel: str, of: str) -> None:
    assert kind(kernel) == of

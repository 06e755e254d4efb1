"""The tiled language head against float64 on whole logits, and its workspace on shapes larger than
this machine."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fakes.live import Live
from tokenreward.forward.language_head import LanguageHead, half_product, reduction, tiling
from tokenreward.forward.language_head.reduction import (
    compiled,
    fastest,
    in_place,
    merge_tiles,
    reduce_tile,
)
from tokenreward.forward.language_head.tiling import MAX_WORKSPACE_BYTES, largest_tiles

TEMPERATURES, ENTROPIES = [0.7, 1.0, 3.0], [1.0, 2.0]
CPU = torch.device("cpu")


def compiling(function: Any) -> Any:
    """torch.compile needs a C++ compiler on the CPU, and warns of torch's own old parts."""
    marked = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")(function)
    return pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")(marked)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def head(
    *, vocab: int = 37, bias: bool = False, dtype: torch.dtype = torch.float32, **more: Any
) -> LanguageHead:
    weight = drawn(vocab, 16, seed=1).to(dtype)
    return LanguageHead(
        weight,
        drawn(vocab, seed=2).to(dtype) if bias else None,
        **{"scale": 1.0, "softcap": None} | more,
    )


def logits(of: LanguageHead, hidden: Tensor) -> Tensor:
    """Whole, in float64."""
    z = hidden.double() @ of.weight.double().T
    z = (z if of.bias is None else z + of.bias.double()) * of.scale
    return z if of.softcap is None else torch.tanh(z / of.softcap) * of.softcap


def entropy(z: Tensor) -> Tensor:
    return torch.special.entr(z.softmax(dim=-1)).sum(dim=-1)


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several tiles, the last ones incomplete, and several blocks."""
    monkeypatch.setattr(tiling, "TILES", {"cpu": (3, 8), "cuda": (3, 8)})
    monkeypatch.setattr(tiling, "BLOCK_BYTES", 7 * 16 * 4)


SHAPED = [
    {},
    {"bias": True},
    {"scale": 0.3},
    {"softcap": 2.0},
    {"bias": True, "scale": 1.7, "softcap": 3.0},
]


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shaped", SHAPED, ids=str)
def test_normalisers_and_entropies_are_those_of_whole_logits(
    shaped: dict[str, Any], dtype: torch.dtype
) -> None:
    of, hidden = head(dtype=dtype, **shaped), drawn(13, 16).to(dtype)
    before = hidden.clone(), of.weight.clone()
    z = logits(of, hidden)
    for at in (None, torch.tensor([0, 2, 3, 5, 6, 7, 9, 12]), torch.tensor([4])):
        lse, found = of.normalisers(hidden, at, TEMPERATURES, ENTROPIES)
        rows = z if at is None else z[at]
        for k, t in enumerate(TEMPERATURES):
            assert (lse[k] - torch.logsumexp(rows / t, dim=-1)).abs().max() < 1e-5
        for k, t in enumerate(ENTROPIES):
            assert (found[k] - entropy(rows / t)).abs().max() < 1e-5
        assert lse.dtype == found.dtype == torch.float32
    assert torch.equal(hidden, before[0])
    assert torch.equal(of.weight, before[1])


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("shaped", SHAPED, ids=str)
def test_half_precision_is_multiplied_into_float32_without_being_converted(
    shaped: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: torch's own product with an `out_dtype`, which the CPU does not have, stood in
    for."""

    def mm(rows: Tensor, weight: Tensor, *, out_dtype: torch.dtype) -> Tensor:
        assert rows.dtype == weight.dtype == torch.bfloat16
        assert out_dtype == torch.float32
        return rows.float() @ weight.float()

    monkeypatch.setattr(torch, "mm", mm)
    of, hidden = (
        head(dtype=torch.bfloat16, product=half_product, **shaped),
        drawn(13, 16).to(torch.bfloat16),
    )
    lse, found = of.normalisers(hidden, None, TEMPERATURES, ENTROPIES)
    z = logits(of, hidden)
    assert (lse[1] - torch.logsumexp(z, dim=-1)).abs().max() < 1e-5
    assert (found[0] - entropy(z)).abs().max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shaped", SHAPED, ids=str)
def test_a_chosen_logit_is_an_exact_dot(
    shaped: dict[str, Any], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "tokenreward.forward.language_head.head.GATHERED_BYTES", {"cpu": 5 * 16 * 4}
    )
    of, hidden = head(dtype=dtype, **shaped), drawn(13, 16).to(dtype)
    at, targets = (
        torch.tensor([0, 12, 3, 3, 3, 7, 8, 9, 10, 11, 1]),
        torch.tensor([36, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
    )
    found = of.token_logits(hidden, at, targets)
    assert found.dtype == torch.float32
    assert (found - logits(of, hidden)[at, targets]).abs().max() < 1e-5
    assert of.token_logits(hidden, at[:0], targets[:0]).shape == (0,)


@pytest.mark.usefixtures("small_tiles")
def test_weights_are_converted_once_for_all_rows_of_a_block() -> None:
    of, hidden, converted = head(dtype=torch.bfloat16), drawn(12, 16).to(torch.bfloat16), 0

    class Count(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            nonlocal converted
            out = func(*args, **(kwargs or {}))
            if func.overloadpacket.__name__ in ("to", "_to_copy") and args[0].shape in (
                (8, 16),
                (5, 16),
            ):
                converted += 1
            return out

    with Count():
        of.normalisers(hidden, None, [1.0], [])
    assert converted == 5  # 37 columns in tiles of 8; 12 rows in tiles of 3, which are one block


def test_a_tile_without_any_finite_logit_has_no_part() -> None:
    z = drawn(4, 12) * 3
    z[:, :4] = -torch.inf
    z[1, 5:] = -torch.inf
    parts = [
        reduce_tile(part.clone(), TEMPERATURES, ENTROPIES) for part in torch.split(z, 4, dim=1)
    ]
    lse, found = merge_tiles(torch.stack(parts), len(TEMPERATURES))
    for k, t in enumerate(TEMPERATURES):
        assert (lse[k] - torch.logsumexp(z.double() / t, dim=-1)).abs().max() < 1e-5
    for k, t in enumerate(ENTROPIES):
        assert (found[k] - entropy(z.double() / t)).abs().max() < 1e-5


def assert_exact(of: reduction.LogSumExp) -> None:
    for shape in ((5, 300), (1, 40), (7, 1), (64, 4097)):
        z = drawn(*shape) * 20
        z[0, :] = -torch.inf
        z[-1, : shape[1] // 2] = -torch.inf
        expected = torch.logsumexp(z.double(), dim=-1)
        found = of(z.clone())
        assert torch.equal(found.isinf(), expected.isinf())
        assert (found - expected).nan_to_num().abs().max() < 1e-5
    assert of(torch.tensor([[0.0, torch.inf]])).item() == torch.inf
    assert of(torch.tensor([[0.0, torch.nan]])).isnan()


def test_the_logsumexp_in_place_is_exact() -> None:
    assert_exact(in_place)


@compiling
def test_the_compiled_logsumexp_is_exact_and_the_faster_one_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert_exact(compiled)
    assert reduction._gain(drawn(64, 512)) > 0
    monkeypatch.setattr(reduction, "_gain", lambda logits: 2.0)
    assert fastest(CPU, (16, 64)) == (compiled, 2.0)
    monkeypatch.setattr(reduction, "_gain", lambda logits: 1.04)
    assert fastest(CPU, (16, 64)) == (in_place, 1.0)


@pytest.mark.parametrize(
    "fault",
    [lambda z: torch.logsumexp(z, dim=-1) + 1e-3, lambda z: z[:, 0] * torch.nan, None],
    ids=["off_by_a_thousandth", "nan", "fails"],
)
def test_a_compiled_logsumexp_that_is_wrong_or_fails_is_not_taken(
    monkeypatch: pytest.MonkeyPatch, fault: Any
) -> None:
    monkeypatch.setattr(reduction, "_gain", lambda logits: 2.0)
    monkeypatch.setattr(reduction, "_compile", lambda: fault)
    assert fastest(CPU, (16, 64)) == (in_place, 1.0)


def live_bytes(of: LanguageHead, num_rows: int, monkeypatch: pytest.MonkeyPatch, tiles: str) -> int:
    """At worst, beyond what is given and found."""
    monkeypatch.setitem(tiling.TILES, "meta", tiling.TILES[tiles])
    hidden = torch.empty(num_rows + 1, of.weight.shape[1], dtype=of.weight.dtype, device="meta")
    at = torch.empty(num_rows, dtype=torch.int64, device="meta")
    with torch.inference_mode(), Live() as live:
        found = of.normalisers(hidden, at, [0.7, 1.0], [1.0]), of.token_logits(hidden, at, at)
    results = sum(leaf.numel() * 4 for leaf in tree_leaves(found))
    assert live.most > results
    return live.most - results


def real(hidden_size: int, vocab_size: int, how: str) -> LanguageHead:
    dtype = torch.float32 if how == "float32" else torch.bfloat16
    weight = torch.empty(vocab_size, hidden_size, dtype=dtype, device="meta")
    return LanguageHead(
        weight, weight[:, 0], 0.5, 30.0, product=half_product if how == "half" else None
    )


@pytest.mark.parametrize(
    ("hidden_size", "vocab_size"),
    [(1024, 151_936), (4096, 128_256), (8192, 64_000), (16_384, 32_768), (64, 100_000), (48, 7)],
)
@pytest.mark.parametrize("tiles", ["cpu", "cuda"])
@pytest.mark.parametrize("how", ["half", "converted", "float32"])
def test_the_workspace_is_bounded_whatever_the_model(
    how: str, tiles: str, hidden_size: int, vocab_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = real(hidden_size, vocab_size, how)
    size = vocab_size, hidden_size, of.weight.element_size()
    rows, _, _ = largest_tiles(tiles, size, 4, converts=how == "converted")
    num_rows = 2 * rows + 1
    assert live_bytes(of, num_rows, monkeypatch, tiles) <= MAX_WORKSPACE_BYTES


@pytest.mark.parametrize("num_rows", [1, 4000, 8000, 16_000])
def test_the_workspace_is_bounded_whatever_the_batch(
    num_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (
        live_bytes(real(4096, 128_256, "half"), num_rows, monkeypatch, "cuda")
        <= MAX_WORKSPACE_BYTES
    )


def test_the_watch_on_the_workspace_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tiling.TILES, "meta", (5000, 32_000))
    of = LanguageHead(torch.empty(32_000, 256, device="meta"), None, 1.0, None)
    with torch.inference_mode(), Live() as live:
        of.normalisers(torch.empty(5000, 256, device="meta"), None, [1.0], [])
    assert live.most > MAX_WORKSPACE_BYTES


def test_a_gpus_tiles_of_real_models_are_of_full_size() -> None:
    for hidden_size, vocab_size in ((1024, 151_936), (4096, 128_256)):
        rows, columns, block = largest_tiles(
            "cuda", (vocab_size, hidden_size, 2), 1, converts=False
        )
        assert (rows, columns) == (1024, 8192)
        assert block % rows == 0


def test_a_checkpoints_head_takes_the_product_of_its_device() -> None:
    of = head(dtype=torch.bfloat16)
    assert of.product is None
    assert replace(of, product=half_product).tile_shape == (1024, 37)

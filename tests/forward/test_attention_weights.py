"""Readings of attention from q and k: against whole maps in float64, and without ever holding a
map."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from fakes import tiny
from fakes.live import Live
from tokenreward.checkpoints.checkpoint import Checkpoint
from tokenreward.contract import Needs, Row, RowRequest
from tokenreward.forward import attention_weights
from tokenreward.forward.attention_weights import Bias, read
from tokenreward.forward.packed import PackedLayout
from tokenreward.forward.plain import has_dropped_keys, read_map

READINGS = ("last", "last_step", "mean_step")
PLAIN = Bias(scaling=0.4, window=None, softcap=None, sinks=None)
BIASES = {
    "plain": PLAIN,
    "window 1": replace(PLAIN, window=1),
    "window 3": replace(PLAIN, window=3),
    "window 20": replace(PLAIN, window=20),
    "window longer than the row": replace(PLAIN, window=500),
    "softcap": replace(PLAIN, softcap=0.7),
    "sinks": replace(PLAIN, sinks=torch.tensor([0.5, -1.0, 3.0, 0.0])),
    "all": Bias(scaling=0.4, window=20, softcap=0.7, sinks=torch.tensor([0.5, -1.0, 3.0, 0.0])),
}
# n, start, stop: one response token, all but the first, a suffix behind, a prompt that is longer
# than the windows
SPANS = ((2, 1, 2), (9, 8, 9), (70, 1, 70), (75, 30, 70), (90, 60, 90))


@dataclass(frozen=True)
class Heads:
    """Queries and keys of one layer."""

    q: torch.Tensor
    k: torch.Tensor


def drawn(n: int, *, heads: int = 4, kv_heads: int = 2, size: float = 1.5) -> Heads:
    torch.manual_seed(n)
    return Heads(size * torch.randn(heads, n, 6), torch.randn(kv_heads, n, 6))


def whole_map(what: Heads, bias: Bias) -> tuple[np.ndarray, np.ndarray]:
    """Mean over heads [n, n] in float64, entry by entry, and what each query may see."""
    q, k = what.q.double().numpy(), what.k.double().numpy()
    n, maps = q.shape[1], []
    sees = np.array(
        [
            [j <= i and (bias.window is None or i - j < bias.window) for j in range(n)]
            for i in range(n)
        ]
    )
    for head in range(len(q)):
        scores = bias.scaling * q[head] @ k[head // (len(q) // len(k))].T
        if bias.softcap is not None:
            scores = bias.softcap * np.tanh(scores / bias.softcap)
        sink = [] if bias.sinks is None else [float(bias.sinks[head])]
        rows = []
        for i in range(n):
            seen = np.array([*scores[i][sees[i]], *sink])
            weights = np.exp(seen - seen.max()) / np.exp(seen - seen.max()).sum()
            rows.append(np.zeros(n))
            rows[-1][sees[i]] = weights[: sees[i].sum()]
        maps.append(rows)
    return np.mean(maps, axis=0), sees


def truth(what: Heads, bias: Bias, row: Row) -> dict[str, np.ndarray]:
    full, sees = whole_map(what, bias)
    means = []
    for j in range(row.start, row.stop):
        paid = [full[i, j] for i in range(row.start, row.stop - 1) if sees[i, j]]
        means.append(np.mean(paid) if paid else 0.0)
    return {"last": full[-1], "last_step": full[row.stop - 2], "mean_step": np.array(means)}


@pytest.fixture(params=["many blocks", "one block"])
def _block_sizes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "many blocks":
        monkeypatch.setattr(attention_weights, "BLOCK_WEIGHTS", {"cpu": 1})
        monkeypatch.setattr(attention_weights, "FEWEST_QUERIES", 7)


@pytest.mark.usefixtures("_block_sizes")
@pytest.mark.parametrize("span", SPANS, ids=str)
@pytest.mark.parametrize("bias", BIASES.values(), ids=BIASES)
def test_readings_are_those_of_the_whole_map(bias: Bias, span: tuple[int, int, int]) -> None:
    n, start, stop = span
    what, row = drawn(n), Row(np.arange(n), start, stop)
    found = read(what.q, what.k, bias, row, READINGS)
    for reading, expected in truth(what, bias, row).items():
        assert found[reading].dtype == torch.float32
        np.testing.assert_allclose(found[reading].numpy(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("window", "size", "dtype"),
    [(None, 60.0, torch.float32), (None, 20.0, torch.float16), (20, 40.0, torch.float32)],
)
def test_a_map_with_weights_rounded_to_zero_is_read_alike(
    window: int | None, size: float, dtype: torch.dtype
) -> None:
    """A zero is not a token that cannot be seen: who counts non-zero entries gets another mean."""
    bias = replace(PLAIN, window=window)
    what, row = drawn(80, size=size), Row(np.arange(80), 10, 80)
    expected = truth(what, bias, row)["mean_step"]
    rounded = torch.from_numpy(whole_map(what, bias)[0]).to(dtype).float().numpy()
    assert not has_dropped_keys(torch.from_numpy(rounded)[None])
    steps = rounded[10:79, 10:80]
    by_non_zero = steps.sum(axis=0) / np.maximum(np.count_nonzero(steps, axis=0), 1)
    assert np.abs(by_non_zero - expected).max() > 1e-3
    np.testing.assert_allclose(read_map(rounded, row, "mean_step"), expected, rtol=0, atol=1e-5)
    ours = read(what.q, what.k, bias, row, ["mean_step"])["mean_step"]
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5)


def test_a_row_without_a_response_has_no_steps() -> None:
    what = drawn(5)
    assert read(what.q, what.k, PLAIN, Row(np.arange(5), 5, 5), ["mean_step"])[
        "mean_step"
    ].shape == (0,)


LONG, NUM_HEADS = 4096, 4
ALL_STEPS = Needs(attention=frozenset({"last_step", "mean_step"}))


@pytest.fixture(params=["llama", "mistral", "gpt_oss"])
def long_pass(request: pytest.FixtureRequest) -> Callable[[], object]:
    """Runs a row of 4096 tokens; one of the models has no window in its last layer, two have."""
    checkpoint = Checkpoint(tiny.model(request.param), None, "causal_lm")
    layout = PackedLayout(checkpoint)
    ids = np.random.default_rng(0).integers(3, tiny.VOCAB_SIZE, size=LONG)
    layout.run([RowRequest(Row(ids[:50], 1, 50), ALL_STEPS)])
    return lambda: layout.run([RowRequest(Row(ids, 1, LONG), ALL_STEPS)])


def test_no_tensor_of_tokens_by_tokens_is_made(long_pass: Callable[[], object]) -> None:
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest = max(largest, out.numel())
            return out

    with Watch():
        long_pass()
    assert 0 < largest <= LONG * LONG / 8  # the model's own layers make [tokens, 384]


def test_what_lives_at_a_time_is_less_than_a_map(long_pass: Callable[[], object]) -> None:
    a_map = NUM_HEADS * LONG * LONG * 4
    with Live() as live:
        torch.ones(a_map // 4)
    assert live.most == a_map  # the measure measures
    with Live() as live:
        long_pass()
    assert 0 < live.most < a_map / 4

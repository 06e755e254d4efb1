"""Has modules of a model compute another way: same numbers, less time or less memory.

There are three patches: float32 linears through oneDNN, MLPs in pieces of the tokens, and a last
layer that computes some tokens only. All of them put a `forward` on a module, where it hides the
one of its class (`replace_forward`). Whether a patched model still gives its own numbers is for a
caller to measure. This module knows modules and tensors, and no rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

Linear = Callable[[Tensor, Tensor, Tensor | None], Tensor]  # (x, W, b) to x W^T + b

# The trial of oneDNN: rows that are multiplied, repetitions, and the gain that makes it worth it.
_NUM_ROWS = 256
_NUM_TRIALS = 5
WORTH = 1.05

# Rows that oneDNN is given: multiples of 8 up to 128 rows, of 32 up to 512, of 64 up to 2048, and
# of 128 beyond.
_STEPS = {128: 8, 512: 32, 2048: 64}
_COARSE_STEP = 128

# Tokens that an MLP takes at a time. On a CPU, 4096 tokens at once took 8 % more of a small model's
# time, nearly all of it for pages of fresh memory. On a GPU it is for memory alone: between the
# layers of an MLP, 32k tokens of a model of 8B at once would take 3 GB. Not yet timed.
MLP_PIECES = {"cpu": 512, "cuda": 8192}

_LAYER_PARTS = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}


def replace_forward(module: Any, forward: Callable[..., Any] | None) -> None:
    """Has a module compute through `forward`; None gives it back the forward of its class."""
    vars(module).pop("forward", None)
    if forward is not None:
        module.forward = forward


def torch_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W^T + b by torch's own choice. For float32 that is MKL, which is slow on some CPUs."""
    return functional.linear(x, weight, bias)


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W^T + b through oneDNN.

    The operator is private to torch: a caller tries it first (`onednn_agrees`), and can always do
    without it. It gets one of few numbers of rows (`padded_rows`). If x has another, rows of zeros
    are put behind it, and their products are left out. This copies x, which took 5 to 10 % of the
    time, so callers give it the right number where they can.
    """
    rows = x.reshape(-1, x.shape[-1])
    num_rows = len(rows)
    num_added = padded_rows(num_rows) - num_rows
    if num_added:
        rows = functional.pad(rows, (0, 0, 0, num_added))
    product: Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
    return product[:num_rows].view(*x.shape[:-1], len(weight))


def padded_rows(num_rows: int) -> int:
    """The next number of rows for which oneDNN is let compile: 68 up to 4096.

    For every number of rows that it meets, oneDNN compiles code, about half a MiB per linear layer
    of another shape, and keeps the code of the last 1024. With every batch of another length a
    process grew by 3 MiB a batch, to twice its size. In a trial with 112 numbers of rows most of
    the time was spent on compiling, too. The rows added are 3 % on average.
    """
    step = _COARSE_STEP
    for limit, fine_step in _STEPS.items():
        if num_rows <= limit:
            step = fine_step
            break
    return -(-num_rows // step) * step


def patch_linears(model: nn.Module, linear: Linear | None) -> None:
    """Has the float32 linear layers on the CPU compute through `linear`; None undoes it."""
    for layer in _float32_linears(model):
        replace_forward(layer, None)
        if linear is not None:
            replace_forward(layer, lambda x, of=layer: linear(x, of.weight, of.bias))


def onednn_agrees(model: nn.Module) -> bool:
    """Whether oneDNN gives the numbers of torch on the model's largest float32 linear layer.

    It does not if the model has no such layer, or if this torch or this CPU has no such operator.
    """
    try:
        with torch.inference_mode():
            x, weight = _trial(model)
            ours, theirs = onednn_linear(x, weight, None), torch_linear(x, weight, None)
            return float((ours - theirs).abs().max()) <= 1e-5 * max(1.0, float(theirs.abs().max()))
    except Exception:  # whatever it raises means the same: no such operator, or no such layer
        return False


def onednn_gain(model: nn.Module) -> float | None:
    """How many times as fast as torch oneDNN is on the model's largest float32 linear layer.

    It takes some 50 ms on one thread.

    Returns:
        The ratio of the median times; None if oneDNN does not agree or is not worth it.
    """
    if not onednn_agrees(model):
        return None
    seconds: dict[Linear, list[float]] = {torch_linear: [], onednn_linear: []}
    with torch.inference_mode():
        x, weight = _trial(model)
        for _ in range(_NUM_TRIALS):
            for linear, times in seconds.items():  # in turns, so that both meet the same machine
                began = time.perf_counter()
                linear(x, weight, None)
                times.append(time.perf_counter() - began)
    gain = median(seconds[torch_linear]) / median(seconds[onednn_linear])
    return gain if gain >= WORTH else None


def _float32_linears(model: nn.Module) -> list[nn.Linear]:
    """The float32 linear layers on the CPU. A subclass may mean something else by its forward."""
    linears = [module for module in model.modules() if type(module) is nn.Linear]
    return [
        layer
        for layer in linears
        if layer.weight.dtype == torch.float32 and layer.weight.device.type == "cpu"
    ]


def _trial(model: nn.Module) -> tuple[Tensor, Tensor]:
    """Rows to multiply, and the weight of the largest float32 linear layer.

    Raises:
        ValueError: The model has no such layer.
    """
    weight = max((layer.weight for layer in _float32_linears(model)), key=lambda w: w.numel())
    generator = torch.Generator().manual_seed(0)
    shape = _NUM_ROWS, weight.shape[1]
    rows = torch.randn(shape, generator=generator, dtype=torch.float32)
    return rows.to(weight.device), weight


def split_mlps(trunk: Any, num_tokens: int | None) -> bool:
    """Has the MLP of every layer take so many tokens at a time; None undoes it.

    What is between the layers of an MLP then stays in a CPU's cache, and a long row takes little
    more of a GPU's memory than its hidden states. That a layer has an `mlp` does not mean that it
    treats every token by itself: a caller measures before it trusts.

    Returns:
        Whether the trunk has such MLPs.
    """
    layers = getattr(trunk, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        return False
    mlps = [getattr(layer, "mlp", None) for layer in layers]
    modules = [mlp for mlp in mlps if isinstance(mlp, nn.Module)]
    for mlp in modules:
        replace_forward(mlp, None)
        if num_tokens is not None:
            replace_forward(mlp, partial(_in_pieces, mlp.forward, num_tokens))
    return bool(modules)


def _in_pieces(
    forward: Callable[[Tensor], Tensor], num_tokens: int, hidden_states: Tensor
) -> Tensor:
    """What `forward` gives of hidden states [1, n, h], `num_tokens` of them at a time."""
    if hidden_states.shape[1] <= num_tokens:
        return forward(hidden_states)
    out = torch.empty_like(hidden_states)
    for left in range(0, hidden_states.shape[1], num_tokens):
        piece = slice(left, left + num_tokens)
        # The piece is cut out of [n, h]: of a batch of matrices, torch would take a slower path.
        out[0, piece] = forward(hidden_states[0, piece][None])[0]
    return out


def prunable_last_layer(trunk: Any) -> nn.Module | None:
    """The last layer of a trunk, if it has the parts that `pruning` needs.

    These are a norm, an attention, a norm and an MLP, as most decoders have them. That a layer has
    these parts does not mean that it adds them to the residual as `pruning` does: a caller measures
    before it trusts.
    """
    layers = getattr(trunk, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        return None
    parts = {name for name, _ in layers[-1].named_children()}
    return layers[-1] if parts == _LAYER_PARTS else None


@contextmanager
def pruning(layer: Any, places: Tensor) -> Iterator[None]:
    """Within it, a last layer gives the hidden states [1, m, h] at some places [m] only.

    Its attention reads all tokens. What follows the attention is computed at these places alone,
    because no later layer reads the others.
    """

    def forward(hidden_states: Tensor, **arguments: Any) -> Tensor:
        normed = layer.input_layernorm(hidden_states)
        attended = layer.self_attn(hidden_states=normed, **arguments)[0]
        residual: Tensor = hidden_states[:, places] + attended[:, places]
        added: Tensor = layer.mlp(layer.post_attention_layernorm(residual))
        return residual + added

    replace_forward(layer, forward)
    try:
        yield
    finally:
        replace_forward(layer, None)

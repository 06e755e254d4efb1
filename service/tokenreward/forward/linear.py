"""Float32 linear layers on the CPU through oneDNN, where that is faster than torch's own choice and
as exact.

torch multiplies float32 with MKL, which is slow on some CPUs. The oneDNN operator is private to
torch, so it is tried on the model's own shapes first, for time and for equality, and is never the
only path. It knows modules and tensors.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

Linear = Callable[[Tensor, Tensor, Tensor | None], Tensor]

_NUM_ROWS = 256
_NUM_TRIALS = 5
_WORTH = 1.05


def plain(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """torch's own x W^T + b."""
    return functional.linear(x, weight, bias)


def onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The same through oneDNN."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product


def faster(model: nn.Module) -> float | None:
    """How many times faster oneDNN is on the model's largest float32 layer; None if it is not, or
    not equal, or absent.

    Takes some 50 ms of a thread.
    """
    if not agrees(model):
        return None
    with torch.inference_mode():
        gain = _gain(*_largest(model))
    return gain if gain >= _WORTH else None


def agrees(model: nn.Module) -> bool:
    """Whether oneDNN is there and equal on the model's largest float32 layer, however fast; False
    if it has none."""
    try:
        with torch.inference_mode():
            x, weight = _largest(model)
            ours, theirs = onednn(x, weight, None), plain(x, weight, None)
            return float((ours - theirs).abs().max()) <= 1e-5 * max(1.0, float(theirs.abs().max()))
    # whatever it raises means the same: this torch or this CPU has no such operator, or no layer
    except Exception:
        return False


def swap(model: nn.Module, linear: Linear | None) -> None:
    """Lets the model's float32 linear layers compute through `linear`; None gives them back their
    own."""
    for module in model.modules():
        if _is_swappable(module):
            vars(module).pop("forward", None)
            if linear is not None:
                module.forward = _through(linear, module)


def _largest(model: nn.Module) -> tuple[Tensor, Tensor]:
    """Rows to multiply, and the weight of the largest layer. Raises ValueError if there is none."""
    weights: list[Tensor] = [module.weight for module in model.modules() if _is_swappable(module)]  # type: ignore[misc]
    weight = max(weights, key=lambda tensor: tensor.numel())
    return torch.randn(
        _NUM_ROWS, weight.shape[1], generator=torch.Generator().manual_seed(0)
    ), weight


def _through(linear: Linear, module: Any) -> Callable[[Tensor], Tensor]:
    return lambda x: linear(x, module.weight, module.bias)


def _is_swappable(module: Any) -> bool:
    # A subclass may mean something else by its forward.
    return (
        type(module) is nn.Linear
        and module.weight.dtype == torch.float32
        and module.weight.device.type == "cpu"
    )


def _gain(x: Tensor, weight: Tensor) -> float:
    """Median time of torch's own over that of oneDNN, taken in turns."""
    seconds: dict[Linear, list[float]] = {plain: [], onednn: []}
    for _ in range(_NUM_TRIALS):
        for linear, taken in seconds.items():
            began = time.perf_counter()
            linear(x, weight, None)
            taken.append(time.perf_counter() - began)
    return median(seconds[plain]) / median(seconds[onednn])

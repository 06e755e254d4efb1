"""The model's own forward, ready beside a model that serves: how far the layout is from it is
measured again when other weights have been copied in.

A layout changes the model that it runs: the attention is another, linear layers and MLPs compute
through other functions. So a second tree of modules is made before that. It shares every tensor
with the first one and takes no memory for weights. It computes what the model as it was loaded
would give of the weights that are there now. The probe's rows go through it one by one, so that
batches can run in between. This module knows no requests and no threads.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tokenreward.checkpoints.checkpoint import Checkpoint
from tokenreward.contract import Outputs, RowRequest
from tokenreward.forward.layout import Gap, Layout
from tokenreward.forward.plain import PlainLayout
from tokenreward.forward.trial import (
    Trial,
    coarse_bounds,
    exact_trial,
    own_numbers,
    trial_in_dtype,
)


class OwnForward:
    """The own forward of a model that serves.

    Args:
        served: The model, as it was loaded: no layout has changed it yet.
        requests: The random rows of the probe.

    Attributes:
        is_exact: Whether the truth is computed in float32. If not, the model serves in another
            dtype, and there was no room for a float32 copy of it at load.
    """

    def __init__(self, served: Checkpoint, requests: Sequence[RowRequest]) -> None:
        self.is_exact = True
        self._served = served
        self._requests = requests
        self._own = replace(served, model=second_tree(served.model))

    def gaps(
        self,
        layout: Layout,
        view: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> Iterator[Gap | None]:
        """Measures how far a layout is from the own forward of the weights that are there now, as
        the probe does it at load.

        Args:
            layout: The layout that runs the served model.
            view: Gives a context within which the layout may run (see `pair.view`).

        Yields:
            None after each part of the work but the last, which takes as long as one row or a
            small batch; then the gap. The served model is left as it is.

        Raises:
            CheckpointRefused: The own forward fails, or gives numbers that are not finite.
            Exception: Whatever the layout raises.
        """
        if self._served.task == "reward_model":  # the affine is in the head, and no tensor
            head, ours = self._served.value_head, self._own.value_head
            ours.mean, ours.std = head.mean, head.std
        plain = PlainLayout(self._own)
        naive: list[Outputs] = []
        for request in self._requests:
            naive += own_numbers(self._own, plain, [request])
            yield None
        if self._served.model.dtype == torch.float32:
            trial = exact_trial(self._requests, naive)
        elif self.is_exact:
            truth: list[Outputs] = []
            for request in self._requests:
                with in_float32(self._own.model):
                    truth += plain.run([request])
                yield None
            trial = trial_in_dtype(self._requests, naive, truth)
        else:
            trial = Trial(self._requests, naive, coarse_bounds(self._own, naive))
        if isinstance(layout, PlainLayout):
            yield trial.gap_of(naive)
        else:
            with view():
                gap = trial.gap(layout)
            yield gap


def second_tree(model: Any) -> Any:
    """A copy of a model's modules and configuration that shares every tensor with the model.

    Raises:
        Exception: A part of the model cannot be copied.
    """
    shared: dict[int, Any] = {}
    for module in model.modules():
        own = [*module._parameters.values(), *module._buffers.values(), *vars(module).values()]
        shared |= {id(value): value for value in own if isinstance(value, Tensor)}
    return copy.deepcopy(model, shared)


@contextmanager
def in_float32(model: nn.Module) -> Iterator[None]:
    """Within it, a model computes in float32, just as a float32 copy of it would.

    What is outside of the layers, norms and heads mostly, has float32 tensors all the time: a model
    may ask for the dtype of its head before it calls the head. Each layer and each embedding has
    them while it runs, so there is one of these at a time. The model's own tensors are not touched,
    but others stand in their places meanwhile: nobody else may use this tree of modules.

    Args:
        model: The model, in any dtype.
    """
    with ExitStack() as stack:
        in_parts: set[nn.Module] = set()
        for part in _parts(model):
            in_parts.update(part.modules())
            wide = _Wide(list(part.modules()))
            hooks = [
                part.register_forward_pre_hook(wide.enter),
                part.register_forward_hook(wide.leave, always_call=True),
            ]
            for hook in hooks:
                stack.callback(hook.remove)
        rest = _Wide([module for module in model.modules() if module not in in_parts])
        rest.enter()
        stack.callback(rest.leave)
        yield


def _parts(model: nn.Module) -> Iterator[nn.Module]:
    """The layers, and the embeddings outside of them."""
    in_layers: set[nn.Module] = set()
    for module in model.modules():  # the outermost first
        if module in in_layers:
            continue
        if isinstance(module, nn.Embedding):
            yield module
        elif isinstance(module, nn.ModuleList):
            for layer in dict.fromkeys(module):
                if not isinstance(layer, nn.ModuleList | nn.ModuleDict):  # these are never called
                    in_layers.update(layer.modules())
                    yield layer


class _Wide:
    """Gives modules float32 tensors from `enter` to `leave`, both of which may be hooks."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._modules = modules
        # Where a tensor is, by the name that it has there.
        self._narrow: list[tuple[dict[str, Any], str, Tensor]] = []

    def enter(self, *_: object) -> None:
        """Puts float32 copies in the places of the tensors that have another dtype."""
        copies: dict[int, Tensor] = {}
        for module in self._modules:
            places: list[dict[str, Any]] = [module._parameters, module._buffers]
            for tensors in places:
                for name, tensor in tensors.items():
                    if tensor is None or not tensor.is_floating_point():
                        continue
                    if tensor.dtype != torch.float32:
                        self._narrow.append((tensors, name, tensor))
        for tensors, name, tensor in self._narrow:
            if id(tensor) not in copies:  # tied tensors stay one
                wide = tensor.detach().float()
                if isinstance(tensor, nn.Parameter):
                    wide = nn.Parameter(wide, requires_grad=False)
                copies[id(tensor)] = wide
            tensors[name] = copies[id(tensor)]

    def leave(self, *_: object) -> None:
        """Puts the tensors back."""
        for tensors, name, tensor in self._narrow:
            tensors[name] = tensor
        self._narrow.clear()

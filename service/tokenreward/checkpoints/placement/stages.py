"""Puts a model on its devices: all of it on one, or its layers over several.

Of a split model, the last device has the last layers, and all that is computed behind them: the
last norm and the heads. A head that shares its weight with the embedding gets a copy of its own.
This module knows no architecture by name. What runs behind the last layer is observed in a pass.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tokenreward.checkpoints.placement.moves import Arrivals
from tokenreward.checkpoints.placement.placement import Placement
from tokenreward.checkpoints.placement.split import cut
from tokenreward.checkpoints.refusal import CheckpointRefused, one_line

_NUM_TOKENS = 6  # of the pass that is observed
_SHARE_FOR_WEIGHTS = 0.9  # of a GPU's free memory


def trunk_of(model: Any) -> Any:
    """A model without its head."""
    base = model.base_model
    if base is model and model.get_output_embeddings() is not None:
        # Llama 4's class, for one, does not say which part of it is the trunk.
        return getattr(model, "model", base)
    return base


def place(
    model: Any, devices: tuple[torch.device, ...], starts: Sequence[tuple[int, ...]] = ()
) -> Placement:
    """Moves a model to its devices. A model on several of them gets hooks that move what its layers
    read; a model on one device gets none.

    Args:
        model: The model, with its heads and its adapter.
        devices: One device, or one for each part.
        starts: What `streaming` has yielded: the first layer of each part, if parts of the model
            are on their devices already. The last one is of this model.

    Raises:
        CheckpointRefused: The model cannot be split, or does not fit.
    """
    if len(devices) == 1:
        model.to(devices[0])
        return Placement(devices)
    placement = Placement(devices, starts[-1] if starts else choose_starts(model, devices))
    layers = find_layers(model)
    trunk, in_layers = trunk_of(model), set(layers.modules())
    outer = [module for module in trunk.modules() if module not in in_layers]
    _refuse_shared_weights(model, outer, layers, placement)
    for index, layer in enumerate(layers):
        layer.to(placement.of(index))
    in_trunk = {id(parameter) for parameter in trunk.parameters()}
    for module in outer:
        _move(module, placement.first)
    for module in set(model.modules()) - set(trunk.modules()):
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in in_trunk:
                copy = parameter.detach().to(placement.last)
                module.register_parameter(name, nn.Parameter(copy, requires_grad=False))
        _move(module, placement.last)
    arrivals = {device: Arrivals(device, {*devices} - {device}) for device in devices}
    _hook(trunk, layers, placement, arrivals)
    _move_end(model, outer, placement, arrivals[placement.last])
    return placement


def refuse_split(model: Any, devices: Sequence[torch.device]) -> None:
    """Refuses several devices for a model whose own class scores whole rows. Raises
    CheckpointRefused."""
    if len(devices) > 1:
        raise CheckpointRefused(
            f"{type(model).__name__} scores whole rows, and its layers cannot be split over "
            f"{len(devices)} GPUs: set `num_gpus: 1`"
        )


def find_layers(model: Any) -> nn.ModuleList:
    """The layers of a model's trunk. Raises CheckpointRefused if it has no list of them."""
    trunk = trunk_of(model)
    layers = getattr(trunk, "layers", None)
    if isinstance(layers, nn.ModuleList):
        return layers
    num_layers = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    lists = {
        name: module
        for name, module in trunk.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == num_layers
    }
    # A layer may have as many experts as the model has layers.
    prefixes = tuple(f"{name}." for name in lists)
    outermost = {name: lists[name] for name in lists if not name.startswith(prefixes)}
    if len(outermost) > 1:  # a tower for images may have as many: the language model has the ids
        embedding = model.get_input_embeddings()
        paths = (name for name, module in trunk.named_modules() if module is embedding)
        beside = next(paths, "").rpartition(".")[0]
        outermost = {name: each for name, each in outermost.items() if name.startswith(beside)}
    if len(outermost) != 1:
        raise CheckpointRefused(
            f"{type(model).__name__} has no list of layers that could be split over several GPUs: "
            "set `num_gpus: 1`"
        )
    return next(iter(outermost.values()))


def choose_starts(model: Any, devices: Sequence[torch.device]) -> tuple[int, ...]:
    """The first layer of each device. The weights need not be loaded yet.

    Raises:
        CheckpointRefused: There are fewer layers than devices, or the weights do not fit.
    """
    layers, num_devices = find_layers(model), len(devices)
    if len(layers) < num_devices:
        raise CheckpointRefused(
            f"it has {len(layers)} layers for {num_devices} GPUs: set `num_gpus: {len(layers)}`"
        )
    parameters = [list(layer.parameters()) for layer in layers]
    sizes = [_num_bytes(of_layer) for of_layer in parameters]
    head = model.get_output_embeddings()
    of_head = [] if head is None else list(head.parameters())
    ids_of_head = {id(parameter) for parameter in of_head}
    rest = [each for each in trunk_of(model).parameters() if id(each) not in ids_of_head]
    fixed = [0] * num_devices
    fixed[0] = _num_bytes(rest) - sum(sizes)
    if ids_of_head & {id(parameter) for parameter in trunk_of(model).parameters()}:
        fixed[0] += _num_bytes(of_head)  # tied: the embedding is the same tensor
    fixed[-1] += _num_bytes(of_head)
    rooms = [room_for_weights(device) for device in devices]
    starts = cut(
        [_num_parameters(of_layer) for of_layer in parameters],
        sizes,
        head=_num_parameters(of_head),
        fixed_bytes=fixed,
        rooms=rooms,
    )
    if starts is None:
        raise CheckpointRefused(
            f"its weights take {(sum(sizes) + sum(fixed)) / 2**30:.1f} GiB, and {num_devices} GPUs "
            f"have room for {sum(rooms) / 2**30:.1f} GiB of weights: `num_gpus` must be larger"
        )
    return starts


def room_for_weights(device: torch.device) -> float:
    """Bytes that weights may take on a device; infinity if it is no GPU."""
    if device.type != "cuda":
        return math.inf
    return _SHARE_FOR_WEIGHTS * torch.cuda.mem_get_info(device)[0]


def _num_bytes(parameters: Sequence[nn.Parameter]) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in parameters)


def _num_parameters(parameters: Sequence[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def _refuse_shared_weights(
    model: Any, outer: Sequence[nn.Module], layers: nn.ModuleList, placement: Placement
) -> None:
    """Raises CheckpointRefused if a weight would have to be on two devices."""
    device_of: dict[int, torch.device] = {}
    for module in outer:
        for parameter in module.parameters(recurse=False):
            device_of[id(parameter)] = placement.first
    for index, layer in enumerate(layers):
        for parameter in layer.parameters():
            device = device_of.setdefault(id(parameter), placement.of(index))
            if device != placement.of(index):
                raise CheckpointRefused(
                    f"layers of {type(model).__name__} share weights, and cannot be split over "
                    f"{len(placement.devices)} GPUs: set `num_gpus: 1`"
                )


def _move(module: nn.Module, device: torch.device) -> None:
    """Moves a module's own parameters and buffers, and not those of its children."""
    for parameter in module.parameters(recurse=False):
        parameter.data = parameter.data.to(device)
    for name, buffer in module.named_buffers(recurse=False):
        setattr(module, name, buffer.to(device))


def _hook(
    trunk: nn.Module,
    layers: nn.ModuleList,
    placement: Placement,
    arrivals: Mapping[torch.device, Arrivals],
) -> None:
    """Has every layer behind the first device get its arguments on its own device."""
    # The trunk itself has one, too: after a pass, the last GPU is the current device.
    trunk.register_forward_pre_hook(arrivals[placement.first], with_kwargs=True)
    for each in arrivals.values():
        trunk.register_forward_hook(each.forget, always_call=True)
    for index in range(placement.starts[1], len(layers)):
        layers[index].register_forward_pre_hook(arrivals[placement.of(index)], with_kwargs=True)


def _move_end(
    model: Any, outer: Sequence[nn.Module], placement: Placement, arrivals: Arrivals
) -> None:
    """Runs a few tokens, and moves what runs behind the last layer to the last device.

    So are parts of the model that the trunk does not call: a head that was put on a trunk.

    Args:
        model: The model, whose layers are on their devices.
        outer: The modules of its trunk that are in no layer, on the first device.
        placement: The devices.
        arrivals: The pre-hook of modules on the last device.

    Raises:
        CheckpointRefused: The model cannot be run so.
    """
    num_tokens = min(_NUM_TOKENS, model.get_input_embeddings().weight.shape[0] - 1)
    ids = torch.arange(1, num_tokens + 1).to(placement.first)[None]
    try:
        early, late = _observe_end(model, outer, ids, placement.last, arrivals)
    except Exception as error:  # the model's own code, or torch's, raises errors of all kinds
        raise CheckpointRefused(
            f"{type(model).__name__} cannot be split over {len(placement.devices)} GPUs: "
            f"{one_line(error)}; set `num_gpus: 1`"
        ) from error
    for module in late:
        module.register_forward_pre_hook(arrivals, with_kwargs=True)
    spoken_for = early | {find_layers(model)}
    for child in model.children():
        if not spoken_for.intersection(child.modules()):
            child.to(placement.last)


@torch.inference_mode()
def _observe_end(
    model: Any,
    outer: Sequence[nn.Module],
    ids: Tensor,
    device: torch.device,
    arrivals: Arrivals,
) -> tuple[set[nn.Module], set[nn.Module]]:
    """Runs the trunk. What it calls behind its last layer is moved to a device as it is called.

    Returns:
        The modules that it called before, the trunk among them, and those that were moved.
    """
    trunk = trunk_of(model)
    early: set[nn.Module] = {trunk}
    late: set[nn.Module] = set()
    is_behind = False

    def leave(*_: Any) -> None:
        nonlocal is_behind
        is_behind = True

    def enter(module: nn.Module, args: Any, kwargs: Any) -> Any:
        if not is_behind:
            early.add(module)
        if module in early:
            return None
        late.add(module)
        _move(module, device)
        return arrivals(module, args, kwargs)

    handles = [find_layers(model)[-1].register_forward_hook(leave)]
    handles += [module.register_forward_pre_hook(enter, with_kwargs=True) for module in outer]
    try:
        trunk(input_ids=ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return early, late

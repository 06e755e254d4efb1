"""Has transformers put each weight on its device as it reads it, for a model on several devices.

Weights are read, cast and merged one after the other. So a model that is larger than the host's
memory can be loaded, too. transformers has an argument for this (`device_map`), which needs
accelerate and puts accelerate's hooks on the model. These hooks hide the forward of a module, as
our patches do, so either would undo the other. This module therefore gives the map to the function
that reads the weights. Without such a function, models are read into the host's memory and moved.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedModel

from tokenreward.checkpoints.placement.stages import choose_starts, find_layers

_READ = "_load_pretrained_model"


@contextmanager
def streaming(devices: Sequence[torch.device]) -> Iterator[list[tuple[int, ...]]]:
    """Within it, `from_pretrained` reads the weights of each model to these devices.

    Args:
        devices: The devices. With one of them nothing changes.

    Yields:
        A list that gets the first layers of the devices, for each model that is read.
    """
    all_starts: list[tuple[int, ...]] = []
    original = vars(PreTrainedModel).get(_READ)
    if len(devices) == 1 or not isinstance(original, staticmethod):
        yield all_starts
        return

    def read(model: Any, state_dict: Any, files: Any, config: Any, *more: Any, **rest: Any) -> Any:
        starts = choose_starts(model, devices)
        all_starts.append(starts)
        config = replace(config, device_map=_device_map(model, devices, starts))
        return original.__func__(model, state_dict, files, config, *more, **rest)

    setattr(PreTrainedModel, _READ, staticmethod(read))
    try:
        yield all_starts
    finally:
        setattr(PreTrainedModel, _READ, original)


def _device_map(
    model: Any, devices: Sequence[torch.device], starts: Sequence[int]
) -> dict[str, torch.device]:
    """The device of each layer and of the head by their names; that of all else by the name ""."""
    layers, head = find_layers(model), model.get_output_embeddings()
    names = {module: name for name, module in model.named_modules()}
    device_map = {"": devices[0]}
    if head is not None:
        device_map[names[head]] = devices[-1]
    stops = [*starts[1:], len(layers)]
    for device, start, stop in zip(devices, starts, stops, strict=True):
        device_map |= {f"{names[layers]}.{index}": device for index in range(start, stop)}
    return device_map

"""Which device each layer of a model is on.

A model on several GPUs is a pipeline: the first GPU has the embedding and the first layers, the
last one the last layers and the heads. This module knows devices and numbers of layers. It moves
nothing: that is for `stages` and `moves`.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

import torch

from tokenreward.checkpoints.refusal import CheckpointRefused
from tokenreward.settings import DeploymentSettings


@dataclass(frozen=True, slots=True)
class Placement:
    """The devices of a model, in the order in which a pass goes through them.

    Attributes:
        devices: Each device once. Default: the CPU alone.
        starts: The first layer of each device, ascending, from 0.
    """

    devices: tuple[torch.device, ...] = (torch.device("cpu"),)
    starts: tuple[int, ...] = (0,)

    @property
    def first(self) -> torch.device:
        """Where token ids and positions go."""
        return self.devices[0]

    @property
    def last(self) -> torch.device:
        """Where the last hidden states, the heads, and what reads them are."""
        return self.devices[-1]

    @property
    def is_split(self) -> bool:
        """Whether there are several devices."""
        return len(self.devices) > 1

    @property
    def num_ahead(self) -> int:
        """How many passes are launched behind the oldest unanswered one: one for each GPU.

        Of N GPUs, N - 1 passes keep the others at work while one GPU computes, and one more is
        there while the host packs. A CPU computes within the launch.
        """
        return len(self.devices) if self.first.type == "cuda" else 0

    @property
    def note(self) -> str:
        """Which layers are where, in words."""
        parts = zip(self.starts, self.devices, strict=True)
        return "layers " + ", ".join(f"from {start} on {device}" for start, device in parts)

    def of(self, layer: int) -> torch.device:
        """The device of a layer, by its number from 0."""
        return self.devices[bisect_right(self.starts, layer) - 1]


ON_CPU = Placement()


def choose_devices(settings: DeploymentSettings) -> tuple[torch.device, ...]:
    """The devices that a deployment's model is placed on: the GPUs that Ray granted, or the CPU.

    `auto` is a GPU if one is visible and the deployment reserves one, and the CPU otherwise.

    Raises:
        CheckpointRefused: Some GPUs are visible, and fewer than the settings want; or none is
            visible, and `device` is `cuda`.
    """
    if settings.device == "cpu" or (settings.device == "auto" and not settings.num_gpus):
        return (torch.device("cpu"),)
    # At least one GPU: for a share of one, and for device `cuda` without a reservation.
    num_wanted = max(1, int(settings.num_gpus))
    num_visible = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if num_visible >= num_wanted:
        return tuple(torch.device("cuda", index) for index in range(num_wanted))
    if num_visible:
        raise CheckpointRefused(
            f"deployment `{settings.name}` wants {num_wanted} GPUs (`num_gpus`), and torch sees "
            f"{num_visible}"
        )
    if settings.device == "cuda":
        raise CheckpointRefused(
            f"deployment `{settings.name}` wants device `cuda` and torch sees none"
        )
    return (torch.device("cpu"),)

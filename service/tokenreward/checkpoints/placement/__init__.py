"""Where the parts of a model are: all on one device, or its layers spread over several GPUs."""

from tokenreward.checkpoints.placement.placement import ON_CPU, Placement, choose_devices

__all__ = ["ON_CPU", "Placement", "choose_devices"]

"""The last decoder layer on the wanted tokens only: what follows its attention is nobody's business
elsewhere.

It serves layers that are a norm, an attention, a norm and an MLP, each added to the residual,
whatever model they are of. That a layer has these parts does not mean that it adds them up so: a
caller compares before it trusts. It knows modules and places, and no rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

_PARTS = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}


class LastLayer:
    """The last layer of a trunk. Make one with `of`."""

    def __init__(self, layer: Any) -> None:
        self._layer = layer

    @classmethod
    def of(cls, trunk: Any) -> LastLayer | None:
        """None if the trunk's last layer has other parts."""
        layers = getattr(trunk, "layers", None)
        if (
            not isinstance(layers, nn.ModuleList)
            or {name for name, _ in layers[-1].named_children()} != _PARTS
        ):
            return None
        return cls(layers[-1])

    @contextmanager
    def on(self, places: Tensor) -> Iterator[None]:
        """Within it, the layer gives [1, m, h], the hidden states at these places alone."""
        layer = self._layer

        def forward(hidden_states: Tensor, **arguments: Any) -> Tensor:
            attended = layer.self_attn(
                hidden_states=layer.input_layernorm(hidden_states), **arguments
            )[0]
            wanted: Tensor = hidden_states[:, places] + attended[:, places]
            added: Tensor = layer.mlp(layer.post_attention_layernorm(wanted))
            return wanted + added

        layer.forward = forward
        try:
            yield
        finally:
            del layer.forward

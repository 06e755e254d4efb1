"""A LoRA adapter on a loaded model (Hu et al. 2021, 2106.09685): added in place, and switched off
around a pass.

    W x becomes W x + s B A x, and W x again while it is switched off

s is alpha / r, or alpha / sqrt(r) of rank-stabilised LoRA (Kalajdzievski 2023, 2312.03732). DoRA
(Liu et al. 2024, 2402.09353) also learns the norms of the rows. Modules that were trained as a
whole (PEFT's `modules_to_save`: embeddings, heads) stand beside the base's own and are switched
with the rest.

The base's weights stay where they are and the model keeps its class. So a policy and the reference
it was tuned from are one copy in memory, and the switched-off pass is the base's own, bit for bit.
What PEFT would silently drop or change (parts of the configuration, weights without a place) is
refused. It knows PEFT's files and no architecture; a value head among an adapter's weights is for
`reward_model` to take.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tokenreward.checkpoints.adapter_config import CONFIG, READ, REMEDY, refuse_config
from tokenreward.checkpoints.mapped_files import own_memory
from tokenreward.checkpoints.refusal import CheckpointRefused, few
from tokenreward.checkpoints.weight_files import find, find_value_head, read_tensor, read_tensors

_SAFE, _PICKLED = "adapter_model.safetensors", "adapter_model.bin"
_PREFIX = "base_model.model."  # PEFT's, before the model's own names
_SCALED_B = "scaled_lora_b"  # where `low_rank` leaves its product on a layer


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """A LoRA adapter as read from its files.

    Attributes:
        name: The folder or hub repository.
        config: The fields of its configuration that say which function it is.
        tensors: Its weights, by the names of the model that it was trained on.
        value_head: The tensors of the file `value_head.safetensors`, which LLaMA-Factory writes
            beside the adapter of a reward model or of a policy that it trained with PPO.
        base: The base that it says it was trained on, if it says so.
    """

    name: str
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    value_head: dict[str, Tensor]
    base: str | None

    @classmethod
    def read(cls, name: str, *, revision: str | None, allow_pickle: bool) -> Adapter:
        """From a folder or the hub.

        Raises:
            CheckpointRefused: It is no adapter, or one that cannot be served.
            OSError: The folder or the hub could not be read. A damaged file raises the error of
                safetensors or torch.
        """
        path = find(name, CONFIG, revision=revision)
        if path is None:
            raise CheckpointRefused(f"`adapter` `{name}` has no {CONFIG}")
        config = json.loads(path.read_text(encoding="utf-8"))
        refuse_config(name, config)
        candidates = [_SAFE, _PICKLED] if allow_pickle else [_SAFE]
        weights = find(name, *candidates, revision=revision)
        if weights is None:
            raise CheckpointRefused(f"`adapter` `{name}` has no {' or '.join(candidates)}")
        tensors = {
            key.removeprefix(_PREFIX): tensor for key, tensor in read_tensors(weights).items()
        }
        head = find_value_head(name, revision=revision, allow_pickle=allow_pickle)
        return cls(
            name,
            {key: config[key] for key in READ & set(config)},
            tensors,
            {key: read_tensor(file, key) for key, file in head.items()},
            config.get("base_model_name_or_path") or None,
        )

    @property
    def whole_weights(self) -> dict[str, Tensor]:
        """Its weights that stand in place of the base's, or that the base lacks: all that are not
        LoRA's matrices, and not the value head's file."""
        return {key: tensor for key, tensor in self.tensors.items() if ".lora_" not in key}

    def holds(self, module: str) -> bool:
        """Whether weights of a module of this name stand in place of the base's, or beside it."""
        return any(key.startswith(f"{module}.") for key in [*self.whole_weights, *self.value_head])

    def add_to(self, model: Any, *, except_for: Collection[str] = ()) -> None:
        """Puts the adapter on the model, in the dtype of the model's weights.

        DoRA's magnitudes stay in float32: they stand for the norms of the base's weights, and
        rounded would lose what was learned.

        Args:
            model: The base, whole or its trunk alone.
            except_for: Names of weights that are already in the model: a value head's.

        Raises:
            CheckpointRefused: One of its weights has no place in the model, or a place gets no
                weight.
        """
        from peft import LoraConfig  # not needed where no deployment has an adapter
        from peft.functional import inject_adapter_in_model, set_peft_model_state_dict

        target = self._target(model)
        present = " ".join(f".{name}" for name in except_for)
        modules = [
            entry
            for entry in self.config.get("modules_to_save") or ()
            if f".{entry}." not in present
        ]
        tensors = self._placed_tensors(target, modules, except_for)
        try:
            config = LoraConfig(
                **{**self.config, "modules_to_save": modules or None}, inference_mode=True
            )
            inject_adapter_in_model(config, target, low_cpu_mem_usage=True)
            result = set_peft_model_state_dict(target, tensors, low_cpu_mem_usage=True)
            for name, parameter in target.named_parameters():
                if "lora_magnitude_vector" in name:
                    parameter.data = tensors[name.removesuffix(".default.weight")].float()
        except Exception as error:
            # PEFT and torch raise errors of all kinds for modules and shapes that do not fit.
            raise CheckpointRefused(
                f"`adapter` `{self.name}` does not fit the model: {error}"
            ) from error
        if result.unexpected_keys:
            raise CheckpointRefused(
                f"`adapter` `{self.name}` holds {few(sorted(result.unexpected_keys))}, which the "
                "model has no place for"
            )
        empty = sorted(name for name, parameter in target.named_parameters() if parameter.is_meta)
        if empty:
            raise CheckpointRefused(
                f"`adapter` `{self.name}` does not hold {few(empty)}, which its configuration names"
            )

    def _target(self, model: Any) -> nn.Module:
        """The module in which the adapter's names are those of modules: the model, or a holder of
        its trunk.

        An adapter is trained on a model with a head, whose trunk has a name (`model.layers.0`).
        Where the trunk was loaded alone its names lack that part (`layers.0`), and PEFT's patterns
        over names of modules would not match.
        """
        holder = nn.ModuleDict({model.base_model_prefix or "model": model.base_model})
        names = {key.split(".lora_", 1)[0].split(".base_layer", 1)[0] for key in self.tensors}
        candidates: list[nn.Module] = [model, holder, model.base_model]
        for candidate in candidates:
            if names.intersection(name for name, _ in candidate.named_modules()):
                return candidate
        return candidates[0]

    def _placed_tensors(
        self, target: nn.Module, modules: Sequence[str], except_for: Collection[str]
    ) -> dict[str, Tensor]:
        """LoRA's matrices, and the weights of whole modules in the dtype of the base's.

        Plain copies of the base's weights are dropped: PEFT stores the weight under an adapted
        embedding or head, too.

        Args:
            target: Where the adapter is put.
            modules: The ends of the names of modules that were trained as a whole.
            except_for: Names of weights to leave out.

        Raises:
            CheckpointRefused: A weight stands in place of the base's and belongs to none of these
                modules, or has another shape, or is missing.
        """
        parameters = dict(target.named_parameters(remove_duplicate=False))
        whole: dict[str, Tensor] = {}
        for name, module in target.named_modules(remove_duplicate=False):
            if name.endswith(tuple(modules)):  # PEFT's own rule
                whole |= {f"{name}.{key}": weight for key, weight in module.named_parameters()}
        placed, others = {}, []
        for key, tensor in self.tensors.items():
            if key in except_for:
                continue
            base = parameters.get(key.replace(".base_layer.", "."))
            if ".lora_" in key:
                placed[key] = tensor
            elif key in whole:
                placed[key] = tensor.to(whole[key].dtype)
            elif base is None or not torch.equal(base, tensor.to(base)):
                others.append(key)
        if others:
            raise CheckpointRefused(
                f"`adapter` `{self.name}` holds {few(sorted(others))}, weights in place of the "
                f"base's. {REMEDY}"
            )
        for key, weight in whole.items():
            shape = list(placed[key].shape) if key in placed else "none"
            if shape != list(weight.shape):
                raise CheckpointRefused(
                    f"`modules_to_save` of `adapter` `{self.name}` wants {key} {list(weight.shape)}"
                    f", as the base has it; the adapter holds {shape}. {REMEDY}"
                )
        return placed


def lora_layers(model: Any) -> list[Any]:
    """PEFT's layers of a model, which hold the parts of its adapter: LoRA's matrices, and whole
    modules beside the base's own."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    kinds = (BaseTunerLayer, AuxiliaryTrainingWrapper)
    return [module for module in model.modules() if isinstance(module, kinds)]


def merge_head(model: Any, name: str) -> None:
    """Adds LoRA's product to the weight of one Linear of the model, which is then a plain Linear
    again. Nothing happens if that module has no adapter."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layer = getattr(model, name, None)
    if isinstance(layer, BaseTunerLayer):
        own_memory(layer)  # else the mapped pages of the base's file would be written to
        layer.merge()
        setattr(model, name, layer.get_base_layer())


def low_rank(layer: Any) -> tuple[Tensor, Tensor] | None:
    """What LoRA adds to one Linear while the adapter is on: A [r, in] and s B [out, r].

    None if the layer has no adapter, or it is off, or what it adds is no such product: DoRA's, or
    one with a bias or a part for other rows.
    """
    if not getattr(layer, "lora_A", None) or layer.disable_adapters:
        return None
    (name,) = layer.lora_A
    if layer.lora_variant or layer.lora_bias[name]:
        return None
    return layer.lora_A[name].weight, _scaled_b(layer, name)


def _scaled_b(layer: Any, name: str) -> Tensor:
    """s B, one tensor for all who ask. It is on the layer, so that `follow_low_rank` finds it."""
    scaled_b: Tensor = layer.lora_B[name].weight * layer.scaling[name]
    before: Tensor | None = vars(layer).get(_SCALED_B)
    if before is not None and (before.dtype, before.device) == (scaled_b.dtype, scaled_b.device):
        before.copy_(scaled_b)
        return before
    setattr(layer, _SCALED_B, scaled_b)
    return scaled_b


def follow_low_rank(model: Any) -> None:
    """Computes again, in place, what `low_rank` gave of the layers of a model: their B is another
    one."""
    for layer in model.modules():
        if _SCALED_B in vars(layer):
            (name,) = layer.lora_A
            _scaled_b(layer, name)


@contextmanager
def without_adapter(layers: Sequence[Any]) -> Iterator[None]:
    """Within it, the model that these layers belong to is its base. Its adapter is on before and
    after, whatever happens within.

    Args:
        layers: All of the model's `lora_layers`.

    Raises:
        RuntimeError: The layers do not say that they are off.
    """
    # PEFT's `enable_adapters` would also walk all parameters for `requires_grad`, some 50 ms in a
    # model of 32 layers.
    try:
        for layer in layers:
            layer._disable_adapters = True
        if not all(layer.disable_adapters for layer in layers):
            raise RuntimeError("this version of PEFT switches adapters off in another way")
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False

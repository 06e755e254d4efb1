"""LoRA adapters of tiny models as PEFT saves them, and the base with s B A added to its weights,
without PEFT."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file

from fakes import tiny

RANK, ALPHA = 4, 6


def save(
    folder: Path,
    architecture: str = "llama",
    task: str = "causal_lm",
    *,
    seed: int = 1,
    **options: Any,
) -> Path:
    """An adapter that changes the model a lot, on every Linear of its layers unless told
    otherwise."""
    options = {"r": RANK, "lora_alpha": ALPHA, "target_modules": "all-linear", **options}
    with _quiet():
        wrapped = get_peft_model(tiny.model(architecture, task), LoraConfig(**options))
        torch.manual_seed(seed)
        for name, parameter in wrapped.named_parameters():
            if "magnitude" in name:
                parameter.data *= 1 + 0.1 * torch.randn_like(parameter)
            elif ".lora_" in name or ".modules_to_save." in name:
                torch.nn.init.normal_(parameter, std=0.2)
        wrapped.save_pretrained(folder)
    return folder


def save_prompt(folder: Path) -> Path:
    """An adapter of another kind: three virtual tokens."""
    with _quiet():
        prompt = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
        get_peft_model(tiny.model("llama"), prompt).save_pretrained(folder)
    return folder


def as_peft_has_it(folder: Path, architecture: str = "llama", task: str = "causal_lm") -> Any:
    """The adapter on its base, by PEFT's own loader."""
    with _quiet():
        return PeftModel.from_pretrained(tiny.model(architecture, task), folder).eval()


@contextmanager
def _quiet() -> Iterator[None]:
    """PEFT asks transformers for an attribute that it is about to lose."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def config(folder: Path, **changes: Any) -> None:
    """Changes the configuration of a saved adapter."""
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def forget(folder: Path) -> None:
    """Sets B to zero: an adapter as it is before training."""
    file = folder / "adapter_model.safetensors"
    tensors = {name: tensor * ("lora_B" not in name) for name, tensor in load_file(file).items()}
    save_file(tensors, file)


def merged(model: Any, folder: Path) -> Any:
    """The base with s B A added to its weights in place, s = alpha / r. Plain LoRA only."""
    tensors = load_file(folder / "adapter_model.safetensors")
    for name, a in tensors.items():
        if name.endswith("lora_A.weight"):
            place = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            module = model.get_submodule(place)
            delta = ALPHA / RANK * (tensors[name.replace("lora_A", "lora_B")].double() @ a.double())
            transposed = type(module).__name__ == "Conv1D"
            module.weight.data = (module.weight.double() + (delta.T if transposed else delta)).to(
                module.weight.dtype
            )
    return model

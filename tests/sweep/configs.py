"""Tiny configurations of every architecture: the default one of its class, with all sizes small.

The sizes are written by the names that configurations share. What an architecture's own checks want
beside them stands in `OWN`. It builds no models.
"""

from __future__ import annotations

from typing import Any

from transformers import CONFIG_MAPPING

from fakes import tiny

NUM_LAYERS = 4
WINDOW = 16
# By the field of a configuration. Fields that a class does not have are left out.
SIZES: dict[str, Any] = {
    "vocab_size": tiny.VOCAB_SIZE,
    "bos_token_id": tiny.BOS_ID,
    "eos_token_id": tiny.END_ID,
    "pad_token_id": tiny.PAD_ID,
    "hidden_size": 32,
    "d_model": 32,
    "n_embd": 32,
    "dim": 32,
    "emb_dim": 32,
    "embedding_size": 32,
    "word_embed_proj_dim": 32,
    "pooler_hidden_size": 32,
    "cross_attention_hidden_size": None,
    "intermediate_size": 48,
    "shared_intermediate_size": 48,
    "shared_expert_intermediate_size": 24,
    "moe_intermediate_size": 24,
    "intermediate_size_mlp": 48,
    "dense_intermediate_size": 48,
    "mlp_intermediate_size": 48,
    "block_ff_dim": 48,
    "ffn_hidden_size": 48,
    "ffn_dim": 48,
    "d_ff": 48,
    "dff": 48,
    "dim_ff": 48,
    "n_inner": 48,
    "decoder_ffn_dim": 48,
    "encoder_ffn_dim": 48,
    "num_hidden_layers": NUM_LAYERS,
    "n_layer": NUM_LAYERS,
    "n_layers": NUM_LAYERS,
    "num_layers": NUM_LAYERS,
    "decoder_layers": NUM_LAYERS,
    "encoder_layers": NUM_LAYERS,
    "num_decoder_layers": NUM_LAYERS,
    "num_mem_blocks": 1,
    "num_attention_heads": 4,
    "n_head": 4,
    "n_heads": 4,
    "num_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_attention_heads": 4,
    "num_decoder_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "d_kv": 8,
    "d_inner": 32,
    "dim_head": 8,
    "d_embed": 32,
    "max_position_embeddings": 512,
    "n_positions": 512,
    "n_ctx": 512,
    "max_seq_len": 512,
    "max_sequence_length": 512,
    "sliding_window": WINDOW,
    "attention_window": WINDOW,
    "window_size": WINDOW,
    "attention_chunk_size": WINDOW,
    # Above the rows, as in real ones it is above the rows of a probe: tiny indexers score many
    # tokens 0, and which of them a top-k keeps depends on the length of the row.
    "index_topk": 512,
    "query_pre_attn_scalar": 8,
    # Latent attention.
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "index_head_dim": 16,
    "index_n_heads": 2,
    # Experts.
    "num_local_experts": 4,
    "num_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "num_experts_per_token": 2,
    "experts_per_token": 2,
    "moe_k": 2,
    "moe_topk": 2,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "num_expert_group": 1,
    "first_k_dense_replace": 1,
    "expert_ffn_hidden_size": 24,
    "zero_expert_num": 2,
    # State-space and linear attention.
    "state_size": 8,
    "ssm_state_size": 8,
    "mamba_d_state": 8,
    "mamba_n_heads": 4,
    "mamba_num_heads": 4,
    "mamba_d_head": 16,
    "mamba_head_dim": 16,
    "mamba_dt_rank": 4,
    "mamba_expand": 2,
    "mamba_d_ssm": 64,
    "mamba_n_groups": 1,
    "n_groups": 1,
    "time_step_rank": 4,
    "chunk_size": WINDOW,
    "mamba_chunk_size": WINDOW,
    "lru_width": 32,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    # Others.
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": tiny.VOCAB_SIZE,
    "global_head_dim": 16,
    "num_kv_shared_layers": 0,
    "rotary_dim": 4,
    "block_size": 8,
    "axial_pos_shape": [16, 32],
    "axial_pos_embds_dim": [8, 24],
    "relative_attention_num_buckets": 8,
}
VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "depth": 1,
    "num_attention_heads": 4,
    "num_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "image_size": 28,
    "patch_size": 14,
    "out_hidden_size": 32,
    "adapter_out_dim": 32,
    "projection_dim": 32,
    "output_proj_dims": 32,
    "num_position_embeddings": 16,
    "deepstack_visual_indexes": [0],
}
_SPECIAL_TOKENS = {
    "image_token_id": 300,
    "image_token_index": 300,
    "video_token_id": 301,
    "audio_token_id": 302,
    "boi_token_id": 303,
    "eoi_token_id": 304,
    "boa_token_id": 305,
}
# What a configuration's own checks, or its layers, want beside the sizes.
_ROPE = {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}
_HYBRID = {"layer_types": ["linear_attention", "full_attention"] * 2}
OWN: dict[str, dict[str, Any]] = {
    "bailing_hybrid": _HYBRID,
    "bamba": {"attn_layer_indices": [1, 3]},
    "blt": {"encoder_hash_byte_group_vocab": 64},
    "blt_local_decoder": {"hidden_size_global": 32},
    "blt_local_encoder": {"hidden_size_global": 32},
    "cohere_compass_text": {"rope_parameters": _ROPE},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "dots3_note_audio_encoder": {"adapter_input_size": 32},
    "dots3_note_vision_encoder": {"mlp_layer_types": ["dense"], "adapter_in_dim": 32},
    "esmc": {"num_key_value_heads": 4},
    "gemma4_assistant": {"hidden_size_per_layer_input": 0},
    "layoutlmv3": {"coordinate_size": 4, "shape_size": 8},  # four and two of them in a state
    "lilt": {"hidden_size": 48, "channel_shrink_ratio": 4, "max_2d_position_embeddings": 32},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "granitemoehybrid": _HYBRID,
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": _HYBRID,
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "mamba2": {"num_heads": 8},
    "roc_bert": {"pronunciation_vocab_size": 32, "shape_vocab_size": 32},
    "xmod": {"default_language": "en_XX"},
    "mistral4": {"qk_head_dim": 16, "head_dim": 16},
    "mpnet": {"relative_attention_num_buckets": 32},  # its layers know no other number
    # As for `index_topk`, every block of a row is chosen.
    "qwen4_exp_text": {
        "layer_types": ["linear_attention", "indexed_attention"] * 2,
        "hc_lowrank": 8,
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 512,
        "indexer_compress_ratio": 4,
    },
    "t5": {"decoder_start_token_id": tiny.PAD_ID},
    "zamba": {"layers_block_type": ["linear_attention", "hybrid"] * 2},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid"] * 2},
    "zaya": {"num_experts_per_tok": 1},
}
_LEFT_OUT = {
    "dbrx": {"num_key_value_heads"},
    "funnel": {"num_hidden_layers"},
    "prophetnet": {"num_hidden_layers"},
    "xlnet": {"max_position_embeddings"},
}
# Why no model of a type is built here.
WHY_NOT_BUILT = {
    "gemma3n": "its image tower needs timm and pillow, which are no dependencies of the tests",
    "gemma4_assistant": "it drafts for another model, and reads that model's keys and values",
    "gemma4_unified_assistant": "it drafts for another model, and reads its keys and values",
    "layoutlmv2": "its image tower needs detectron2, which is no dependency of the tests",
    "musicgen": "it reads and predicts audio codes, several at each position, and no text",
    "musicgen_melody": "it reads and predicts audio codes, several at each position, and no text",
}


def tiny_config(model_type: str, **fields: Any) -> Any:
    """A small configuration of a model type.

    Args:
        model_type: As in config.json.
        fields: Further fields, for this one.

    Raises:
        Exception: The class refuses the sizes.
    """
    cls = CONFIG_MAPPING[model_type]
    config = cls(**{**_fields(cls, SIZES), **OWN.get(model_type, {}), **fields})
    for name, value in fields.items():
        setattr(config, name, value)
    return config


def _fields(cls: Any, sizes: dict[str, Any]) -> dict[str, Any]:
    """The sizes that a class has, those of its parts included."""
    default = cls()
    parts: dict[str, Any] = {}
    for name, part in (getattr(cls, "sub_configs", None) or {}).items():
        own = getattr(default, name, None)
        if own is None:
            continue
        part = type(own)
        reads_text = "text" in name or "decoder" in name or name == "encoder"
        reads_text = reads_text or "thinker" in name or cls.model_type == "blt"
        parts[name] = _fields(part, SIZES if reads_text else VISION)
        if hasattr(own, "model_type"):
            parts[name]["model_type"] = own.model_type
        parts[name] |= OWN.get(getattr(own, "model_type", ""), {})
    left_out = _LEFT_OUT.get(cls.model_type, set())
    names = {
        name: size
        for name, size in sizes.items()
        if name not in left_out and _has(default, name) and _can_set(cls, name)
    }
    if "kv_lora_rank" in names:  # latent attention has keys and values for every head
        names["num_key_value_heads"] = names["num_attention_heads"]
    special = {name: token for name, token in _SPECIAL_TOKENS.items() if _has(default, name)}
    return {**names, **special, **parts}


def _has(config: Any, name: str) -> bool:
    """Whether a configuration has this field; some raise others than AttributeError."""
    try:
        return hasattr(config, name)
    except Exception:
        return False


def _can_set(cls: Any, name: str) -> bool:
    attribute = getattr(cls, name, None)
    return not isinstance(attribute, property) or attribute.fset is not None

"""Small random checkpoints of many architectures, saved to folders as real ones are. Shared by all
tests.

The weights are large enough that attention, soft-caps and scales change the result: with the
default initialisation every logit is nearly zero and a broken path would pass.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BigBirdConfig,
    BloomConfig,
    CohereConfig,
    DeepseekV3Config,
    Gemma2Config,
    Gemma3TextConfig,
    Gemma4TextConfig,
    GPT2Config,
    GPTJConfig,
    GPTNeoXConfig,
    GptOssConfig,
    GraniteConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    OPTConfig,
    Phi3Config,
    PhiConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3NextConfig,
    RobertaConfig,
)

from tokenreward.checkpoints.checkpoint import Checkpoint
from tokenreward.contract import Needs, Row, RowRequest

VOCAB_SIZE = 320
TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<|bos|>", "<|end|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>"]
BOS_ID, END_ID, PAD_ID = 0, 1, 2

_LLAMA = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": BOS_ID,
    "eos_token_id": END_ID,
    "pad_token_id": PAD_ID,
}
_IDS = {
    name: _LLAMA[name] for name in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")
}

_ENCODER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    **_IDS,
}

ARCHITECTURES: dict[str, Callable[[], Any]] = {
    "gpt2": lambda: GPT2Config(n_embd=32, n_layer=3, n_head=4, n_positions=512, **_IDS),
    "llama": lambda: LlamaConfig(**_LLAMA),
    "qwen3": lambda: Qwen3Config(**_LLAMA, head_dim=8),
    "gemma2": lambda: Gemma2Config(
        **_LLAMA,
        head_dim=8,
        sliding_window=8,
        query_pre_attn_scalar=8,
        attn_logit_softcapping=2.0,
        final_logit_softcapping=3.0,
    ),
    "gemma3": lambda: Gemma3TextConfig(
        **_LLAMA, head_dim=8, sliding_window=8, query_pre_attn_scalar=8
    ),
    "cohere": lambda: CohereConfig(**_LLAMA, logit_scale=0.25),
    "granite": lambda: GraniteConfig(
        **_LLAMA,
        logits_scaling=3.0,
        attention_multiplier=0.3,
        residual_multiplier=0.7,
        embedding_multiplier=2.0,
    ),
    "gpt_neox": lambda: GPTNeoXConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=512,
        rotary_pct=0.25,
        **_IDS,
    ),
    "mistral": lambda: MistralConfig(**_LLAMA, sliding_window=8),
    "phi": lambda: PhiConfig(**{**_LLAMA, "num_key_value_heads": 4}),
    "gpt_oss": lambda: GptOssConfig(
        **_LLAMA,
        head_dim=8,
        sliding_window=8,
        num_local_experts=4,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    ),
    "opt": lambda: OPTConfig(
        hidden_size=32,
        ffn_dim=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=512,
        word_embed_proj_dim=32,
        **_IDS,
    ),
    # Latent attention: queries and keys of 12, values of 8. All layers are without experts.
    "deepseek_v3": lambda: DeepseekV3Config(
        **{**_LLAMA, "num_key_value_heads": 4},
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_nope_head_dim=8,
        qk_rope_head_dim=4,
        v_head_dim=8,
        first_k_dense_replace=3,
    ),
    # Heads of 8 in layers with a window, of 16 in the last one, which sees all.
    "gemma4": lambda: Gemma4TextConfig(
        **_LLAMA,
        head_dim=8,
        global_head_dim=16,
        sliding_window=8,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"],
        hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=VOCAB_SIZE,
        num_kv_shared_layers=0,
    ),
    # Rows of more than 10 tokens take the long factors.
    "phi3_longrope": lambda: Phi3Config(
        **_LLAMA,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1.0, 1.1, 1.3, 1.5],
            "long_factor": [2.0, 3.0, 5.0, 9.0],
        },
        original_max_position_embeddings=10,
    ),
    # As decoders. Both have a layer between trunk and head; RoBERTa counts positions from its own
    # padding id on.
    "bert": lambda: BertConfig(**_ENCODER, is_decoder=True),
    "roberta": lambda: RobertaConfig(**_ENCODER, is_decoder=True),
    "big_bird": lambda: BigBirdConfig(**_ENCODER, is_decoder=True, attention_type="original_full"),
    "bloom": lambda: BloomConfig(hidden_size=32, n_layer=3, n_head=4, **_IDS),
    "mamba": lambda: MambaConfig(hidden_size=32, num_hidden_layers=2, **_IDS),
    "gptj": lambda: GPTJConfig(
        n_embd=32, n_layer=3, n_head=4, rotary_dim=4, n_positions=512, **_IDS
    ),
    # Linear attention and attention in turns. Without experts: their kernels have no float64.
    "qwen3_next": lambda: Qwen3NextConfig(
        **_LLAMA,
        head_dim=8,
        layer_types=["linear_attention", "full_attention", "linear_attention"],
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        num_experts=0,
    ),
    "llama_dynamic": lambda: LlamaConfig(
        **{**_LLAMA, "max_position_embeddings": 32},
        rope_parameters={"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0},
    ),
}
PACKED = (
    "gpt2",
    "llama",
    "qwen3",
    "gemma2",
    "gemma3",
    "cohere",
    "granite",
    "gpt_neox",
    "mistral",
    "phi",
    "gpt_oss",
    "opt",
    "deepseek_v3",
    "gemma4",
    "phi3_longrope",
)
PADDED = ("bloom", "gptj", "mamba", "qwen3_next")
PLAIN = ("llama_dynamic",)
REWARD_MODELS = ("gpt2", "llama", "qwen3", "gemma2", "gpt_neox", "mistral", "phi", "gpt_oss")
CORPUS = [
    "The manager is Ada Byron and the salary is 150K a year.",
    "It is 4. Yes, 2+2 = 4; no doubt at all.",
    "def add(a, b):\n    return a + b\r\n",
    "Grüße aus Köln, naïve café, 東京の天気, مرحبا بالعالم, 👩‍👩‍👧 family",
]


@functools.cache
def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE over the corpus, with a chat template; any text tokenizes."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=SPECIAL[0],
        eos_token=SPECIAL[1],
        pad_token=SPECIAL[2],
        additional_special_tokens=SPECIAL[3:],
    )
    fast.chat_template = TEMPLATE
    return fast


def model(architecture: str, task: str = "causal_lm", *, seed: int = 0, num_labels: int = 1) -> Any:
    """A random model whose logits are far from flat."""
    config = copy.deepcopy(ARCHITECTURES[architecture]())
    config.num_labels = num_labels
    torch.manual_seed(seed)
    auto = AutoModelForCausalLM if task == "causal_lm" else AutoModelForSequenceClassification
    random_model = auto.from_config(config).eval().requires_grad_(False)
    for name, parameter in random_model.named_parameters():
        if "sinks" in name:
            parameter.normal_()
        elif parameter.dim() > 1 and "conv" not in name:
            parameter.mul_(12.0)
    return random_model


def save(
    folder: Path, architecture: str = "llama", task: str = "causal_lm", **options: Any
) -> Path:
    """A complete checkpoint folder: weights, configs, tokenizer."""
    model(architecture, task, **options).save_pretrained(folder)
    copy.deepcopy(tokenizer()).save_pretrained(folder)
    return folder


def checkpoint(model: Any, task: Any = "causal_lm") -> Checkpoint:
    """The model as a checkpoint that is served on the CPU, without a tokenizer: rows are ids."""
    return Checkpoint(model=model, tokenizer=None, task=task)


def work(needs: Needs) -> list[RowRequest]:
    """Three random rows of a prompt of two tokens."""
    generator = np.random.default_rng(0)
    return [
        RowRequest(Row(generator.integers(3, VOCAB_SIZE, size=n), 2, n), needs) for n in (5, 40, 3)
    ]


def tokenizer_of(checkpoint: Any, max_tokens: int | None = None) -> Any:
    """The project's own view of a loaded checkpoint's tokenizer."""
    from tokenreward.text.tokenizer import Tokenizer

    return Tokenizer(checkpoint.tokenizer, checkpoint.eos_ids, max_tokens)

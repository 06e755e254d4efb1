"""The models that are measured: real shapes with random weights, made on the device; and their
rehearsal, tiny ones of the same kinds. It knows configurations and no layouts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LlamaConfig,
    MistralConfig,
    Qwen3Config,
)

MAX_POSITIONS = 131_072


@dataclass(frozen=True)
class Shape:
    """`window`: how many tokens each may see. `spread`: standard deviation of the weights."""

    name: str
    config: Any
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    mlp: int
    vocab: int
    head_dim: int = 128
    tied: bool = False
    theta: float = 1e4
    window: int | None = None
    spread: float = 0.02

    @property
    def has_head_norms(self) -> bool:
        """Whether queries and keys are normed, head by head."""
        return self.config is Qwen3Config

    def tiny(self) -> Shape:
        """Of the same kind, for a CPU in no time; its weights make scores and logits as far from
        flat as the real ones."""
        spread = self.spread * (self.hidden / 32) ** 0.5
        size = {"hidden": 32, "heads": 4, "kv_heads": 2, "head_dim": 8, "mlp": 48, "vocab": 320}
        return replace(
            self, **size, layers=min(2, self.layers), spread=spread, window=self.window and 8
        )


QWEN3_06B = Shape("Qwen3 0.6B", Qwen3Config, 1024, 28, 16, 8, 3072, 151_936, tied=True, theta=1e6)
LLAMA_8B = Shape("Llama 8B", LlamaConfig, 4096, 32, 32, 8, 14_336, 128_256, theta=5e5)
HEAD = Shape("head h=4096 V=152k", LlamaConfig, 4096, 1, 32, 8, 14_336, 151_936)
# As wide as a tile of the head and with real attention heads, and no more: which kernels a device
# gets.
KERNELS = replace(LLAMA_8B.tiny(), name="kernels", head_dim=128, vocab=16_384)
# Few layers of the real widths: room for a float32 copy and for many passes. Larger weights, so
# that attention is far from even and a fault shows.
WIDE = replace(LLAMA_8B, name="Llama 8B x3", layers=3, spread=0.03)
NORMED = replace(QWEN3_06B, name="Qwen3 0.6B x4", layers=4, spread=0.06)
WINDOWED = replace(
    LLAMA_8B, name="Mistral window x3", config=MistralConfig, layers=3, spread=0.03, window=512
)


def config(shape: Shape) -> Any:
    given = {
        "vocab_size": shape.vocab,
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "intermediate_size": shape.mlp,
        "max_position_embeddings": MAX_POSITIONS,
        "tie_word_embeddings": shape.tied,
        "initializer_range": shape.spread,
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.theta},
        "num_labels": 1,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    return shape.config(
        **given, **({} if shape.window is None else {"sliding_window": shape.window})
    )


def build(shape: Shape, task: str, device: torch.device) -> Any:
    """A random bfloat16 model, the same every time on a device."""
    torch.manual_seed(0)
    auto = AutoModelForCausalLM if task == "causal_lm" else AutoModelForSequenceClassification
    with torch.device(device):  # made there: eight billion numbers from a CPU would take minutes
        model = auto.from_config(config(shape), dtype=torch.bfloat16)
    return model.to(device).eval().requires_grad_(False)

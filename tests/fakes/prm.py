"""Tiny process reward models, saved as real ones are, and the published ways to lay a response out,
written by hand.

Everything here is float64 on transformers' own forward and uses nothing of the service.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers.processors import TemplateProcessing

from fakes import oracle, tiny, vocabularies

TAG = "<extra_0>"
SYSTEM = "Please reason step by step, and put your final answer within \\boxed{}."
QUESTION = "What is 2+2?"


def with_tag() -> Any:
    """The tiny tokenizer with the tag of Qwen2.5-Math-PRM as a special token."""
    tokenizer = copy.deepcopy(tiny.tokenizer())
    tokenizer.add_special_tokens({"additional_special_tokens": [*tiny.SPECIAL[3:], TAG]})
    return tokenizer


def like_mistral() -> Any:
    """Spaces before words, bytes for what it does not know, BOS in front: the family of
    Math-Shepherd's Mistral."""
    tokenizer = copy.deepcopy(vocabularies.byte_fallback(strip=True))
    single = f"{vocabularies.BOS} $A"
    special = [(vocabularies.BOS, tokenizer.bos_token_id)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=single, special_tokens=special
    )
    return tokenizer


def save(folder: Path, tokenizer: Any, task: str, **options: Any) -> Path:
    model = tiny.model("llama", task, **options)
    model.resize_token_embeddings(max(len(tokenizer), tiny.VOCAB_SIZE))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def sigmoid(x: Any) -> np.ndarray:
    return 1 / (1 + np.exp(-np.asarray(x, dtype=np.float64)))


@torch.no_grad()
def probabilities(model: Any, ids: list[int]) -> np.ndarray:
    """Of the positive class at every token [n]: softmax over two labels, sigmoid of one."""
    exact = oracle.double(model)
    logits = exact.score(
        exact.model(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state
    )[0]
    return (logits.softmax(-1)[:, 1] if logits.shape[-1] == 2 else logits[:, 0].sigmoid()).numpy()


def plus_over_minus(model: Any, ids: list[int], labels: list[int]) -> np.ndarray:
    """A language model's softmax over two tokens, the first one's share, at every token [n]."""
    logits = oracle.logits(oracle.double(model), np.asarray(ids))[:, labels]
    return np.exp(logits[:, 0] - oracle.logsumexp(logits))


def qwen(
    tokenizer: Any, steps: list[str], *, system: str | None = SYSTEM
) -> tuple[list[int], list[int]]:
    """As the model card: the conversation through the template, one text, scores where the tag
    is."""
    messages = [{"role": "system", "content": system}] if system is not None else []
    messages += [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": TAG.join(steps) + TAG},
    ]
    ids = tokenizer.encode(tokenizer.apply_chat_template(messages, tokenize=False))
    tag = tokenizer.convert_tokens_to_ids(TAG)
    return ids, [place for place, token in enumerate(ids) if token == tag]


def math_shepherd(tokenizer: Any, steps: list[str]) -> tuple[list[int], list[int]]:
    """As the model card: question, space, tagged lines, one text, scores where the tag's last token
    is."""
    ids = tokenizer.encode(f"{QUESTION} " + "\n".join(f"{step} ки" for step in steps))
    tag = tokenizer.encode("ки")[-1]
    return ids, [place for place, token in enumerate(ids) if token == tag]


def skywork(tokenizer: Any, lines: list[str]) -> tuple[list[int], list[int]]:
    """As the inference code: BOS, question and line break, then each line alone and the line
    break's token."""
    encode = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    ids = [tokenizer.bos_token_id, *encode(f"{QUESTION}\n")]
    flags = []
    for line in lines:
        ids += [*encode(line), encode("\n")[-1]]
        flags.append(len(ids) - 1)
    return ids, flags


def save_with_two_layers(folder: Path) -> tuple[Path, Any]:
    """As Qwen2.5-Math-PRM stores it: a trunk, and Linear, ReLU, Linear to two labels as `score.0`
    and `score.2`. Also gives what its head makes of hidden states: p of the positive class,
    float64."""
    trunk = tiny.model("llama")
    tokenizer = with_tag()
    trunk.resize_token_embeddings(len(tokenizer))
    hidden = trunk.config.hidden_size
    head = torch.nn.Sequential(
        torch.nn.Linear(hidden, hidden), torch.nn.ReLU(), torch.nn.Linear(hidden, 2)
    )
    tensors = {
        name: tensor
        for name, tensor in trunk.state_dict().items()
        if not name.startswith("lm_head")
    }
    tensors |= {f"score.{name}": tensor.detach() for name, tensor in head.state_dict().items()}
    save_file(tensors, folder / "model.safetensors")
    trunk.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    exact, wide = oracle.double(trunk), copy.deepcopy(head).double()

    @torch.no_grad()
    def positive(ids: list[int]) -> np.ndarray:
        return (
            wide(exact.model(input_ids=torch.tensor([ids])).last_hidden_state[0])
            .softmax(-1)[:, 1]
            .numpy()
        )

    return folder, positive

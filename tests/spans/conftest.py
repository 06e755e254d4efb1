"""A tiny checkpoint and an engine for every kind of tokenizer."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

Items = list[dict[str, Any]]


def save(folder: Path, tokenizer: Any, task: str) -> Path:
    """A random model of the tokenizer's size, with the tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    from fakes import tiny

    config = tiny.ARCHITECTURES["llama"]()
    config.vocab_size, config.num_labels = len(tokenizer), 1
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(config, name, getattr(tokenizer, name))
    torch.manual_seed(0)
    auto = AutoModelForCausalLM if task == "causal_lm" else AutoModelForSequenceClassification
    model = auto.from_config(config).requires_grad_(False)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.mul_(12.0)
    model.save_pretrained(folder)
    copy.deepcopy(tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def score(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Items]:
    """`score(kind, scorer, items, **request)`: the items of the reply of an engine with that kind
    of tokenizer."""
    from fakes.vocabularies import KINDS
    from tokenreward.engine import Engine
    from tokenreward.scorers import resolve
    from tokenreward.settings import DeploymentSettings
    from tokenreward.wire import RewardsRequest, parse

    @cache
    def folder(kind: str, task: str) -> Path:
        return save(tmp_path_factory.mktemp(f"{kind}-{task}"), KINDS[kind](), task)

    @cache
    def loaded(kind: str, scorer: str) -> Engine:
        task = resolve(scorer).task or "causal_lm"
        checkpoint = str(folder(kind, task))
        settings = DeploymentSettings(
            name="t", checkpoint=checkpoint, task=task, scorers=[{"type": scorer}]
        )
        return Engine.load(settings, say=lambda line: None)

    async def run(ready: Engine, body: dict[str, Any]) -> Items:
        # An engine belongs to one event loop; the checkpoint does not.
        engine = Engine(
            ready.settings,
            ready.checkpoint,
            ready.runner.layout,
            lambda *args, **labels: None,
            ready.tokenizer,
        )
        try:
            return (await engine.score(parse(RewardsRequest, body))).items
        finally:
            await engine.close()

    def score(kind: str, scorer: str, items: Items, **more: Any) -> Items:
        return asyncio.run(run(loaded(kind, scorer), {"scorer": scorer, "items": items, **more}))

    return score

"""TRL's own trainers and client against a real service with the demo models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

# TRL warns of what it and transformers will change. An AsyncClient's connections end with TRL's
# event loop, which nobody closes.
IGNORED = (
    "ignore::FutureWarning",
    "ignore::DeprecationWarning",
    "ignore::UserWarning",
    "ignore::ResourceWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.filterwarnings(*IGNORED))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The same sums in the same order, wherever the tests run."""
    import torch

    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture
def make_policy() -> Callable[[], Any]:
    """Gives the demo's policy and its tokenizer, fresh each time."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tokenreward.demo import checkpoint_path

    folder = checkpoint_path("sft")
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    load = partial(AutoModelForCausalLM.from_pretrained, folder, dtype=torch.float32)
    return lambda: (load(), tokenizer)


@pytest.fixture
def policy(make_policy: Callable[[], Any]) -> Any:
    return make_policy()

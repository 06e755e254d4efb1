"""Fixtures for all tests: checkpoints made once a session, and engines on them."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
from hypothesis import settings

import fakes.shapes  # noqa: F401 - the import hook below finds it as an attribute of `fakes`

# A deadline per example would measure the machine, not the code.
settings.register_profile("tokenreward", deadline=None)
settings.load_profile("tokenreward")

# A shell that starts the tests in the background has them ignore Ctrl-C, and so would every process
# that they start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

STARTING_PROCESSES = {"bench_parts", "cli", "deployment", "e2e"}  # folders

# Shapes in the signatures of the numeric layers are checked in tests only. Before anything imports
# those layers.
SHAPES = jaxtyping.install_import_hook(
    [
        "tokenreward.contract",
        "tokenreward.credit",
        "tokenreward.text",
        "tokenreward.forward",
        "tokenreward.scorers",
        "tokenreward.engine",
    ],
    "fakes.shapes.check",
)


def pytest_configure(config: pytest.Config) -> None:
    """The checker of shapes draws from `random`, also in threads of an engine that has answered,
    while Hypothesis generates the next example: it takes that for a strategy's doing and warns."""
    config.addinivalue_line(
        "filterwarnings", "ignore:Do not use the `random` module inside strategies"
    )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Who gets which tests, where several processes share them: the tests of a file stay together,
    as they share fixtures. So do all tests that start clusters and servers, which would take cores
    from each other."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            folders = STARTING_PROCESSES.intersection(file.split("/"))
            return "processes" if folders else file

    return ByFile(config, log)


@pytest.fixture(scope="session")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny language model's folder."""
    from fakes import tiny

    return tiny.save(tmp_path_factory.mktemp("lm"))


@pytest.fixture(scope="session")
def reward_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny reward model's folder."""
    from fakes import tiny

    return tiny.save(tmp_path_factory.mktemp("rm"), task="reward_model")


@pytest.fixture(scope="session", autouse=True)
def quiet_progress_bars() -> Iterator[None]:
    """transformers draws bars while it loads and saves; they would drown a test's output."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    yield
    logging.enable_progress_bar()


@pytest.fixture
def make_engine(language_model: Path, reward_model: Path) -> Callable[..., Any]:
    """An engine on one of the tiny checkpoints: `make_engine("causal_lm", ["endogenous"],
    **settings)`."""
    from tokenreward.engine import Engine
    from tokenreward.settings import DeploymentSettings

    def make(task: str, scorers: list[Any], *, report: Any = None, **settings: Any) -> Engine:
        entries = [{"type": entry} if isinstance(entry, str) else entry for entry in scorers]
        folder = settings.pop("checkpoint", language_model if task == "causal_lm" else reward_model)
        chosen = DeploymentSettings(
            name="test", checkpoint=str(folder), task=task, scorers=entries, **settings
        )
        options = {} if report is None else {"report": report}
        return Engine.load(chosen, say=lambda line: None, **options)

    return make

"""The scorers that these tests run over: every file in scorers/, the one that CONTRIBUTING shows,
and `--scorer package.module:Class` for a scorer of your own."""

from __future__ import annotations

import pytest

from fakes import guide
from tokenreward.scorers import known_types

guide.install()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--scorer",
        action="append",
        metavar="MODULE:CLASS",
        help="also test this scorer, named as a deployment names it in `type`",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Runs each test that has a `name` over all scorers."""
    if "name" in metafunc.fixturenames:
        # pytest knows the option only where this folder is named on the command line.
        own = metafunc.config.getoption("--scorer", default=None) or []
        metafunc.parametrize("name", [*known_types(), guide.GUIDE_TYPE, *own], scope="module")

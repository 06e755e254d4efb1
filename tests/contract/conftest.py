"""The scorers that these tests run over: every file in scorers/, the one that CONTRIBUTING shows,
and `--scorer package.module:Class` for a scorer of your own. Each has its default options, and each
choice among them that has it read another kind of checkpoint."""

from __future__ import annotations

from typing import Any, Literal, get_args, get_origin

import pytest

from fakes import guide
from tokenreward.scorers import known_types, resolve

guide.install()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--scorer",
        action="append",
        metavar="MODULE:CLASS",
        help="also test this scorer, named as a deployment names it in `type`",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Runs each test that has a `name` over all scorers, and over choices of theirs if it has
    `options`, too."""
    if "name" not in metafunc.fixturenames:
        return
    # pytest knows the option only where this folder is named on the command line.
    own = metafunc.config.getoption("--scorer", default=None) or []
    names = [*known_types(), guide.GUIDE_TYPE, *own]
    if "options" not in metafunc.fixturenames:
        metafunc.parametrize("name", names, scope="module")
        return
    cases = [
        pytest.param(name, options, id="-".join([name, *map(str, options.values())]))
        for name in names
        for options in choices_of(name)
    ]
    metafunc.parametrize(("name", "options"), cases, scope="module")


def choices_of(name: str) -> list[dict[str, Any]]:
    """The options of a scorer under which it is tested, the defaults first."""
    scorer = resolve(name)
    choices: list[dict[str, Any]] = [{}]
    for field_name, field in scorer.Options.model_fields.items():
        values = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
        for value in values:
            options = {field_name: value}
            task = scorer.task_for(scorer.Options.model_validate(options))
            if task != scorer.task_for(scorer.Options()):
                choices.append(options)
    return choices

"""`tokenreward schema`: what it prints is what the service has."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tokenreward.cli import main
from tokenreward.http.openapi import document
from tokenreward.settings import Settings


@pytest.mark.parametrize(
    ("flags", "expected"), [([], Settings.model_json_schema), (["--openapi"], document)]
)
def test_it_prints_one_json_document(
    flags: list[str], expected: Callable[[], object], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["schema", *flags]) == 0
    assert json.loads(capsys.readouterr().out) == expected()


def test_two_documents_at_once_are_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["schema", "--openapi", "--serve", "rewards.yaml"])
    assert "not allowed with" in capsys.readouterr().err

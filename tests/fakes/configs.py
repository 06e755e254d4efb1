"""The smallest configuration as plain objects, with whatever fields a test sets in it."""

from __future__ import annotations

from typing import Any

import pytest

from tokenreward.config import parse_settings
from tokenreward.settings import SettingsError


def deployment(**fields: Any) -> dict[str, Any]:
    return {
        "name": "lm",
        "checkpoint": "x",
        "task": "causal_lm",
        "scorers": [{"type": "endogenous"}],
        **fields,
    }


def service(*deployments: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"deployments": list(deployments or [deployment()]), **fields}


def refusal(content: dict[str, Any]) -> list[str]:
    """The lines of the SettingsError that this configuration raises."""
    with pytest.raises(SettingsError) as caught:
        parse_settings(content)
    return str(caught.value).splitlines()

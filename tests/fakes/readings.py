"""Reads single metrics out of Prometheus text."""

from __future__ import annotations

import re


def readings(text: str, name: str, *, deployment: str) -> dict[str, float]:
    """The samples of one metric of a deployment.

    Args:
        text: What `/metrics` says.
        name: Without `tokenreward_`.
        deployment: The deployment's name.

    Returns:
        By the text of all labels, the number.
    """
    pattern = rf'^tokenreward_{name}\{{(deployment="{deployment}",\S*?)\}} (\S+)$'
    return {
        labels: float(number) for labels, number in re.findall(pattern, text, flags=re.MULTILINE)
    }

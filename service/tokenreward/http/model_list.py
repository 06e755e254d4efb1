"""`GET /v1/models` as vLLM answers it: clients look there for a model's name and its longest row.

It knows listings, and no protocols: these take any model name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_CREATED = 1_700_000_000  # clients want a time here, and read nothing from it


def list_models(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The models that stand behind scorers.

    Models that give log-probabilities come first: clients that ask for these take the first name.

    Args:
        entries: The scorers, as `GET /v1/scorers` lists them.
    """
    models: dict[str, dict[str, Any]] = {}
    for entry in sorted(entries, key=lambda each: each.get("log_probs_options") is None):
        name = str(entry["model"])
        model = {
            "id": name,
            "object": "model",
            "created": _CREATED,
            "owned_by": "tokenreward",
            "root": name,
            "parent": None,
            "max_model_len": entry["limits"]["max_sequence_tokens"],
        }
        models.setdefault(name, model)
    return {"object": "list", "data": list(models.values())}

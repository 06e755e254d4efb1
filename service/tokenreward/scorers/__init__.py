"""The registry of scorers: one file here is one type, a third party's is `package.module:Class`.

It knows names; what a scorer does stands in its own file. Files in this folder never import each
other.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil

from tokenreward.contract import Scorer


class UnknownScorerType(ValueError):
    """A `type` that names no scorer; the message lists those there are."""


def known_types() -> list[str]:
    """The types that ship with the service, sorted."""
    names = (module.name for module in pkgutil.iter_modules(__path__))
    return sorted(name for name in names if not name.startswith("_"))


def resolve(name: str) -> Scorer:
    """The scorer of one type. Raises UnknownScorerType."""
    if ":" in name:
        module_name, _, class_name = name.partition(":")
    elif name in known_types():
        module_name, class_name = f"{__name__}.{name}", "Scorer"
    else:
        raise UnknownScorerType(
            f"no scorer type `{name}`; known are {', '.join(known_types())}, or "
            "`package.module:Class`"
        )
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise UnknownScorerType(f"scorer type `{name}` cannot be imported: {error}") from error
    if not (inspect.isclass(found) and issubclass(found, Scorer)):
        raise UnknownScorerType(
            f"scorer type `{name}` is not a subclass of tokenreward.contract.Scorer"
        )
    return found()

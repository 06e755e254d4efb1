"""The registry of scorers: one file here is one type; another package's is `package.module:Class`.

The registry knows names and nothing of what a scorer does. Files in this folder never import each
other.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil

from tokenreward.contract import Scorer


def known_types() -> list[str]:
    """The types that ship with the service, sorted."""
    names = (module.name for module in pkgutil.iter_modules(__path__))
    return sorted(name for name in names if not name.startswith("_"))


def resolve(name: str) -> Scorer:
    """An instance of the scorer that a type names.

    Args:
        name: A file of this folder, or `package.module:Class`.

    Raises:
        LookupError: There is no such file, it cannot be imported, or it holds no scorer. The
            message lists the types that ship with the service.
    """
    if ":" in name:
        module_name, _, class_name = name.partition(":")
    elif name in known_types():
        module_name, class_name = f"{__name__}.{name}", "Scorer"
    else:
        raise LookupError(
            f"no scorer type `{name}`; known are {', '.join(known_types())}, or "
            "`package.module:Class`"
        )
    try:
        scorer_class = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise LookupError(f"scorer type `{name}` cannot be imported: {error}") from error
    if not (inspect.isclass(scorer_class) and issubclass(scorer_class, Scorer)):
        raise LookupError(f"scorer type `{name}` is not a subclass of tokenreward.contract.Scorer")
    return scorer_class()

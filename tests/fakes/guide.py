"""CONTRIBUTING.md, and the scorer that it shows, as a third party would install it."""

from __future__ import annotations

import sys
import types

from fakes.pages import code_blocks, page

GUIDE = page("CONTRIBUTING.md")
GUIDE_TYPE = "their_margin:Scorer"


def install() -> None:
    """Makes the guide's scorer a module outside of the package, which `GUIDE_TYPE` names."""
    (code,) = (block for block in code_blocks(GUIDE, "python") if "contract.Scorer" in block)
    module = types.ModuleType(GUIDE_TYPE.partition(":")[0])
    sys.modules[module.__name__] = module
    exec(compile(code, "CONTRIBUTING.md", "exec"), module.__dict__)  # noqa: S102 - our own document

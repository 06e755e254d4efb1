"""CONTRIBUTING.md, and the scorer that it shows, as a third party would install it."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

GUIDE = (Path(__file__).resolve().parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")
GUIDE_TYPE = "their_margin:Scorer"


def install() -> None:
    """Makes the guide's scorer a module outside of the package, which `GUIDE_TYPE` names."""
    (code,) = re.findall(r"```python\n(.*?)```", GUIDE, flags=re.DOTALL)
    module = types.ModuleType(GUIDE_TYPE.partition(":")[0])
    sys.modules[module.__name__] = module
    exec(compile(code, "CONTRIBUTING.md", "exec"), module.__dict__)  # noqa: S102 - our own document

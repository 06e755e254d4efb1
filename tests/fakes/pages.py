"""The pages that a user reads: README.md, docs/*.md and CONTRIBUTING.md, as text. Tests hold what
they say against the code. It knows no page's content.
"""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def page(name: str) -> str:
    """The text of one page, by its path from the root: `README.md`, `docs/http.md`."""
    return (ROOT / name).read_text(encoding="utf-8")


def user_pages() -> dict[str, str]:
    """README.md and every page of docs/, by path."""
    paths = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    return {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in paths}


def documentation() -> str:
    """README.md and all pages of docs/, one after another."""
    return "\n".join(user_pages().values())


def code_blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of one language."""
    return re.findall(rf"```{language}\n(.*?)\n```", text, flags=re.DOTALL)

"""Text of others into HTML: nothing in it is ever read as markup, and nothing in it steers the
page."""

from __future__ import annotations

from html import escape

from tokenreward.eval.visible import visible


def safe(text: object) -> str:
    """Escaped for content and for quoted attributes; line breaks and tabs stay."""
    return escape(visible(str(text), keep="\n\t"), quote=True)

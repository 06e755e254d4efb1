"""What a client is made with, checked before anything is sent. It sends nothing."""

from __future__ import annotations

import math

import httpx

from tokenreward_client.errors import BadArgument


def checked_url(base_url: str) -> httpx.URL:
    try:
        url = httpx.URL(base_url)
    except (httpx.InvalidURL, TypeError):
        raise BadArgument("this is not a URL", param="base_url") from None
    if url.scheme not in ("http", "https") or not url.host or url.query or url.fragment:
        raise BadArgument("must look like http://host:port, without a query", param="base_url")
    return url


def checked_key(api_key: str) -> str:
    """Never quotes the key: a message ends up in logs."""
    if not api_key or not api_key.isascii() or not api_key.isprintable() or " " in api_key:
        raise BadArgument("must be printable ASCII without white space", param="api_key")
    return api_key


def checked_timeout(timeout_s: float) -> float:
    if not (math.isfinite(timeout_s) and timeout_s > 0):
        raise BadArgument(
            f"must be a positive number of seconds, got {timeout_s}", param="timeout_s"
        )
    return timeout_s

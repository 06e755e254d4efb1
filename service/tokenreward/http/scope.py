"""What ASGI hands an application: its types, and the parts of a request's scope that we read.

It knows no routes of ours.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from tokenreward.errors import UnknownRoute, shown

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class ClientGone(Exception):
    """The caller hung up; whatever was under way for it is cancelled."""


def unknown_route(scope: Scope) -> UnknownRoute:
    """What the router refuses: a path that we do not have, or another method."""
    asked = f"{shown(scope['method'])} {shown(scope['path'])}"
    return UnknownRoute(f"no such route: {asked}; see GET /v1/scorers for what is served")


def headers_of(scope: Scope) -> dict[str, str]:
    """Header values by lower-case name, read once a request."""
    state: dict[str, Any] = scope.setdefault("state", {})
    if "headers" not in state:
        state["headers"] = {
            name.decode("latin-1").lower(): value.decode("latin-1")
            for name, value in scope["headers"]
        }
    found: dict[str, str] = state["headers"]
    return found


def route_of(scope: Scope) -> str:
    """The path below the place where the application is mounted."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    return path.removeprefix(root) if root and path.startswith(root) else path

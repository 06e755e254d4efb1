"""A Hugging Face hub on this machine: repositories that are folders, and files that it fails to
answer for."""

from __future__ import annotations

import functools
import hashlib
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

COMMIT = "0123456789" * 4


class Hub:
    """`folders`: repositories by name. `broken`: names of files that it answers 503 for."""

    folders: dict[str, Path]
    broken: set[str]

    def __init__(self) -> None:
        self.clear()
        handler = functools.partial(_Handler, self)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def clear(self) -> None:
        """Forgets its repositories."""
        self.folders, self.broken = {}, set()


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, hub: Hub, *arguments: object) -> None:
        self._hub = hub
        super().__init__(*arguments)  # type: ignore[arg-type]

    def do_HEAD(self) -> None:
        if self.path.startswith("/api/"):  # which folders a repository has: none
            error = {"X-Error-Code": "EntryNotFound"}
            return self._answer(503, {}) if self._hub.broken else self._answer(404, error)
        owner, name, _, _, file = self.path.strip("/").split("/", 4)
        folder = self._hub.folders.get(f"{owner}/{name}")
        if file in self._hub.broken:
            return self._answer(503, {})
        if folder is None:
            return self._answer(404, {"X-Error-Code": "RepoNotFound"})
        if not (folder / file).is_file():
            return self._answer(404, {"X-Error-Code": "EntryNotFound"})
        body = (folder / file).read_bytes()
        return self._answer(200, {"ETag": hashlib.sha256(body).hexdigest()}, body)

    do_GET = do_HEAD  # noqa: N815

    def _answer(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        own = {"X-Repo-Commit": COMMIT, "Content-Length": str(len(body))}
        for name, value in (headers | own).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@functools.cache
def _running() -> Hub:
    """One for all tests: huggingface_hub keeps clients that know where it is."""
    return Hub()


def use(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Hub:
    """A hub that huggingface_hub asks in place of the real one, with a cache of its own. Set where
    the library keeps what it read of the environment when it was imported."""
    from huggingface_hub import constants
    from huggingface_hub.utils import _http

    hub = _running()
    hub.clear()
    point_to(hub.url, monkeypatch)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    # Between its tries it would pause, some 23 s in all.
    monkeypatch.setattr(_http, "time", SimpleNamespace(**vars(time) | {"sleep": lambda _: None}))
    return hub


def point_to(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where huggingface_hub looks for the hub from here on."""
    from huggingface_hub import constants

    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", url)

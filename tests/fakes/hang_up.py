"""A server that hangs up on everybody."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def hanging_up() -> Iterator[tuple[str, list[bytes]]]:
    """An address that reads a request and breaks the connection, and the methods of requests: the
    first four bytes of each."""
    methods: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                methods.append(connection.recv(1000)[:4])
                connection.close()

        threading.Thread(target=hang_up, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", methods
        finally:
            listener.shutdown(socket.SHUT_RDWR)

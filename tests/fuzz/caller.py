"""A caller on a bare socket, which can send what no HTTP client would."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any

ANSWER_S = 30.0


class RawCaller:
    """One connection, opened anew when the server has closed it."""

    def __init__(self, host: str, port: int) -> None:
        self._address = host, port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(
        self, method: str, path: str, headers: Sequence[tuple[bytes, bytes]], body: bytes
    ) -> tuple[int, bytes]:
        """The status and the body of the answer; status 0 if none came.

        A connection that the server closed meanwhile is opened once more.
        """
        lines = [f"{method} {path} HTTP/1.1".encode(), b"host: fuzz"]
        lines += [name + b": " + value for name, value in headers]
        lines += [b"content-length: %d" % len(body), b"", body]
        for _ in range(2):
            try:
                async with asyncio.timeout(ANSWER_S):
                    return await self._ask(b"\r\n".join(lines))
            except TimeoutError:
                await self.close()
                return 0, b"no answer"
            except (ConnectionError, asyncio.IncompleteReadError):
                await self.close()
        return 0, b"connection broke"

    async def close(self) -> None:
        if self._streams is not None:
            writer, self._streams = self._streams[1], None
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def _ask(self, request: bytes) -> tuple[int, bytes]:
        if self._streams is None:
            self._streams = await asyncio.open_connection(*self._address)
        reader, writer = self._streams
        writer.write(request)
        await writer.drain()
        head = await reader.readuntil(b"\r\n\r\n")
        status = int(head.split(b" ", 2)[1])
        fields: dict[bytes, Any] = {}
        for line in head.lower().split(b"\r\n")[1:]:
            name, _, value = line.partition(b":")
            fields[name] = value.strip()
        if b"content-length" in fields:
            answer = await reader.readexactly(int(fields[b"content-length"]))
        else:
            answer = await reader.read()
        if fields.get(b"connection") == b"close" or b"content-length" not in fields:
            await self.close()
        return status, answer

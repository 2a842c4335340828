"""A TCP proxy that a test can cut: to the client, the server behind it is down. It can speak TLS for it, too."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import suppress


class Proxy:
    """Forwards connections on ``port`` of loopback to a server, until cut; forwards again once mended.

    With ``tls``, clients speak TLS to it; the server behind it hears plain bytes.
    """

    def __init__(self, host: str, port: int, *, tls: ssl.SSLContext | None = None) -> None:
        self._target = (host, port)
        self._tls = tls
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self.port = 0

    async def mend(self) -> None:
        """Listen (again)."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def cut(self) -> None:
        """Refuse new connections and break those that are open."""
        if self._server is not None:
            self._server.close()
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if self._tls is not None:
                await self._begin_tls(reader, writer, self._tls)
        except (OSError, EOFError):  # a client that does not trust us hangs up
            writer.transport.abort()
        else:
            await self._forward(reader, writer)

    async def _begin_tls(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, context: ssl.SSLContext
    ) -> None:
        await writer.start_tls(context)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection(*self._target)
        pair = {writer, inner_writer}
        self._writers |= pair
        try:
            await asyncio.gather(_pump(reader, inner_writer), _pump(inner_reader, writer))
        finally:
            self._writers -= pair
            for end in pair:
                end.transport.abort()


class PostgresProxy(Proxy):
    """The same, for clients of Postgres: they ask whether it speaks TLS before they do."""

    async def _begin_tls(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, context: ssl.SSLContext
    ) -> None:
        await reader.readexactly(8)  # SSLRequest
        writer.write(b"S")
        await writer.start_tls(context)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.transport.abort()

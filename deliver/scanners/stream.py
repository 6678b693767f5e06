"""Connections to daemons that speak a protocol of their own over a byte stream: ICAP, HTTP."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from deliver.scanners.address import Address, TcpAddress
from deliver.values import Content

_RETRY = 0.02  # seconds


@asynccontextmanager
async def connected(address: Address) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection, gone afterwards without waiting for a peer that does not read. Raises OSError."""
    if isinstance(address, TcpAddress):
        reader, writer = await asyncio.open_connection(address.host, address.port)
    else:
        reader, writer = await open_unix(address.path)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
        with suppress(OSError):
            await writer.wait_closed()


async def open_unix(path: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection to a UNIX socket; where its backlog is full, once there is room. Raises OSError."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(0)
        while True:
            try:
                connection.connect(path)
                break
            except BlockingIOError:
                # The backlog is full (connect(2), EAGAIN). The event loop's own sock_connect() would take the socket
                # for connected.
                await asyncio.sleep(_RETRY)
        return await asyncio.open_unix_connection(sock=connection)
    except BaseException:
        connection.close()
        raise


async def chunks(content: Content) -> AsyncIterator[bytes]:
    """The pieces of a message, read from the disk in a thread. None is empty."""
    pieces = content.chunks()
    while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
        if piece:
            yield piece

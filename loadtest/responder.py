"""A server that gives everything the same small answer at once: what the generator alone can do is measured on it.

`python -m loadtest.responder [CORE]` listens on a free port of the loopback interface and writes the port to stdout.
"""

import asyncio
import os
import re
import sys
from collections.abc import Callable
from typing import cast

import uvloop

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class Responder(asyncio.Protocol):
    """One connection. Owner: event loop."""

    def __init__(self) -> None:
        self._buffer = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is open."""
        # uvloop's transports are asyncio's in behaviour, not by inheritance
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Answer every request that is whole."""
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            length = _LENGTH.search(self._buffer, 0, end + 2)
            stop = end + 4 + (int(length[1]) if length else 0)
            if len(self._buffer) < stop:
                return
            self._buffer = self._buffer[stop:]
            assert self._transport is not None
            self._transport.write(ANSWER)


async def respond(say: Callable[[str], object], wait: Callable[[], object]) -> None:
    """Serve on a free port until `wait`, called in a thread, returns; `say` is told the port."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Responder, "127.0.0.1", 0)
    say(f"{server.sockets[0].getsockname()[1]}\n")
    try:
        await loop.run_in_executor(None, wait)
    finally:
        server.close()


def main() -> None:
    """Pin to the core that is named, if one is, and serve until standard input closes."""
    if len(sys.argv) > 1:
        os.sched_setaffinity(0, {int(sys.argv[1])})

    def say(port: str) -> None:
        sys.stdout.write(port)
        sys.stdout.flush()

    uvloop.run(respond(say, sys.stdin.read))


if __name__ == "__main__":
    main()

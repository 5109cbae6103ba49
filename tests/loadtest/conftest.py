"""A loop whose clock jumps, a server whose answers are scripted, and scenarios on disk."""

import asyncio
import selectors
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

Handler = Callable[[bytes, bytes], bytes]


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop that never waits: where it would, its clock jumps to the next timer."""

    def __init__(self) -> None:
        self.now = 0.0
        super().__init__(_JumpingSelector(self))

    def time(self) -> float:
        return self.now


class _JumpingSelector(selectors.SelectSelector):
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> Any:
        assert timeout is not None, "nothing is left to happen, and somebody waits"
        self._loop.now += max(timeout, 0.0)
        return super().select(0)


@pytest.fixture
def virtual() -> Iterator[Callable[[Any], Any]]:
    """`virtual(coroutine)` runs it on a `VirtualLoop`; `virtual.loop` is not needed: ask for the running one."""
    loop = VirtualLoop()
    yield loop.run_until_complete
    loop.close()


class Talk(asyncio.Protocol):
    """The server's end of a connection: hands every whole request to `on_request(self, head, body)`."""

    def __init__(self, on_request: Callable[["Talk", bytes, bytes], None], talks: "set[Talk]") -> None:
        self._on_request = on_request
        self._talks = talks
        self._buffer = b""
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self._talks.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._talks.discard(self)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end]
            length = next((int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"content-length:")), 0)
            if len(self._buffer) < end + 4 + length:
                return
            body, self._buffer = self._buffer[end + 4 : end + 4 + length], self._buffer[end + 4 + length :]
            self._on_request(self, head, body)


class LoopbackServer:
    """A server on a thread of its own: every request is answered with the bytes that `handler(path, body)` gives."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._stop: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._run)
        self._talks: set[Talk] = set()
        self.requests: list[tuple[bytes, bytes]] = []
        self.heads: list[bytes] = []
        self.port = 0

    def __enter__(self) -> "LoopbackServer":
        self._thread.start()
        assert self._started.wait(30)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._stop is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        server = await self._loop.create_server(lambda: Talk(self._answer, self._talks), "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._started.set()
        await self._stop.wait()
        server.close()
        for talk in self._talks:
            talk.transport.abort()
        # subtle: sockets are let go in the loop's next turn
        await asyncio.sleep(0)

    def _answer(self, talk: Talk, head: bytes, body: bytes) -> None:
        path = head.split(b" ")[1]
        self.heads.append(head)
        self.requests.append((path, body))
        talk.transport.write(self._handler(path, body))


@pytest.fixture
def talk() -> type[Talk]:
    """The protocol itself, for servers on the test's own loop."""
    return Talk


@pytest.fixture
def loopback() -> Iterator[Callable[[Handler], LoopbackServer]]:
    """`loopback(handler)` starts a server; it stops at the end of the test."""
    started: list[LoopbackServer] = []

    def start(handler: Handler) -> LoopbackServer:
        started.append(LoopbackServer(handler).__enter__())
        return started[-1]

    yield start
    for server in started:
        server.__exit__()


@pytest.fixture
def scenario_file(tmp_path: Path) -> Callable[..., Path]:
    """`scenario_file(**changes)` writes a small valid scenario with these top-level keys changed (None: left out)."""
    (tmp_path / "texts.jsonl").write_text('{"text": "good", "label": "yes"}\n{"text": "bad", "label": "no"}\n')

    def write(**changes: Any) -> Path:
        document: dict[str, Any] = {
            "schema": 1,
            "name": "small",
            "duration_s": 0.2,
            "warm_up_s": 0,
            "arrivals": {"constant": {"rate_per_s": 100}},
            "mixture": [{"name": "one", "task": "classify", "texts": "texts.jsonl", "body": {"model": "m"}}],
        }
        document |= changes
        file = tmp_path / "small.yaml"
        file.write_text(yaml.safe_dump({key: value for key, value in document.items() if value is not None}))
        return file

    return write

"""The real server in a process of its own, on a toy store, with its log as the test's clock."""

import contextlib
import hashlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

PATIENCE_S = 60
Event = dict[str, Any]


class Server:
    """`understudy serve` as a user starts it. Use as a context manager; leaving it kills what still runs."""

    def __init__(self, *options: str, **environment: str) -> None:
        command = [sys.executable, "-m", "service.cli", "serve", "--port", "0", "--log-format", "json", *options]
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("UNDERSTUDY_")}
        self._process = subprocess.Popen(command, stderr=subprocess.PIPE, env=inherited | environment, text=True)
        self._lines: queue.Queue[str | None] = queue.Queue()
        self.log: list[Event] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.url = ""

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._lines.put(line)
        self._lines.put(None)

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)
        assert self._process.stderr is not None
        self._process.stderr.close()

    def until(self, event: str, **fields: Any) -> Event:
        """Read the log up to an event whose fields are at least these."""
        while True:
            line = self._lines.get(timeout=PATIENCE_S)
            assert line is not None, f"the server ended before {event}: {self.log}"
            entry = json.loads(line)
            self.log.append(entry)
            if entry["event"] == "listening":
                self.url = f"http://{entry['host']}:{entry['port']}"
            if entry["event"] == event and fields.items() <= entry.items():
                return entry

    def ready(self) -> "Server":
        self.until("ready")
        return self

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=PATIENCE_S, **options)

    def signal(self, number: signal.Signals = signal.SIGTERM) -> None:
        self._process.send_signal(number)

    def end(self) -> int:
        """The exit status, once it has ended by itself; the rest of the log is then in `log`."""
        status = self._process.wait(PATIENCE_S)
        while (line := self._lines.get(timeout=PATIENCE_S)) is not None:
            self.log.append(json.loads(line))
        return status


StartServer = Callable[..., Server]


@pytest.fixture
def serve(store_dir: Path) -> Iterator[StartServer]:
    """`serve(*options, **environment)` starts a server on the test's store; all are killed at the end."""
    with contextlib.ExitStack() as started:
        yield lambda *options, **env: started.enter_context(Server("--store", str(store_dir), *options, **env))


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory, build_bundle: Callable[..., Path]) -> Iterator[Server]:
    """One ready server for tests that only ask."""
    root = tmp_path_factory.mktemp("shared") / "store"
    for name, task in (("toy", "classify"), ("toy-embed", "embed")):
        build_bundle(root / name / "1", task=task)
        (root / name / "aliases.json").write_text('{"schema": 1, "aliases": {"production": {"version": 1}}}')
    with Server("--store", str(root)) as server:
        yield server.ready()


@pytest.fixture
def client(shared_server: Server) -> Iterator[httpx.Client]:
    with shared_server.client() as client:
        yield client


@pytest.fixture(scope="session")
def start_server() -> StartServer:
    """`start_server(*options, **environment)`: a server on a store of the test's; a context manager."""
    return Server


# each client's tests use up the quota of a key of their own
LIMITED = ("openai", "cohere", "huggingface", "llama-index", "triton")


@pytest.fixture(scope="session")
def spoken_server(tmp_path_factory: pytest.TempPathFactory, build_bundle: Callable[..., Path]) -> Iterator[Server]:
    """One ready server for the clients of other protocols: `toy`, `toy-embed`, `judge` (rank), and keys.

    The key `open sesame` may do anything; of `LIMITED` each may ask for one item a minute.
    """
    folder = tmp_path_factory.mktemp("spoken")
    for name, task, pairs in (("toy", "classify", "none"), ("toy-embed", "embed", "none"), ("judge", "rank", "joint")):
        build_bundle(folder / "store" / name / "1", name=name, task=task, pairs=pairs)
        aliases = {"schema": 1, "aliases": {"production": {"version": 1}}}
        (folder / "store" / name / "aliases.json").write_text(json.dumps(aliases))
    limited = [{"name": name, "sha256": _digest(name), "items_per_minute": 1} for name in LIMITED]
    keys = {"schema": 1, "keys": [{"name": "all", "sha256": _digest("open sesame")}, *limited]}
    (folder / "keys.json").write_text(json.dumps(keys))
    with Server("--store", str(folder / "store"), UNDERSTUDY_API_KEYS=str(folder / "keys.json")) as server:
        yield server.ready()


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()

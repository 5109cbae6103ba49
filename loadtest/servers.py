"""Servers under test: pinned processes, paused where they are not being measured, and asked."""

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import orjson

from loadtest.errors import TargetFailed

READY_S = 180.0
END_S = 30.0
IDLE_SHARE = 0.3
_PIN = "import os, sys; os.sched_setaffinity(0, {int(sys.argv[1])}); os.execvp(sys.argv[2], sys.argv[2:])"


@dataclass(frozen=True, slots=True)
class Cores:
    """One core for the servers, one for this process."""

    server: int
    generator: int


def take_cores() -> Cores:
    """Pin this process to the first allowed core; the servers get the last. Raises: TargetFailed: only one core."""
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < 2:
        raise TargetFailed("a benchmark needs two cores: one for the server, one for the generator")
    os.sched_setaffinity(0, {allowed[0]})
    return Cores(allowed[-1], allowed[0])


def pinned(core: int, command: Sequence[str]) -> list[str]:
    """A command that runs on one core only."""
    return [sys.executable, "-c", _PIN, str(core), *command]


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


class Server:
    """A server in a process of its own, pinned, with its log in a file. A context manager; leaving it ends it."""

    def __init__(
        self, name: str, command: Sequence[str], *, port: int, core: int, environment: Mapping[str, str] | None = None
    ) -> None:
        """Not started yet.

        Args:
            name: for messages and the log file's name.
            command: what to run; it listens on `port` of 127.0.0.1.
            port: where it will listen.
            core: where it runs.
            environment: variables on top of this process's.
        """
        self.name = name
        self.url = f"http://127.0.0.1:{port}"
        self._command = pinned(core, command)
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("UNDERSTUDY_")}
        self._environment = inherited | {"OMP_NUM_THREADS": "1"} | dict(environment or {})
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None

    def __enter__(self) -> "Server":
        log = Path("runs") / "loadtest" / f"{self.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log = log.open("wb")
        self._process = subprocess.Popen(
            self._command, stdout=self._log, stderr=subprocess.STDOUT, env=self._environment
        )
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None and self._log is not None:
            self.resume()
            self._process.terminate()
            try:
                self._process.wait(END_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._log.close()

    @property
    def pid(self) -> int:
        """The process's id. It was started."""
        assert self._process is not None
        return self._process.pid

    def wait_ready(self, path: str = "/health/ready") -> "Server":
        """Wait until a GET is answered with 200 and the start is over.

        Raises: TargetFailed: it ended, or took longer than `READY_S`.
        """
        until = time.monotonic() + READY_S
        while status_of(self.url + path) != 200:
            if self._process is None or self._process.poll() is not None or time.monotonic() > until:
                log = getattr(self._log, "name", "")
                raise TargetFailed(f"{self.name} did not become ready; its log is {log}")
            time.sleep(0.1)
        return self.wait_idle()

    def wait_idle(self) -> "Server":
        """Wait until it uses less than `IDLE_SHARE` of a core: what it measures or warms after its start is over."""
        until = time.monotonic() + READY_S
        while self._cpu_share(0.5) > IDLE_SHARE and time.monotonic() < until:
            pass
        return self

    def _cpu_share(self, seconds: float) -> float:
        before = self._cpu_seconds()
        time.sleep(seconds)
        return (self._cpu_seconds() - before) / seconds

    def _cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def waited_s(self) -> float:
        """Seconds that its main thread was ready to run and its core did other things; NaN where nobody counts."""
        try:
            return int(Path(f"/proc/{self.pid}/schedstat").read_text(encoding="ascii").split()[1]) / 1e9
        except (OSError, IndexError, ValueError):
            return math.nan

    def pause(self) -> None:
        """Stop it where it is."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it run on."""
        if self._process is not None and self._process.poll() is None:
            os.kill(self.pid, signal.SIGCONT)

    @contextmanager
    def alone(self, servers: Sequence["Server"]) -> Iterator[None]:
        """Inside, of these servers only this one runs."""
        for server in servers:
            if server is not self:
                server.pause()
        self.resume()
        try:
            yield
        finally:
            for server in servers:
                server.resume()

    def resident_bytes(self) -> int:
        """Memory that the process holds. Raises: TargetFailed: it has ended."""
        try:
            lines = Path(f"/proc/{self.pid}/status").read_text(encoding="ascii").splitlines()
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))
        except (OSError, StopIteration) as error:
            raise TargetFailed(f"{self.name} has ended") from error


def understudy(
    store: Path,
    *,
    core: int,
    name: str = "understudy",
    options: Sequence[str] = (),
    environment: Mapping[str, str] = {},
) -> Server:
    """Our server on a store, one slot."""
    port = free_port()
    command = [sys.executable, "-m", "service.cli", "serve", "--store", str(store), "--port", str(port), "--slots", "1"]
    return Server(name, [*command, *options], port=port, core=core, environment=environment)


def echo(*, core: int) -> Server:
    """The plain route that ours is compared with (`bench_echo`)."""
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "loadtest.bench_echo:app", "--port", str(port)]
    return Server("echo", [*command, "--log-level", "warning", "--no-access-log"], port=port, core=core)


class LineProcess:
    """A pinned process that answers a line of JSON for each line it gets. A context manager."""

    def __init__(self, command: Sequence[str], *, core: int) -> None:
        self._process = subprocess.Popen(
            pinned(core, command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=dict(os.environ) | {"OMP_NUM_THREADS": "1"},
        )
        self.first = self._read()

    def __enter__(self) -> "LineProcess":
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(END_S)
        self._process.stdout.close()

    def ask(self, line: str) -> Any:
        """Send a line; the answer. Raises: TargetFailed: the process ended."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise TargetFailed(f"a process ended: {' '.join(map(str, self._process.args))[-200:]}")  # type: ignore[arg-type]
        return json.loads(line)


def status_of(url: str) -> int:
    """The status of a GET; 0 where nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def ask(url: str, body: Mapping[str, Any] | None = None) -> Any:
    """The JSON answer of a POST, or of a GET. Raises: TargetFailed: any other status than 200."""
    data = None if body is None else orjson.dumps(body)
    request = urllib.request.Request(url, data=data, headers={"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return orjson.loads(answer.read())
    except urllib.error.HTTPError as error:
        raise TargetFailed(f"{url}: {error.code}: {error.read()[:300].decode(errors='replace')}") from error
    except OSError as error:
        raise TargetFailed(f"{url}: {error}") from error

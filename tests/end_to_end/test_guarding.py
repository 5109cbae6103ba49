"""The real server guarded: slow and endless headers, keys that change while it runs, the admin key, `--check`."""

import contextlib
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.api.keys import digest_of

PATIENCE_S = 60
ADMIN_KEY = "the key of the administrator"


def raw(server: Any, data: bytes) -> bytes:
    """Send bytes, and return all that comes until the server closes."""
    address = tuple(server.url.removeprefix("http://").split(":"))
    came: list[bytes] = []
    # a server that has refused does not read the rest, and its system resets the connection after the answer
    with socket.create_connection(address, timeout=PATIENCE_S) as connection, contextlib.suppress(ConnectionError):
        with contextlib.suppress(ConnectionError):
            connection.sendall(data)
        came.extend(iter(lambda: connection.recv(1 << 16), b""))
    return b"".join(came)


def write_keys(path: Path, *names: str) -> Path:
    entries = [{"name": name, "sha256": digest_of(f"the key of {name}")} for name in names]
    aside = path.with_suffix(".new")
    aside.write_text(json.dumps({"schema": 1, "keys": entries}))
    aside.replace(path)
    return path


def classify(client: Any, key: str) -> int:
    status: int = client.post("/v1/classify", json={"inputs": "good"}, headers={"x-api-key": key}).status_code
    return status


@contextlib.contextmanager
def asking(client: Any, key: str) -> Iterator[set[int]]:
    """Ask again and again meanwhile; yields the statuses."""
    stop, seen = threading.Event(), set[int]()

    def ask() -> None:
        while not stop.is_set():
            seen.add(classify(client, key))

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join(PATIENCE_S)


def test_headers_are_bounded_in_time_and_size(serve: Any) -> None:
    server = serve("--header-timeout-s", "0.3").ready()
    assert raw(server, b"") == b""
    assert raw(server, b"POST /v1/classify HTTP/1.1\r\nhost: x\r\n").startswith(b"HTTP/1.1 408 ")
    assert raw(server, b"GET / HTTP/1.1\r\nx: " + b"y" * (1 << 16)).startswith(b"HTTP/1.1 431 ")
    with server.client() as client:
        assert client.get("/health/live").status_code == 200


def test_keys_change_while_it_runs(serve: Any, tmp_path: Path) -> None:
    keys = write_keys(tmp_path / "keys.json", "web")
    server = serve("--api-keys", str(keys), UNDERSTUDY_ADMIN_KEY=ADMIN_KEY).ready()
    with server.client() as client:
        assert classify(client, "the key of web") == 200
        write_keys(keys, "fresh")
        while classify(client, "the key of fresh") != 200:
            pass
        assert classify(client, "the key of web") == 401
        keys.write_text("{")
        with asking(client, "the key of fresh") as seen:
            refused = server.until("keys_refused")
        assert (refused["kept"], seen) == (1, {200})
        assert client.get("/admin/status").status_code == 401
        status = client.get("/admin/status", headers={"authorization": f"Bearer {ADMIN_KEY}"})
        assert [caller["name"] for caller in status.json()["callers"]] == ["fresh"]
    server.signal()
    assert server.end() == 0
    assert ADMIN_KEY not in json.dumps(server.log)
    assert "the key of" not in json.dumps(server.log)


def run(*arguments: str) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "service.cli", "serve", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("options", [(), ("--check",)])
def test_broken_keys_at_the_start_are_one_line(store_dir: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    (tmp_path / "keys.json").write_text('{"schema": 1, "keys": [{"name": "web"}]}')
    status, out, err = run("--store", str(store_dir), "--api-keys", str(tmp_path / "keys.json"), *options)
    assert (status, out) == (2, "")
    assert err == f"understudy: {tmp_path}/keys.json: /keys/0/sha256: Field required\n"


def test_a_check_tells_no_secret(store_dir: Path, tmp_path: Path) -> None:
    keys = write_keys(tmp_path / "keys.json", "web")
    status, out, err = run(
        "--store", str(store_dir), "--check", "--admin-key", ADMIN_KEY, "--api-keys", str(keys), "--port", "0"
    )
    assert (status, err) == (0, "")
    printed = json.loads(out)
    assert (printed["admin_key"], printed["api_keys"]) == ("set", str(keys))
    assert ADMIN_KEY not in out
    status, _, err = run("--check", "--admin-key", "too short")
    assert (status, err.count("\n"), "too short" in err) == (2, 1, False)


def test_a_stopping_server_answers_until_the_delay_is_over(serve: Any) -> None:
    server = serve("--drain-delay-s", "3600").ready()
    server.signal()
    server.until("draining")
    with server.client() as client:
        assert client.get("/health/ready").json()["detail"] == "the service is stopping"
        assert client.get("/health/live").status_code == 200
        assert client.post("/v1/classify", json={"inputs": "good"}).status_code == 200
    server.signal()
    assert server.end() == 0


def test_after_the_delay_it_stops(serve: Any) -> None:
    server = serve("--drain-delay-s", "0.2").ready()
    server.signal()
    assert server.end() == 0
    assert next(entry for entry in server.log if entry["event"] == "drained")["unanswered"] == 0

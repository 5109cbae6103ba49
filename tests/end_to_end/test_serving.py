"""The life of a server: start, follow the store, refuse what is broken, stop without losing a request."""

import json
import re
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.store.store import Store

PATIENCE_S = 60


def _version(client: httpx.Client) -> int:
    response = client.post("/v1/classify", json={"model": "toy", "inputs": "this film is great"})
    assert response.status_code == 200
    version: int = response.json()["version"]
    return version


def test_a_published_version_takes_effect_without_a_restart(
    serve: Any, store_dir: Path, tmp_path: Path, build_bundle: Any
) -> None:
    server = serve().ready()
    store = Store(store_dir)
    with server.client() as client:
        assert _version(client) == 1
        assert store.publish(build_bundle(tmp_path / "second", seed=1), name="toy", alias=None) == 2
        assert _version(client) == 1
        store.set_alias("toy", "production", 2)
        server.until("aliases_served", model="toy", aliases={"production": 2})
        assert _version(client) == 2
        store.set_alias("toy", "production", 1)
        server.until("aliases_served", model="toy", aliases={"production": 1})
        assert _version(client) == 1


def test_no_request_is_lost_while_versions_change(serve: Any, store_dir: Path, build_bundle: Any) -> None:
    build_bundle(store_dir / "toy" / "2", seed=1)
    server, store = serve().ready(), Store(store_dir)
    stop = threading.Event()

    def ask() -> set[int]:
        seen = set()
        with server.client() as client:
            while not stop.is_set():
                seen.add(_version(client))
        return seen

    with ThreadPoolExecutor(4) as clients:
        asking = [clients.submit(ask) for _ in range(4)]
        for version in (2, 1, 2):
            store.set_alias("toy", "production", version)
            server.until("aliases_served", model="toy", aliases={"production": version})
        stop.set()
        assert set.union(*(each.result(PATIENCE_S) for each in asking)) == {1, 2}


def test_a_broken_version_is_refused_and_the_old_one_serves(serve: Any, store_dir: Path, build_bundle: Any) -> None:
    server = serve().ready()
    build_bundle(store_dir / "toy" / "2", seed=1)
    graph = store_dir / "toy" / "2" / "stages" / "01.int8.onnx"
    graph.write_bytes(graph.read_bytes()[::-1])
    _point(store_dir, "toy", 2)
    refused = server.until("refused", model="toy", version=2)
    assert refused["error"] == "digest_mismatch"
    assert "stages/01.int8.onnx" in refused["detail"]
    with server.client() as client:
        assert _version(client) == 1
        assert client.get("/health/ready").status_code == 200
        metrics = client.get("/metrics").text
        assert 'understudy_bundle_refused_total{error="digest_mismatch",model="toy"} 1.0' in metrics


def _point(store: Path, name: str, version: int) -> None:
    """Move an alias as a person with an editor does, past the store's own checks."""
    aside = store / name / ".edited"
    aside.write_text(json.dumps({"schema": 1, "aliases": {"production": {"version": version}}}))
    aside.replace(store / name / "aliases.json")


def test_a_student_broken_from_the_start_leaves_the_others_served(serve: Any, store_dir: Path) -> None:
    (store_dir / "toy" / "1" / "tokenizer.json").unlink()
    server = serve()
    told = server.until("not_ready")
    assert told["waiting_for"] == {"toy": "refused: file_missing"}
    with server.client() as client:
        assert client.post("/v1/embed", json={"inputs": "a"}).status_code == 200
        assert client.post("/v1/classify", json={"inputs": "a", "model": "toy"}).status_code == 503
        assert client.get("/health/ready").json()["waiting_for"] == {"toy": "refused: file_missing"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopping_answers_everything_that_was_asked(serve: Any, number: signal.Signals) -> None:
    server = serve("--slots", "1", "--log-level", "debug").ready()
    body = json.dumps({"inputs": ["good " * 30] * 1000, "exit": "never"})
    asked = threading.Barrier(9, timeout=PATIENCE_S)

    def ask() -> int:
        with socket.create_connection(tuple(server.url.removeprefix("http://").split(":")), timeout=PATIENCE_S) as raw:
            head = f"POST /v1/classify HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n"
            raw.sendall(head.encode() + body.encode())
            asked.wait()
            answer = b"".join(iter(lambda: raw.recv(1 << 16), b""))
        headers, _, content = answer.partition(b"\r\n\r\n")
        status = int(headers.split()[1])
        assert len(json.loads(content).get("results", ())) == (1000 if status == 200 else 0)
        return status

    with ThreadPoolExecutor(8) as clients:
        asking = [clients.submit(ask) for _ in range(8)]
        asked.wait()
        server.until("request", endpoint="/v1/classify")
        server.signal(number)
        statuses = [each.result(PATIENCE_S) for each in asking]
    assert server.end() == 0
    assert statuses.count(200) >= 1
    assert set(statuses) <= {200, 503}
    assert next(entry for entry in server.log if entry["event"] == "drained")["unanswered"] == 0


def test_what_cannot_finish_in_time_is_told_so(serve: Any) -> None:
    server = serve("--slots", "1", "--drain-timeout-s", "0", "--log-level", "debug").ready()
    with server.client() as client, ThreadPoolExecutor(4) as clients:
        body = {"inputs": ["good " * 30] * 2000, "exit": "never"}
        asking = [clients.submit(client.post, "/v1/classify", json=body) for _ in range(4)]
        server.until("request", endpoint="/v1/classify")
        server.signal()
        assert {each.result(PATIENCE_S).status_code for each in asking} <= {200, 503}
    assert server.end() == 0


def _told_after(server: Any, sent: bytes) -> bytes:
    """What the server says, up to its closing the connection, to a client that sends so much and then nothing."""
    host, port = server.url.removeprefix("http://").rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=PATIENCE_S) as raw:
        raw.sendall(sent)
        return b"".join(iter(lambda: raw.recv(4096), b""))


def test_a_half_sent_body_times_out_and_nobody_else_notices(serve: Any) -> None:
    server = serve("--body-timeout-s", "0.3").ready()
    head = b"POST /v1/classify HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n"
    for sent in (head, head + b'{"inputs": '):
        answer = _told_after(server, sent)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"connection: close" in answer
        assert json.loads(answer.rpartition(b"\r\n\r\n")[2])["code"] == "body_timeout"
    with server.client() as client:
        assert _version(client) == 1


def test_a_client_that_wants_no_more_has_its_connection_closed(serve: Any) -> None:
    body = b'{"inputs": "this film is great"}'
    head = b"POST /v1/classify HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body)
    answer = _told_after(serve().ready(), head + body)
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"\r\nconnection: close\r\n" in answer
    assert json.loads(answer.rpartition(b"\r\n\r\n")[2])["results"][0]["label"] == "positive"


def test_requests_sent_one_upon_the_other_are_answered_in_order(serve: Any) -> None:
    bodies = [b'{"inputs": "%s"}' % text for text in (b"this film is great", b"it was awful", b"good", b"bad bad")]
    head = b"POST /v1/classify HTTP/1.1\r\nhost: x\r\nx-request-id: r%d\r\n%bcontent-length: %d\r\n\r\n%b"
    last = len(bodies) - 1
    sent = [
        head % (at, b"connection: close\r\n" if at == last else b"", len(body), body) for at, body in enumerate(bodies)
    ]
    answer = _told_after(serve().ready(), b"".join(sent))
    assert re.findall(rb"x-request-id: (\w+)", answer) == [b"r0", b"r1", b"r2", b"r3"]
    assert re.findall(rb'"label":"(\w+)"', answer) == [b"positive", b"negative", b"positive", b"negative"]


def test_a_port_in_use_is_one_line(serve: Any, store_dir: Path) -> None:
    port = serve().ready().url.rsplit(":", 1)[1]
    status, told = _run("serve", "--store", str(store_dir), "--port", port)
    assert (status, told) == (2, f"understudy: cannot listen on 127.0.0.1:{port}: Address already in use\n")


def test_no_store_is_one_line(tmp_path: Path) -> None:
    status, told = _run("serve", "--store", str(tmp_path / "none"))
    assert status == 2
    assert told == f"understudy: store (UNDERSTUDY_STORE) = '{tmp_path}/none': no such directory\n"


def test_wrong_settings_are_one_line(store_dir: Path) -> None:
    status, told = _run("serve", "--store", str(store_dir), "--slots", "0", "--log-level", "loud")
    assert status == 2
    assert told.startswith("understudy: slots (UNDERSTUDY_SLOTS) = 0: ")
    assert told.count("\n") == 1


def test_a_mistyped_variable_is_told(serve: Any) -> None:
    assert serve(UNDERSTUDY_SLOT="1").until("unknown_setting")["variable"] == "UNDERSTUDY_SLOT"


def _run(*arguments: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "service.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    return done.returncode, done.stderr


def test_no_text_is_logged(serve: Any) -> None:
    server = serve("--log-level", "debug").ready()
    with server.client() as client:
        client.post("/v1/classify", json={"inputs": "sesame", "model": "sesame"})
        client.post("/v1/classify", json={"inputs": {"sesame": 1}})
        client.post("/v1/classify", json={"inputs": "sesame"})
        client.get("/sesame")
    server.signal()
    assert server.end() == 0
    assert "sesame" not in json.dumps(server.log)
    assert sum(entry["event"] == "request" for entry in server.log) == 4


def test_the_online_half_imports_no_torch() -> None:
    program = (
        "import sys, service.cli, service.api.serve_command as command;"
        "from service.settings import load_settings;"
        "command.create_app(load_settings());"
        "heavy = {'torch', 'transformers', 'onnx', 'scipy', 'sklearn', 'models'} & set(sys.modules);"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_containers_health_check(serve: Any, store_dir: Path) -> None:
    script = Path(__file__).parents[2] / "docker" / "healthcheck.py"

    def check(url: str) -> int:
        environment = {"UNDERSTUDY_PORT": url.rsplit(":", 1)[1], "http_proxy": "http://127.0.0.1:1"}
        return subprocess.run(
            [sys.executable, str(script)], env=environment, timeout=PATIENCE_S, check=False
        ).returncode

    assert check(serve().ready().url) == 0
    (store_dir / "toy" / "1" / "tokenizer.json").unlink()
    unready = serve()
    unready.until("not_ready")
    assert check(unready.url) == 1

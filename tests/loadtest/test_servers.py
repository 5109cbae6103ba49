"""Processes under test: pinned, paused, asked, and ended."""

import math
import os
import sys
from pathlib import Path

import pytest

from loadtest import servers
from loadtest.errors import TargetFailed
from loadtest.servers import LineProcess, Server, ask, echo, free_port, pinned, status_of, take_cores, understudy

CORE = min(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
pytestmark = pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="pins processes to cores: Linux only")


@pytest.fixture(autouse=True)
def _logs_go_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def files_server(tmp_path):
    port = free_port()
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", str(tmp_path)]
    return Server("files", command, port=port, core=CORE)


def test_a_server_is_started_pinned_waited_for_and_ended(tmp_path):
    (tmp_path / "a.json").write_text('{"a": 1}')
    with files_server(tmp_path) as server, files_server(tmp_path) as other:
        assert server.wait_ready("/") is server
        other.wait_ready("/")
        assert os.sched_getaffinity(server.pid) == {CORE}
        assert server.resident_bytes() > 1 << 20
        assert server.waited_s() >= 0 or math.isnan(server.waited_s())
        assert ask(server.url + "/a.json") == {"a": 1}
        with pytest.raises(TargetFailed, match="501"):
            ask(server.url + "/a.json", {"x": 1})
        with server.alone([server, other]):
            while state_of(other) != "T":  # the signal is on its way
                pass
            assert status_of(server.url + "/a.json") == 200
        while state_of(other) == "T":
            pass
        assert status_of(server.url + "/none") == 404
    assert status_of(server.url) == 0
    with pytest.raises(TargetFailed, match="has ended"):
        server.resident_bytes()
    with pytest.raises(TargetFailed, match=r"127\.0\.0\.1"):
        ask(server.url)


def state_of(server):
    return Path(f"/proc/{server.pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_paused_server_can_be_ended(tmp_path):
    with files_server(tmp_path) as server:
        server.wait_ready("/")
        server.pause()


def test_a_server_that_does_not_heed_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(servers, "END_S", 0.2)
    code = "import signal, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN); open('up', 'w').close(); signal.pause()"
    with Server("deaf", [sys.executable, "-c", code], port=1, core=CORE) as server:
        while not (tmp_path / "up").exists():
            assert state_of(server) != "Z"
        pid = server.pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_server_that_ends_at_once_is_told_with_its_log(tmp_path):
    with (
        Server("brief", [sys.executable, "-c", "raise SystemExit(3)"], port=1, core=CORE) as server,
        pytest.raises(TargetFailed, match=r"brief did not become ready; its log is .*brief\.log"),
    ):
        server.wait_ready()


def test_our_server_is_started_by_its_command_line(tmp_path):
    made = understudy(tmp_path / "s", core=CORE, options=["--precision", "int8"], environment={"UNDERSTUDY_X": "1"})
    assert made.name == "understudy"
    command = made._command
    assert command[command.index("--store") + 1] == str(tmp_path / "s") and command[-2:] == ["--precision", "int8"]
    assert made._environment["UNDERSTUDY_X"] == "1" and made._environment["OMP_NUM_THREADS"] == "1"


def test_the_echo_route_answers_what_it_is_asked():
    with echo(core=CORE) as plain:
        plain.wait_ready()
        assert ask(plain.url + "/v1/classify", {"inputs": "good"}) == {"model": None, "inputs": "good"}


def test_a_process_answers_line_by_line():
    code = "import sys\nprint('{\"ready\": 1}', flush=True)\nfor line in sys.stdin: print(int(line) * 2, flush=True)"
    with LineProcess([sys.executable, "-c", code], core=CORE) as process:
        assert process.first == {"ready": 1}
        assert [process.ask("4"), process.ask("5")] == [8, 10]


def test_a_process_that_ends_is_told():
    code = "import sys; print(0, flush=True); sys.stdin.readline()"
    with LineProcess([sys.executable, "-c", code], core=CORE) as process, pytest.raises(TargetFailed, match="ended"):
        process.ask("")


def test_the_generator_takes_the_first_core_and_leaves_the_last():
    before = os.sched_getaffinity(0)
    try:
        if len(before) > 1:
            cores = take_cores()
            assert os.sched_getaffinity(0) == {cores.generator}
            assert (cores.generator, cores.server) == (min(before), max(before))
        os.sched_setaffinity(0, {min(before)})
        with pytest.raises(TargetFailed, match="two cores"):
            take_cores()
    finally:
        os.sched_setaffinity(0, before)
    assert pinned(3, ["a", "b"])[-3:] == ["3", "a", "b"]

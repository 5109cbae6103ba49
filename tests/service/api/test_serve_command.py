"""`understudy serve` up to the point where it serves; the rest is in tests/end_to_end."""

import gc
import inspect
import json
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from service.api import serve_command
from service.api.connection import Connection
from service.api.serve_command import SWITCH_S, listen, run, serve, settle, tune
from service.errors import SettingsInvalid
from service.settings import Settings, load_settings


def test_every_setting_is_an_option() -> None:
    parameters = inspect.signature(serve).parameters
    assert set(parameters) == {"check", *Settings.model_fields}
    assert all(parameter.default is None for name, parameter in parameters.items() if name != "check")


def test_check_prints_the_settings_in_effect(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNDERSTUDY_TOKEN_BUDGET", "1024")
    serve(check=True, port=9, store=Path("elsewhere"))
    printed = json.loads(capsys.readouterr().out)
    assert (printed["token_budget"], printed["port"], printed["store"]) == (1024, 9, "elsewhere")
    assert set(printed) == set(Settings.model_fields)


def test_check_tells_of_a_variable_that_is_no_setting(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNDERSTUDY_TOKEN_BUGDET", "1024")
    serve(check=True)
    told = capsys.readouterr()
    assert told.err == "warning: UNDERSTUDY_TOKEN_BUGDET: no such setting\n"
    assert json.loads(told.out)["token_budget"] == 8192


def test_no_such_store(tmp_path: Path) -> None:
    with pytest.raises(SettingsInvalid, match=r"store \(UNDERSTUDY_STORE\) = '.*absent': no such directory"):
        serve(store=tmp_path / "absent")


def test_a_taken_port() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SettingsInvalid, match=f"cannot listen on 127.0.0.1:{port}: Address already in use"):
            listen("127.0.0.1", port)


def test_an_unknown_host() -> None:
    with pytest.raises(SettingsInvalid, match=r"host .*'not a host'"):
        listen("not a host", 0)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0"])
def test_listening(host: str) -> None:
    with listen(host, 0) as listening:
        assert listening.getsockname()[1] > 0


@pytest.fixture
def process_as_it_was() -> Iterator[None]:
    thresholds, switch_s = gc.get_threshold(), sys.getswitchinterval()
    yield
    gc.set_threshold(*thresholds)
    gc.unfreeze()
    sys.setswitchinterval(switch_s)


@pytest.mark.usefixtures("process_as_it_was")
def test_the_process_is_tuned_but_a_users_wish_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    tune()
    assert os.environ["TOKENIZERS_PARALLELISM"] == "true"
    assert sys.getswitchinterval() == pytest.approx(SWITCH_S)
    monkeypatch.delenv("TOKENIZERS_PARALLELISM")
    tune()
    assert os.environ.pop("TOKENIZERS_PARALLELISM") == "false"


@pytest.mark.usefixtures("process_as_it_was")
def test_connections_have_the_short_road(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    class Server:
        def __init__(self, config: Any, app: Any) -> None:
            seen.extend((config.http, app))

        def run(self, sockets: list[socket.socket]) -> None:
            sockets[0].close()

    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    monkeypatch.setattr(serve_command, "Server", Server)
    monkeypatch.setattr(serve_command, "disable_created_metrics", lambda: None)
    run(load_settings(store=tmp_path, host="127.0.0.1", port=0, header_timeout_s=7))
    kind, app = seen
    assert issubclass(kind, Connection)
    assert (kind.header_timeout_s, kind.express_of()) == (7, None)
    app.state.express = "the short road"
    assert kind.express_of() == "the short road"


@pytest.mark.usefixtures("process_as_it_was")
async def test_what_is_loaded_stays_out_of_the_collectors_sight() -> None:
    async def until(condition: Any) -> None:
        assert condition()

    await settle(SimpleNamespace(students=SimpleNamespace(ready=True, until=until)))  # type: ignore[arg-type]
    assert gc.get_freeze_count() > 0

"""`understudy serve` up to the point where it serves; the rest is in tests/end_to_end."""

import inspect
import json
import socket
from pathlib import Path

import pytest

from service.api.serve_command import listen, serve
from service.errors import SettingsInvalid
from service.settings import Settings


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

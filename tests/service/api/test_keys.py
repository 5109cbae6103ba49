"""The file of API keys: strictly read, followed, never half in effect."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from service.api.keys import MAX_FILE_BYTES, KeyFile, digest_of, new_key, read_keys
from service.errors import SettingsInvalid

DIGEST = digest_of("a key")


def write(path: Path, *keys: Any, **document: Any) -> Path:
    """Put a new file in the old one's place, as tools that care do."""
    aside = path.with_name(path.name + ".new")
    aside.write_text(json.dumps({"schema": 1, "keys": keys} | document))
    aside.replace(path)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def test_every_field(path: Path) -> None:
    limits = {"items_per_minute": 60, "compute_per_minute": 1e6, "max_request_compute": 5000}
    entry = {"name": "web", "sha256": DIGEST, **limits, "full_depth": False, "models": ["intent"]}
    (key,) = read_keys(write(path, entry))
    assert key.model_dump(mode="json") == entry
    (plain,) = read_keys(write(path, {"name": "web", "sha256": DIGEST}))
    assert (plain.items_per_minute, plain.full_depth, plain.models) == (None, True, None)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"name": None}, "/keys/1/name: Input should be a valid string"),
        ({"name": "has space"}, "/keys/1/name: String should match pattern"),
        ({"sha256": "A" * 64}, "/keys/1/sha256: String should match pattern"),
        ({"sha256": DIGEST[:-1]}, "/keys/1/sha256: String should match pattern"),
        ({"key": "secret"}, "/keys/1/key: Extra inputs are not permitted"),
        ({"items_per_minute": 0}, "/keys/1/items_per_minute: Input should be greater than or equal to 1"),
        ({"compute_per_minute": "many"}, "/keys/1/compute_per_minute: Input should be a valid number"),
        ({"max_request_compute": True}, "/keys/1/max_request_compute: Input should be a valid number"),
        ({"full_depth": 1}, "/keys/1/full_depth: Input should be a valid boolean"),
        ({"models": "intent"}, "/keys/1/models: Input should be a valid array"),
        ({"models": ["intent@2"]}, "/keys/1/models: 'intent@2' is not a student's name"),
        ({"name": "first"}, "/keys/1/name: the same as of /keys/0"),
        ({"sha256": "0" * 64}, "/keys/1/sha256: the same as of /keys/0"),
    ],
)
def test_a_wrong_entry_is_one_line_with_file_entry_and_field(path: Path, change: dict[str, Any], told: str) -> None:
    write(path, {"name": "first", "sha256": "0" * 64}, {"name": "web", "sha256": DIGEST} | change)
    with pytest.raises(SettingsInvalid) as raised:
        read_keys(path)
    assert str(raised.value).startswith(f"{path}: {told}")
    assert "\n" not in str(raised.value)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "not JSON: "),
        (b"[]", "not an object"),
        (b'{"keys": []}', "/schema: Field required"),
        (b'{"schema": 2, "keys": []}', "/schema: Input should be 1"),
        (b'{"schema": 1}', "/keys: Field required"),
        (b'{"schema": 1, "keys": [], "keys": []}', "not JSON: 'keys' occurs twice in one object"),
        (b'{"schema": 1, "keys": [], "more": 1}', "/more: Extra inputs are not permitted"),
        (b"\xff", "not JSON: "),
        (b" " * (MAX_FILE_BYTES + 1), f"over {MAX_FILE_BYTES} bytes"),
    ],
)
def test_a_wrong_file_is_one_line(path: Path, content: bytes, told: str) -> None:
    path.write_bytes(content)
    with pytest.raises(SettingsInvalid) as raised:
        read_keys(path)
    assert str(raised.value).startswith(f"{path}: {told}")
    assert "\n" not in str(raised.value)


def test_no_file(path: Path) -> None:
    with pytest.raises(SettingsInvalid, match=r"keys\.json: cannot be read: No such file"):
        KeyFile(path, clock=lambda: 0.0)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def names(keys: KeyFile) -> list[str]:
    return [key.name for key in keys.keys]


def test_a_changed_file_is_noticed_at_most_once_a_second(path: Path) -> None:
    clock = Clock()
    keys = KeyFile(write(path, {"name": "old", "sha256": DIGEST}), clock=clock)
    write(path, {"name": "new", "sha256": DIGEST}, {"name": "more", "sha256": "0" * 64})
    clock.now = 0.9
    assert not keys.changed()
    assert names(keys) == ["old"]
    clock.now = 1.0
    assert keys.changed()
    assert names(keys) == ["new", "more"]
    clock.now = 2.0
    assert not keys.changed()


def test_a_broken_or_missing_new_file_keeps_the_old_keys_and_is_told_once(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    keys = KeyFile(write(path, {"name": "old", "sha256": DIGEST}), clock=clock)
    path.write_text("{")
    for clock.now in (1.0, 2.0, 3.0):
        assert not keys.changed()
    assert names(keys) == ["old"]
    assert [record.getMessage() for record in caplog.records] == ["keys_refused"]
    path.unlink()
    for clock.now in (4.0, 5.0):
        assert not keys.changed()
    assert names(keys) == ["old"]
    assert [record.getMessage() for record in caplog.records] == ["keys_refused"] * 2
    write(path, {"name": "new", "sha256": DIGEST})
    clock.now = 6.0
    assert keys.changed()
    assert names(keys) == ["new"]


def test_a_change_within_the_files_time_resolution_is_seen_by_its_size(path: Path) -> None:
    clock = Clock()
    keys = KeyFile(write(path, {"name": "old", "sha256": DIGEST}), clock=clock)
    status = path.stat()
    write(path, {"name": "newer", "sha256": DIGEST})
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    clock.now = 1.0
    assert keys.changed()
    assert names(keys) == ["newer"]


def test_new_keys_are_long_and_differ() -> None:
    made = {new_key() for _ in range(100)}
    assert len(made) == 100
    assert all(len(key) == 35 and key.startswith("us-") for key in made)

"""docs/keys.md agrees with the reader of the file, and docs/operations.md names what there is."""

import re
from pathlib import Path

from service.api.access import is_open
from service.api.app import create_app
from service.api.keys import KeyEntry, read_keys
from service.api.protocol import MAX_HEADER_BYTES
from service.metrics import Metrics
from service.settings import Settings, load_settings

DOCS = Path(__file__).parents[2] / "docs"
KEYS, OPERATIONS = (DOCS / "keys.md").read_text(), (DOCS / "operations.md").read_text()


def test_every_field_has_a_row() -> None:
    table = KEYS.partition("## The file")[2].partition("## Quotas")[0]
    assert re.findall(r"^\| `(\w+)`", table, re.MULTILINE) == list(KeyEntry.model_fields)


def test_the_example_is_read(tmp_path: Path) -> None:
    found = re.search(r"```json\n(.*?)```", KEYS, re.DOTALL)
    assert found is not None
    (tmp_path / "keys.json").write_text(found[1])
    web, batch = read_keys(tmp_path / "keys.json")
    assert (web.items_per_minute, batch.full_depth, batch.models) == (None, False, ("intent", "sentiment"))


def test_the_open_paths_are_open() -> None:
    row = next(line for line in KEYS.splitlines() if line.endswith("| none |"))
    paths = re.findall(r"`(/\S+?)`", row)
    assert len(paths) >= 6
    assert all(is_open(path.replace("*", "live"), "GET") for path in paths)
    assert is_open("/v1/embed", "OPTIONS")


def test_the_settings_named_are_settings() -> None:
    named = set(re.findall(r"`([a-z]+_[a-z_]+)`", KEYS.partition("## Limits that hold")[2]))
    assert named <= set(Settings.model_fields)
    assert f"{MAX_HEADER_BYTES >> 10} KiB" in KEYS
    variables = set(re.findall(r"UNDERSTUDY_([A-Z_]+)", KEYS + OPERATIONS))
    assert variables <= {name.upper() for name in Settings.model_fields}


def test_every_series_to_watch_is_one() -> None:
    there = set(re.findall(r"^# TYPE (understudy_\w+)", Metrics().exposition().decode(), re.MULTILINE))
    named = set(re.findall(r"understudy_[a-z_]+", OPERATIONS))
    assert named
    assert {name.removesuffix("_bucket").removesuffix("_count").removesuffix("_sum") for name in named} <= there


def test_every_admin_route_is_told(tmp_path: Path) -> None:
    paths = create_app(load_settings(store=tmp_path, admin_key="x" * 16)).openapi()["paths"]
    assert not {path for path in paths if path.startswith(("/admin", "/health")) and path not in OPERATIONS}

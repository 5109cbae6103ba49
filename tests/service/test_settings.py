"""Settings: where they come from, what they refuse, and the CPU quota behind their default."""

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from service.errors import SettingsInvalid
from service.settings import Settings, cpu_quota, load_settings, memory_quota, settings_table, shown, unknown_variables


def test_options_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDERSTUDY_PORT", "8001")
    monkeypatch.setenv("UNDERSTUDY_TOKEN_BUDGET", "512")
    settings = load_settings(port=8002, host=None)
    assert (settings.port, settings.token_budget, settings.host) == (8002, 512, "127.0.0.1")


def test_an_empty_variable_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDERSTUDY_PORT", "")
    monkeypatch.setenv("UNDERSTUDY_DEFAULT_DEADLINE_MS", "")
    assert load_settings().port == 8000
    assert load_settings().default_deadline_ms is None


def test_the_data_variable_is_no_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDERSTUDY_DATA", "/data")
    assert "data" not in load_settings().model_dump()


def test_frozen() -> None:
    with pytest.raises(ValidationError):
        load_settings().port = 1  # type: ignore[misc]


def test_required_students_are_a_list_of_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDERSTUDY_REQUIRED", "intent, sentiment,")
    assert load_settings().required == ("intent", "sentiment")
    assert load_settings(required="a").required == ("a",)


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("port", 65536),
        ("port", "eighty"),
        ("slots", 0),
        ("threads_per_slot", 0),
        ("token_budget", 7),
        ("max_queue_items", 0),
        ("max_items", 0),
        ("max_body_bytes", 1),
        ("default_deadline_ms", 0),
        ("default_deadline_ms", "inf"),
        ("default_truncate", "middle"),
        ("drain_timeout_s", -1),
        ("drain_timeout_s", "nan"),
        ("backend", "abacus"),
        ("precision", "int 8"),
        ("log_level", "loud"),
        ("log_format", "xml"),
    ],
)
def test_out_of_bounds_is_one_line_that_names_it(field: str, wrong: object) -> None:
    with pytest.raises(SettingsInvalid) as caught:
        load_settings(**{field: wrong})
    message = str(caught.value)
    assert message.startswith(f"{field} (UNDERSTUDY_{field.upper()}) = {wrong!r}: ")
    assert "\n" not in message


def test_every_wrong_setting_is_told_at_once() -> None:
    with pytest.raises(SettingsInvalid, match=r"port .*; slots "):
        load_settings(port=-1, slots=0)


def test_a_request_that_could_never_be_admitted_is_refused_at_start() -> None:
    with pytest.raises(SettingsInvalid, match=r"max_items \(4096\) is above max_queue_items \(16\)"):
        load_settings(max_queue_items=16)
    assert load_settings(max_queue_items=16, max_items=16).max_items == 16


def test_typing_errors_in_variables_are_found() -> None:
    variables = {"UNDERSTUDY_PORTS": "1", "UNDERSTUDY_PORT": "1", "UNDERSTUDY_DATA": "/data", "PATH": ""}
    assert unknown_variables(variables) == ["UNDERSTUDY_PORTS"]


def test_slots_take_the_cores_that_threads_leave() -> None:
    cores = max(1, int(cpu_quota()))
    assert load_settings().slots == cores
    assert load_settings(threads_per_slot=cores).slots == 1
    assert load_settings(threads_per_slot=256).slots == 1


def test_every_setting_has_help_and_the_table_shows_it() -> None:
    table = settings_table()
    for name, field in Settings.model_fields.items():
        assert field.description
        assert f"| `{name}` | `UNDERSTUDY_{name.upper()}` |" in table


class TestCpuQuota:
    affinity = float(len(os.sched_getaffinity(0)))

    def _written(self, root: Path, own: str, files: dict[str, str]) -> float:
        (root / "own").write_text(own)
        for name, text in files.items():
            (root / "fs" / name).parent.mkdir(parents=True, exist_ok=True)
            (root / "fs" / name).write_text(text)
        return cpu_quota(root=root / "fs", own=root / "own")

    def test_version_2(self, tmp_path: Path) -> None:
        assert self._written(tmp_path, "0::/a/b\n", {"a/b/cpu.max": "50000 100000\n"}) == 0.5

    def test_a_parents_quota_counts(self, tmp_path: Path) -> None:
        files = {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "75000 100000\n", "cpu.max": "max 100000\n"}
        assert self._written(tmp_path, "0::/a/b\n", files) == 0.75

    def test_version_2_seen_from_inside_a_container(self, tmp_path: Path) -> None:
        assert self._written(tmp_path, "0::/host/path\n", {"cpu.max": "25000 100000\n"}) == 0.25

    def test_version_1(self, tmp_path: Path) -> None:
        files = {"cpu,cpuacct/box/cpu.cfs_quota_us": "60000\n", "cpu,cpuacct/box/cpu.cfs_period_us": "100000\n"}
        assert self._written(tmp_path, "4:cpu,cpuacct:/box\n0::/\n", files) == 0.6

    def test_version_1_without_a_quota(self, tmp_path: Path) -> None:
        files = {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}
        assert self._written(tmp_path, "1:cpu:/\n", files) == self.affinity

    @pytest.mark.parametrize("text", ["", "max", "x y", "0 100000", "100000 0", "1 2 3"])
    def test_what_makes_no_sense_is_no_quota(self, tmp_path: Path, text: str) -> None:
        assert self._written(tmp_path, "0::/\n", {"cpu.max": text}) == self.affinity

    def test_no_cgroups_at_all(self, tmp_path: Path) -> None:
        assert cpu_quota(root=tmp_path, own=tmp_path / "absent") == self.affinity

    def test_a_quota_above_the_affinity_changes_nothing(self, tmp_path: Path) -> None:
        assert self._written(tmp_path, "0::/\n", {"cpu.max": "99900000 100000"}) == self.affinity


def test_secrets_are_shown_as_set_or_not() -> None:
    assert shown(load_settings(admin_key="0123456789abcdef"))["admin_key"] == "set"
    document = shown(load_settings(port=9))
    assert (document["admin_key"], document["port"], document["store"]) == (None, 9, "models/store")


def test_a_wrong_secret_is_not_repeated() -> None:
    with pytest.raises(SettingsInvalid) as raised:
        load_settings(admin_key="too short", slots=0)
    assert "admin_key (UNDERSTUDY_ADMIN_KEY): must be a text of at least 16 characters" in str(raised.value)
    assert "too short" not in str(raised.value)


class TestMemoryQuota:
    def _written(self, root: Path, own: str, files: dict[str, str]) -> int | None:
        (root / "own").write_text(own)
        for name, text in files.items():
            (root / "fs" / name).parent.mkdir(parents=True, exist_ok=True)
            (root / "fs" / name).write_text(text)
        return memory_quota(root=root / "fs", own=root / "own")

    def test_version_2(self, tmp_path: Path) -> None:
        files = {"a/b/memory.max": "max\n", "a/memory.max": "512000000\n", "memory.max": "900000000\n"}
        assert self._written(tmp_path, "0::/a/b\n", files) == 512_000_000

    def test_version_1(self, tmp_path: Path) -> None:
        files = {"memory/box/memory.limit_in_bytes": "268435456\n"}
        assert self._written(tmp_path, "9:memory:/box\n4:cpu:/box\n", files) == 268_435_456

    @pytest.mark.parametrize("text", ["", "max", "-1", "9223372036854771712"])
    def test_no_limit(self, tmp_path: Path, text: str) -> None:
        files = {"memory.max": text, "memory/memory.limit_in_bytes": text}
        assert self._written(tmp_path, "9:memory:/\n0::/\n", files) is None

    def test_no_cgroups_at_all(self, tmp_path: Path) -> None:
        assert memory_quota(root=tmp_path, own=tmp_path / "absent") is None

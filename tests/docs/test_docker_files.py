"""The container files agree with the settings, with one another and with the running service."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from service.settings import PREFIX, Settings

yaml = pytest.importorskip("yaml", reason="needs the offline half")

DOCKER = Path(__file__).parents[2] / "docker"
NAMES = {PREFIX + name.upper() for name in Settings.model_fields}


def stage(name: str) -> str:
    """The part of the Dockerfile that makes one stage."""
    parts = re.split(r"^FROM \S+ AS (\S+)$", (DOCKER / "Dockerfile").read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))[name]


@pytest.fixture
def compose() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    return document


def test_every_variable_is_a_setting(compose: dict[str, Any]) -> None:
    named = set(re.findall(rf"{PREFIX}[A-Z_]+", (DOCKER / "Dockerfile").read_text()))
    assert named <= NAMES
    assert set(compose["services"]["understudy"]["environment"]) <= NAMES


def test_stopping_leaves_time_to_drain(compose: dict[str, Any]) -> None:
    service = compose["services"]["understudy"]
    environment = service["environment"]
    drain_s = float(environment["UNDERSTUDY_DRAIN_DELAY_S"]) + float(environment["UNDERSTUDY_DRAIN_TIMEOUT_S"])
    assert float(service["stop_grace_period"].removesuffix("s")) > drain_s + 2


def test_prometheus_scrapes_the_service(compose: dict[str, Any]) -> None:
    (job,) = yaml.safe_load((DOCKER / "prometheus.yml").read_text())["scrape_configs"]
    host, port = job["static_configs"][0]["targets"][0].split(":")
    assert compose["services"][host]["ports"][0].endswith(f":{port}")


def test_the_targets_are_there(compose: dict[str, Any]) -> None:
    stages = re.findall(r"^FROM \S+ AS (\S+)$", (DOCKER / "Dockerfile").read_text(), re.MULTILINE)
    assert {service["build"]["target"] for service in compose["services"].values() if "build" in service} <= set(stages)
    assert stages[-1] == "online"


def test_refreshing_works_where_the_image_and_the_volumes_are(compose: dict[str, Any]) -> None:
    refresh = compose["services"]["refresh"]
    target = stage("offline")
    folders = {
        volume.split(":")[-2] if volume.endswith(":ro") else volume.split(":")[-1] for volume in refresh["volumes"]
    }
    assert folders == {"/store", "/runs", "/recipes", refresh["environment"]["UNDERSTUDY_DATA"]}
    assert 'VOLUME ["/store", "/runs"]' in target
    assert "COPY models/recipes /recipes" in target
    verb, recipe, *options = refresh["command"]
    assert verb == "refresh"
    assert options == ["--store", "/store", "--runs", "/runs"]
    shipped = re.sub(r"\$\{\w+:-(\w+)\}", r"\1", recipe)
    assert (DOCKER.parent / "models" / shipped.removeprefix("/")).is_file()


def test_only_the_store_and_the_runs_can_be_written(compose: dict[str, Any]) -> None:
    built = {name: service for name, service in compose["services"].items() if "build" in service}
    assert all(service["read_only"] and service["tmpfs"] == ["/tmp"] for service in built.values())
    writable = {
        name: {v.split(":")[0] for v in service["volumes"] if not v.endswith(":ro")} for name, service in built.items()
    }
    assert writable == {"understudy": set(), "refresh": {"store", "runs"}}


def test_the_images_tell_nobody_what_they_run() -> None:
    assert "ORT_DISABLE_TELEMETRY=1" in stage("base")


def test_torch_is_pinned_as_the_package_says() -> None:
    pinned = re.search(r'"(torch==[^"]+)"', (DOCKER.parent / "pyproject.toml").read_text())
    assert pinned is not None
    assert pinned[1] in stage("offline-build")
    assert "torch" not in stage("online-build") + stage("online")


def test_refreshing_is_not_started_by_itself(compose: dict[str, Any]) -> None:
    assert [name for name, service in compose["services"].items() if "profiles" in service] == ["refresh"]


def test_they_run_as_nobody_in_particular() -> None:
    assert "USER 10001:10001" in stage("offline")
    assert "USER 10001:10001" in stage("online")
    assert "HEALTHCHECK" in stage("online")


def test_the_health_check_asks_for_readiness(compose: dict[str, Any]) -> None:
    command = compose["services"]["understudy"]["healthcheck"]["test"]
    assert command == ["CMD", "python", "/opt/understudy/healthcheck.py", "ready"]
    assert f"COPY docker/healthcheck.py {command[2]}" in stage("online")


def test_what_the_service_writes_has_a_place(compose: dict[str, Any]) -> None:
    found = re.search(r"UNDERSTUDY_CACHE_DIR=(\S+)", stage("online"))
    assert found is not None
    assert any(found[1].startswith(f"{folder}/") for folder in compose["services"]["understudy"]["tmpfs"])


@pytest.mark.parametrize("probe", [(), ("live",)])
def test_the_health_check_fails_where_nothing_listens(unused_port: str, probe: tuple[str, ...]) -> None:
    check = [sys.executable, str(DOCKER / "healthcheck.py"), *probe]
    done = subprocess.run(check, env={"UNDERSTUDY_PORT": unused_port}, timeout=30, check=False)
    assert done.returncode == 1


@pytest.fixture
def unused_port() -> str:
    # nobody may listen there without being root, and no test is expected to
    return "1"

"""Scenarios: what is accepted, and the one line that is said about what is not."""

from pathlib import Path

import pytest

import loadtest
from loadtest.errors import ScenarioInvalid
from loadtest.mixture import load_of, templates
from loadtest.scenario import Arrivals, expand, read_scenario

KIND = {"name": "one", "task": "classify", "texts": "texts.jsonl"}
SHIPPED = sorted((Path(loadtest.__file__).parent / "scenarios").glob("*.yaml"))


def test_the_shipped_scenarios_can_be_played():
    assert [file.stem for file in SHIPPED] == ["burst", "highest", "mixed", "overload", "steady"]
    for file in SHIPPED:
        scenario = read_scenario(file)
        assert scenario.name == file.stem
        load = load_of(scenario, templates(scenario, {}), seed=0)
        assert load.moments is not None and len(load.moments) > 100


def test_paths_are_relative_to_the_file(scenario_file, tmp_path):
    scenario = read_scenario(scenario_file(arrivals={"trace": {"file": "t.jsonl"}}))
    assert scenario.mixture[0].texts == tmp_path / "texts.jsonl"
    assert scenario.arrivals.trace is not None and scenario.arrivals.trace.file == tmp_path / "t.jsonl"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"durations": 3}, "durations: Extra inputs"),
        ({"duration_s": None}, "duration_s: Field required"),
        ({"duration_s": -1}, "duration_s: Input should be greater than 0"),
        ({"schema": 2}, "schema: Input should be 1"),
        ({"arrivals": {}}, "arrivals: exactly one of poisson, constant, bursts, trace, closed is needed, not 0"),
        ({"arrivals": {"poisson": {"rate_per_s": 1}, "constant": {"rate_per_s": 1}}}, "not 2"),
        ({"arrivals": {"poisson": {"rate_per_s": 0}}}, "arrivals.poisson.rate_per_s"),
        ({"mixture": []}, "mixture"),
        ({"mixture": [KIND, KIND]}, "two kinds have one name"),
        ({"mixture": [KIND | {"task": "rank"}]}, "queries: needed for rank"),
        ({"mixture": [KIND | {"queries": "q.txt"}]}, "queries: needed for rank"),
        ({"mixture": [KIND | {"priority": "urgent"}]}, "mixture.0.priority"),
        ({"sla": {"p98_ms": 1}}, "sla.p98_ms: Extra inputs"),
        ({"sla": {"goodput": {"within_ms": 5}}}, "share or per_s is needed"),
        ({"sla": {"error_rate": 1.5}}, "sla.error_rate"),
        ({"search": {"low_per_s": 5, "high_per_s": 5}}, "high_per_s must be above low_per_s"),
        (
            {"search": {"low_per_s": 5, "high_per_s": 9}, "sweep": {"rates_per_s": [1]}},
            "sweep and search: only one of them",
        ),
        ({"arrivals": {"closed": {"connections": 4}}, "sweep": {"rates_per_s": [1]}}, "need arrivals with a rate"),
    ],
)
def test_what_is_wrong_is_named(scenario_file, changes, message):
    file = scenario_file(**changes)
    with pytest.raises(ScenarioInvalid) as caught:
        read_scenario(file)
    assert str(caught.value).startswith(str(file)) and message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("content", "message"), [("[1, 2]", "must be a mapping"), ("a: [", "not YAML")])
def test_a_file_that_is_no_scenario(tmp_path, content, message):
    (tmp_path / "s.yaml").write_text(content)
    with pytest.raises(ScenarioInvalid, match=message):
        read_scenario(tmp_path / "s.yaml")


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ScenarioInvalid, match="cannot be read: No such file"):
        read_scenario(tmp_path / "none.yaml")


def test_keys_are_overridden_deep_down(scenario_file):
    overrides = ("duration_s=7", "arrivals.constant.rate_per_s=9", "mixture.0.body.exit=never", "sla.p99_ms=5")
    scenario = read_scenario(scenario_file(), overrides=overrides)
    assert (scenario.duration_s, scenario.arrivals.rate_per_s, scenario.sla.p99_ms) == (7, 9, 5)
    assert scenario.mixture[0].body == {"model": "m", "exit": "never"}


@pytest.mark.parametrize(
    "override", ["duration_s", "=3", "mixture.4.name=x", "name.deep=1", "mixture.x=1", "a=[", "name.a.b=1"]
)
def test_overrides_that_fit_nowhere_are_refused(scenario_file, override):
    with pytest.raises(ScenarioInvalid, match="--set"):
        read_scenario(scenario_file(), overrides=(override,))


def test_headers_take_keys_from_the_environment():
    assert expand({"authorization": "Bearer ${K}", "a": "b"}, {"K": "v"}) == {"authorization": "Bearer v", "a": "b"}
    with pytest.raises(ScenarioInvalid, match="variable K is not set"):
        expand({"authorization": "${K}"}, {})


def test_arrivals_at_another_rate_are_otherwise_the_same():
    how = Arrivals.model_validate({"bursts": {"rate_per_s": 5, "on_s": 1, "off_s": 2}})
    changed = how.at_rate(50)
    assert changed.rate_per_s == 50 and changed.bursts is not None and changed.bursts.off_s == 2
    with pytest.raises(ScenarioInvalid, match="need arrivals with a rate"):
        Arrivals.model_validate({"closed": {"connections": 1}}).at_rate(5)

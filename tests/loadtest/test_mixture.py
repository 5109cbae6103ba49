"""The requests that a mixture makes."""

import json

import numpy as np
import pytest

from loadtest.errors import ScenarioInvalid
from loadtest.mixture import build, judge_labels, load_of, templates
from loadtest.scenario import read_scenario
from loadtest.shots import Judgement


def parts(shot):
    head, _, body = shot.raw.partition(b"\r\n\r\n")
    return head.decode(), json.loads(body)


def kinds(*changes):
    base = {"name": "one", "task": "classify", "texts": "texts.jsonl"}
    return [base | change for change in changes]


def built(file, place=0):
    scenario = read_scenario(file)
    return build(templates(scenario, {"K": "secret"})[place], seed=0)


def test_one_text_is_sent_as_a_string_and_all_texts_come(scenario_file):
    shots = built(scenario_file())
    assert sorted(parts(shot)[1]["inputs"] for shot in shots) == ["bad", "good"]
    assert parts(shots[0])[1]["model"] == "m"
    assert parts(shots[0])[0].startswith("POST /v1/classify HTTP/1.1\r\nhost: 127.0.0.1:8000")


def test_several_texts_are_sent_as_a_list_in_changing_company(scenario_file):
    file = scenario_file(mixture=kinds({"inputs_per_request": 3}))
    shots = built(file)
    assert {shot.items for shot in shots} == {3} and len(shots) == 6
    assert len({tuple(parts(shot)[1]["inputs"]) for shot in shots}) > 1


def test_headers_priority_and_deadline(scenario_file):
    file = scenario_file(
        headers={"authorization": "Bearer ${K}"}, mixture=kinds({"priority": "low", "deadline_ms": 50})
    )
    head, body = parts(built(file)[0])
    assert "authorization: Bearer secret" in head and "x-priority: low" in head
    assert body["deadline_ms"] == 50.0


def test_another_surface_has_its_own_path_field_and_deadline_header(scenario_file):
    kind = {"task": "embed", "path": "/v1/embeddings", "field": "input", "deadline_ms": 50}
    head, body = parts(built(scenario_file(mixture=kinds(kind)))[0])
    assert head.startswith("POST /v1/embeddings ") and "x-request-deadline-ms: 50" in head
    assert set(body) == {"input"}


def test_rank_has_a_query_and_passages(scenario_file, tmp_path):
    (tmp_path / "q.txt").write_text("why?\n")
    head, body = parts(built(scenario_file(mixture=kinds({"task": "rank", "queries": "q.txt"})))[0])
    assert head.startswith("POST /v1/rank ")
    assert body["query"] == "why?" and isinstance(body["passages"], list) and len(body["passages"]) == 1


def test_answers_are_held_against_the_labels(scenario_file):
    shot = next(shot for shot in built(scenario_file()) if parts(shot)[1]["inputs"] == "good")
    assert shot.judge is not None
    assert shot.judge(b'{"results": [{"label": "yes"}]}') == Judgement(1, 1)
    assert shot.judge(b'{"results": [{"label": "no"}]}') == Judgement(0, 1)


@pytest.mark.parametrize("body", [b"{", b"{}", b'{"results": 3}', b'{"results": []}', b'{"results": [{"error": {}}]}'])
def test_answers_without_a_label_are_wrong(body):
    assert judge_labels(["a"], body) == Judgement(0, 1)


def test_texts_without_labels_are_not_judged(scenario_file, tmp_path):
    (tmp_path / "plain.txt").write_text("x\n")
    assert built(scenario_file(mixture=kinds({"texts": "plain.txt"})))[0].judge is None


def test_kinds_come_in_proportion_to_their_weights(scenario_file):
    mixture = kinds({"name": "often", "weight": 3}, {"name": "seldom"})
    scenario = read_scenario(scenario_file(mixture=mixture, arrivals={"constant": {"rate_per_s": 20000}}))
    load = load_of(scenario, templates(scenario, {}), seed=0)
    drawn = [load.shots.take(place).kind for place in range(4000)]
    assert load.moments is not None and len(load.moments) == 4000
    assert np.mean(drawn) == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize(
    "arrivals", [{"poisson": {"rate_per_s": 500}}, {"bursts": {"rate_per_s": 500, "on_s": 1, "off_s": 1}}]
)
def test_a_seed_fixes_moments_and_order(scenario_file, arrivals):
    scenario = read_scenario(scenario_file(arrivals=arrivals))
    loads = [load_of(scenario, templates(scenario, {}), seed=seed) for seed in (1, 1, 2)]
    moments = [load.moments.tolist() for load in loads if load.moments is not None]
    assert moments[0] == moments[1] != moments[2]
    assert [load.shots.take(3).raw for load in loads[:2]] == [loads[0].shots.take(3).raw] * 2


def test_a_closed_loop_has_no_moments(scenario_file):
    for mixture in (kinds({}), kinds({"name": "a"}, {"name": "b"})):
        scenario = read_scenario(scenario_file(arrivals={"closed": {"connections": 2}}, mixture=mixture))
        load = load_of(scenario, templates(scenario, {}), seed=0)
        assert load.moments is None and load.shots.take(10**6).raw


def test_a_recording_sends_its_own_texts(scenario_file, tmp_path):
    (tmp_path / "t.jsonl").write_text(
        '{"at_s": 5, "text": "first", "kind": "b"}\n{"at_s": 5.1, "text": "second"}\n{"at_s": 50, "text": "late"}\n'
    )
    mixture = kinds({"name": "a"}, {"name": "b"})
    scenario = read_scenario(scenario_file(arrivals={"trace": {"file": "t.jsonl"}}, mixture=mixture))
    load = load_of(scenario, templates(scenario, {}), seed=0)
    assert load.moments is not None and load.moments == pytest.approx([0.0, 0.1])
    assert (load.shots.take(0).kind, parts(load.shots.take(0))[1]["inputs"]) == (1, "first")
    assert parts(load.shots.take(1))[1]["inputs"] == "second"


def test_a_recording_that_names_an_unknown_kind_is_refused(scenario_file, tmp_path):
    (tmp_path / "t.jsonl").write_text('{"at_s": 0, "text": "x", "kind": "other"}\n')
    scenario = read_scenario(scenario_file(arrivals={"trace": {"file": "t.jsonl"}}))
    with pytest.raises(ScenarioInvalid, match="'other'"):
        load_of(scenario, templates(scenario, {}), seed=0)

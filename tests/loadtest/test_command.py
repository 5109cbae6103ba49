"""`understudy loadtest` from the command line to the exit status, against a server in the test."""

import json
import re

import pytest

from loadtest import cost
from loadtest.cost import GeneratorCost, generator_cost
from loadtest.errors import OutputFailed, TargetFailed
from loadtest.mixture import load_of, templates
from loadtest.play import Stage, invalid, measured, play
from loadtest.plot import plot
from loadtest.record import Recorder, Times
from loadtest.report import document, machine, number, scenario_lines, write_json
from loadtest.run import run_scenario
from loadtest.scenario import read_scenario
from loadtest.shots import Cycle, Judgement, Shot
from loadtest.wire import Answer, Origin
from service import cli

TIMES = b"x-queue-time: 0.5\r\nx-inference-time: 1.5\r\nx-total-time: 2.5\r\n"
GENEROUS = {"p99_ms": 60_000, "error_rate": 0, "min_accuracy": 1.0}


def answer(body=b"{}", *, status=200, headers=TIMES):
    return b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n%s\r\n%s" % (status, len(body), headers, body)


def labels(path, body):
    """Right about both texts of the scenario."""
    inputs = json.loads(body)["inputs"]
    texts = [inputs] if isinstance(inputs, str) else inputs
    results = [{"label": "yes" if text == "good" else "no"} for text in texts]
    return answer(json.dumps({"results": results}).encode())


@pytest.fixture
def loadtest(tmp_path, capsys):
    """`loadtest(file, *options)` gives the exit status, what was printed, and the written JSON (None: none was)."""

    def run(file, *options, with_cost=False):
        out = tmp_path / "out"
        arguments = ["loadtest", str(file), "--out", str(out), *([] if with_cost else ["--no-cost"]), *options]
        status = cli.run(arguments)
        said = capsys.readouterr()
        files = list(out.glob("*.json"))
        return status, said.out + said.err, json.loads(files[0].read_text()) if files else None

    return run


def test_a_level_that_is_kept(loadtest, loopback, scenario_file, tmp_path):
    server = loopback(labels)
    status, said, result = loadtest(scenario_file(target=server.url, sla=GENEROUS, max_lag_ms=60_000))
    assert status == 0, said
    assert re.search(r"p99_ms +<= 60000 .* met", said) and "accuracy 1.0000" in said
    assert len(server.requests) == 20
    (run,) = result["runs"]
    assert result["holds"] and run["summary"]["counts"]["ok"] == 20
    assert run["summary"]["queue_ms"]["p50"] == 0.5 and run["summary"]["run_ms"]["p50"] == 1.5
    assert (tmp_path / "out" / "small.png").read_bytes().startswith(b"\x89PNG")


def test_a_level_that_is_missed(loadtest, loopback, scenario_file):
    server = loopback(lambda path, body: answer(status=500))
    status, said, result = loadtest(scenario_file(target=server.url, sla=GENEROUS))
    assert status == 1
    assert re.search(r"error_rate +<= 0 +1 +MISSED", said)
    assert not result["holds"]


def test_several_kinds_a_closed_loop_and_a_key(loadtest, loopback, scenario_file, monkeypatch):
    monkeypatch.setenv("THE_KEY", "hush")
    server = loopback(labels)
    kind = {"name": "one", "task": "classify", "texts": "texts.jsonl"}
    mixture = [kind, kind | {"name": "two", "inputs_per_request": 2, "sla": {"p50_ms": 60_000}}]
    file = scenario_file(
        target=server.url,
        arrivals={"closed": {"connections": 2}},
        mixture=mixture,
        headers={"authorization": "Bearer ${THE_KEY}"},
    )
    status, said, result = loadtest(file)
    assert status in (0, 1), said
    assert re.search(r"two +\d", said) and "two: p50_ms" in said and "texts answered" in said
    assert b"authorization: Bearer hush" in server.heads[0]
    assert "hush" not in json.dumps(result) and result["scenario"]["headers"] == ["authorization"]


def test_a_sweep_has_a_row_for_each_rate(loadtest, loopback, scenario_file):
    server = loopback(labels)
    file = scenario_file(target=server.url, sla=GENEROUS, sweep={"rates_per_s": [20, 50]}, max_lag_ms=60_000)
    status, said, result = loadtest(file)
    assert status == 0, said
    assert [run["rate_per_s"] for run in result["runs"]] == [20, 50]
    assert re.search(r"^rate/s .*SLA$", said, re.MULTILINE) and "20/s: answered" in said


def test_a_search_ends_with_the_highest_rate(loadtest, loopback, scenario_file):
    server = loopback(labels)
    search = {"low_per_s": 20, "high_per_s": 40, "repeats": 1}
    file = scenario_file(target=server.url, sla=GENEROUS, search=search, max_lag_ms=60_000)
    status, said, result = loadtest(file)
    assert status == 0 and "highest rate that keeps the SLA: 40/s" in said
    assert result["search"]["highest"] == 40


def test_a_search_in_which_nothing_holds_is_a_miss(loadtest, loopback, scenario_file):
    server = loopback(lambda path, body: answer(status=429))
    search = {"low_per_s": 20, "high_per_s": 40, "repeats": 1}
    status, said, _ = loadtest(scenario_file(target=server.url, sla=GENEROUS, search=search))
    assert status == 1 and "highest rate that keeps the SLA: 0/s (missed at 20/s)" in said
    assert "missed: " in said


def test_the_generator_is_measured_first(loadtest, loopback, scenario_file, monkeypatch):
    server = loopback(labels)
    monkeypatch.setattr(cost, "CLIENTS", 2)
    status, said, result = loadtest(scenario_file(target=server.url), with_cost=True)
    assert status in (0, 1) and re.search(r"generator: \d+ us a request, at most [\d,]+/s by itself", said)
    assert result["generator"]["cpu_us"] > 0


def test_a_wrong_scenario_is_one_line_and_status_2(loadtest, scenario_file):
    status, said, result = loadtest(scenario_file(), "--set", "duration=5")
    assert status == 2 and result is None
    assert len(said.strip().splitlines()) == 1 and "duration: Extra inputs" in said


def test_a_target_that_is_not_there_is_status_2(loadtest, scenario_file):
    status, said, _ = loadtest(scenario_file(target="http://127.0.0.1:9"))
    assert status == 2 and "cannot connect to 127.0.0.1:9" in said


def test_a_result_that_cannot_be_written_is_status_2(loadtest, loopback, scenario_file, tmp_path):
    (tmp_path / "file").write_text("")
    server = loopback(labels)
    status, said, _ = loadtest(scenario_file(target=server.url), "--out", str(tmp_path / "file" / "x"))
    assert status == 2 and "cannot be written" in said


def sample(lag_s=0.0, n=100):
    recorder = Recorder()
    for place in range(n):
        recorder.add(Shot(b""), Times(place / 10, place / 10 + lag_s, place / 10 + 0.5), Answer(200), Judgement())
    return recorder.sample()


STAGE = Stage(Origin("http", "h", 1, ""), seconds=5.0, warm_up_s=2.0, max_lag_ms=5.0)


def test_a_run_of_a_generator_that_was_late_says_nothing():
    assert "could not keep up" in invalid(sample(0.006), 0.1, STAGE, closed=False)
    assert invalid(sample(0.004), 1.0, STAGE, closed=False) == ""
    assert "busy 97%" in invalid(sample(), 0.97, STAGE, closed=True)
    assert invalid(sample(1.0), 0.5, STAGE, closed=True) == ""
    assert "nothing was sent" in invalid(sample(n=0), 0.5, STAGE, closed=True)


def test_what_is_measured_of_an_open_and_of_a_closed_loop():
    opened, closed = measured(sample(), STAGE, closed=False), measured(sample(), STAGE, closed=True)
    assert (opened.intended.min(), len(opened)) == (2.0, 80)
    assert (closed.done.min(), closed.done.max()) == pytest.approx((2.0, 6.9))


def test_an_invalid_run_misses_even_without_clauses(loopback, scenario_file, tmp_path):
    server = loopback(labels)
    scenario = read_scenario(scenario_file(target=server.url, max_lag_ms=1e-6))
    result = run_scenario(scenario, {}, say=lambda line: None, with_cost=False)
    assert not result.holds
    assert any(line.startswith("INVALID: the generator could not keep up") for line in scenario_lines(result))
    assert document(result)["runs"][0]["invalid"]


def test_requests_that_waited_for_a_connection_are_told(loopback, scenario_file):
    server = loopback(labels)
    scenario = read_scenario(
        scenario_file(target=server.url, max_connections=1, arrivals={"constant": {"rate_per_s": 20_000}})
    )
    result = run_scenario(scenario, {}, say=lambda line: None, with_cost=False)
    assert any("requests waited for one of the 1 connections" in line for line in scenario_lines(result))


def test_a_plot_that_cannot_be_written(loopback, scenario_file, tmp_path):
    server = loopback(labels)
    result = run_scenario(read_scenario(scenario_file(target=server.url)), {}, say=lambda line: None, with_cost=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputFailed, match="cannot be written"):
        plot(tmp_path / "file" / "a.png", result)
    with pytest.raises(OutputFailed, match="cannot be written"):
        write_json(tmp_path / "file" / "a.json", {})


def test_a_server_without_time_headers_is_plotted_too(loopback, scenario_file, tmp_path):
    server = loopback(lambda path, body: answer(headers=b""))
    result = run_scenario(read_scenario(scenario_file(target=server.url)), {}, say=lambda line: None, with_cost=False)
    plot(tmp_path / "a.png", result)
    assert (tmp_path / "a.png").stat().st_size > 1000
    assert not any("queue (server)" in line for line in "\n".join(scenario_lines(result)).splitlines())


def test_numbers_are_short():
    assert [number(value) for value in (float("nan"), 0.12345, 9999.4, 123456.7)] == ["-", "0.1235", "9999", "123,457"]
    assert "cores" in machine()


def test_a_closed_loop_plays_what_it_is_given(loopback, scenario_file):
    server = loopback(labels)
    scenario = read_scenario(scenario_file(target=server.url, arrivals={"closed": {"connections": 3}}))
    wanted = templates(scenario, {})
    played = play(load_of(scenario, wanted, seed=0), Stage(wanted[0].origin, 0.2, warm_up_s=0.0, clients=3))
    assert played.opened == 3 and played.sample.ok.all() and len(played.sample)


def test_the_cost_is_that_of_the_generator():
    found = generator_cost(Cycle([Shot(b"GET / HTTP/1.1\r\n\r\n")]), seconds=0.2)
    assert isinstance(found, GeneratorCost) and found.cpu_us > 0 and found.peak_per_s > 0


def test_a_responder_that_does_not_start(monkeypatch):
    monkeypatch.setattr(cost.sys, "executable", "/bin/true")
    with pytest.raises(TargetFailed, match="did not start"), cost.responder(core=0):
        pass

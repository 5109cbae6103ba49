"""What the benchmarks share, up to the written report."""

import json

import numpy as np
import pytest

from loadtest.bench import (
    LEAST_CONNECTIONS,
    Bodies,
    Report,
    chunks,
    closed,
    connections_for,
    data_file,
    has_amx,
    in_turn,
    merged,
    one_line_errors,
    opened,
    rate_of,
    shuffled,
    versions,
)
from loadtest.errors import TargetFailed
from loadtest.wire import origin_of

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"


def test_data_is_found_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("UNDERSTUDY_DATA", str(tmp_path))
    assert data_file("a/b.jsonl") == tmp_path / "a" / "b.jsonl"
    monkeypatch.delenv("UNDERSTUDY_DATA")
    with pytest.raises(TargetFailed, match="UNDERSTUDY_DATA"):
        data_file("a")


def test_texts_are_shuffled_the_same_way_each_time(tmp_path):
    (tmp_path / "t.txt").write_text("\n".join("abcdefgh"))
    assert shuffled(tmp_path / "t.txt") == shuffled(tmp_path / "t.txt") != list("abcdefgh")
    assert sorted(shuffled(tmp_path / "t.txt")) == list("abcdefgh")


def test_inputs_are_cut_into_requests():
    assert chunks(["a", "b", "c"], 1) == ["a", "b", "c"]
    assert chunks(["a", "b", "c"], 2) == [["a", "b"]]


def test_bodies_become_requests():
    shots = Bodies("/v1/embeddings", {"model": "m"}, "input").shots("http://h:1", ["x", ["y", "z"]], kind=3)
    assert [(shot.items, shot.kind) for shot in shots] == [(1, 3), (2, 3)]
    assert json.loads(shots[1].raw.partition(b"\r\n\r\n")[2]) == {"model": "m", "input": ["y", "z"]}


def test_a_closed_loop_gives_a_rate(loopback):
    server = loopback(lambda path, body: OK)
    played = closed(
        server.url, Bodies("/").shots(server.url, [["a", "b"]]), clients=2, seconds=0.2, warm_up_s=0.0, check=False
    )
    assert rate_of(played) == pytest.approx(2 * len(played.sample) / 0.2)


def test_a_closed_loop_of_errors_is_no_measurement(loopback):
    server = loopback(lambda path, body: OK.replace(b"200", b"503"))
    with pytest.raises(TargetFailed, match="no success, the first 503"):
        closed(server.url, Bodies("/").shots(server.url, ["a"]), clients=1, seconds=0.1, warm_up_s=0.0)


def test_open_loops_are_merged_in_time(loopback):
    server = loopback(lambda path, body: OK)
    first = Bodies("/a").shots(server.url, ["x"], kind=0)
    second = Bodies("/b").shots(server.url, ["y"], kind=1)
    load = merged([(np.array([0.0, 0.03]), first), (np.array([0.01, 0.02]), second)])
    played = opened(load, origin_of(server.url), seconds=0.1, warm_up_s=0.0, connections=(1, 2))
    assert played.opened == 3
    by_moment = played.sample.kind[np.argsort(played.sample.intended)]
    assert by_moment.tolist() == [0, 1, 1, 0]


def test_sides_are_measured_in_turn(capsys):
    order = []

    def side(name):
        def measure():
            order.append(name)
            return float(len(order))

        return measure

    figures = in_turn({"a": side("a"), "b": side("b")}, pairs=2)
    assert order == ["a", "b", "a", "b"]
    assert figures == {"a": [1.0, 3.0], "b": [2.0, 4.0]}
    assert "pair 2/2: a 3, b 4" in capsys.readouterr().out


def test_a_report_says_what_was_met(tmp_path, capsys):
    report = Report("bench_x")
    figures = {"a": [3.0, 3.1, 2.9], "b": [1.0, 1.0, 1.0]}
    report.ratio("fast", figures, ("a", "b"), 2.5)
    report.ratio("shown", figures, ("b", "a"), None)
    assert report.finish(tmp_path) == 0
    report.ratio("faster", figures, ("a", "b"), 4.0)
    assert report.finish(tmp_path) == 1
    written = json.loads((tmp_path / "bench_x.json").read_text())
    assert [point["met"] for point in written["points"]] == [True, None, False]
    assert written["figures"]["fast"]["sides"]["a"] == [3.0, 3.1, 2.9]
    assert written["versions"]["numpy"] == versions()["numpy"]
    assert "MISSED  faster: 2.999" in capsys.readouterr().out
    assert isinstance(has_amx(), bool)


def test_what_the_user_can_mend_is_one_line(capsys):
    with pytest.raises(SystemExit) as ended, one_line_errors():
        raise TargetFailed("no such thing")
    assert ended.value.code == 2 and capsys.readouterr().err == "error: no such thing\n"


def test_connections_are_enough_for_the_patience_and_never_few():
    assert connections_for(1000.0, 0.2005) == 201
    assert connections_for(10.0, 0.2) == LEAST_CONNECTIONS

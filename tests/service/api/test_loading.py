"""Loading as the settings say, and with `auto` as it runs best: measured, remembered, proved."""

import gc
import json
import logging
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service.api import loading
from service.api.loading import Loader, graph_bytes, loader
from service.errors import BackendUnavailable, GoldenMismatch, MemoryFull, RunFailed
from service.runtime import choice as choices
from service.runtime import session
from service.runtime.cost import StageCost
from service.runtime.student import Student
from service.settings import load_settings
from service.store.store import Store

MakeLoader = Callable[..., Loader]


@pytest.fixture
def make_loader(store_dir: Path, tmp_path: Path) -> MakeLoader:
    def make(**options: Any) -> Loader:
        usual = {"store": store_dir, "slots": 1, "cache_dir": tmp_path / "cache"}
        return loader(Store(store_dir), load_settings(**usual | options))

    return make


@pytest.fixture
def priced(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, str], float]:
    """Milliseconds that a run of any stage is measured to take, by backend and precision; ONNX Runtime: 1."""
    prices: dict[tuple[str, str], float] = {}

    def measure(student: Student, **_: Any) -> tuple[StageCost, ...]:
        cost = prices.get((student.backend, student.precision), 1.0) / 1e3
        return (StageCost(cost, 0.0),) * len(student.manifest.stages)

    def runoff(default: Student, challenger: Student, **_: object) -> float:
        ours, theirs = (prices.get((side.backend, side.precision), 1.0) for side in (default, challenger))
        return prices.get(("runoff", ""), 1 - theirs / ours)

    monkeypatch.setattr(loading, "measure", measure)
    monkeypatch.setattr(choices, "runoff", runoff)
    return prices


@pytest.fixture
def two_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second backend, `spare`, which is ONNX Runtime by another name."""
    both = dict.fromkeys(("onnxruntime", "spare"), session.BACKENDS["onnxruntime"])
    monkeypatch.setattr(session, "BACKENDS", both)


def ran_on(served: Any) -> tuple[str, str]:
    return served.student.backend, served.student.precision


class TestByName:
    def test_only_what_was_asked_for_is_loaded(self, make_loader: MakeLoader) -> None:
        served = make_loader(backend="onnxruntime", precision="fp32")("toy", 1)
        assert (ran_on(served), served.settled) == (("onnxruntime", "fp32"), True)
        assert served.card["chosen"] == {"why": "asked for in the settings", "candidates": []}
        assert len(served.handle.costs) == 2

    def test_a_backend_that_is_not_there_is_an_error(self, make_loader: MakeLoader, monkeypatch: Any) -> None:
        def absent() -> None:
            raise BackendUnavailable("not here")

        only = {"onnxruntime": session.Backend(session.BACKENDS["onnxruntime"].load, absent)}
        monkeypatch.setattr(session, "BACKENDS", only)
        assert session.usable_backends() == ()
        with pytest.raises(BackendUnavailable):
            make_loader(backend="onnxruntime")("toy", 1)

    def test_the_card_tells_its_memory(self, make_loader: MakeLoader) -> None:
        served = make_loader(backend="onnxruntime")("toy", 1)
        least = graph_bytes(served.manifest, "int8")
        assert 0 < least <= served.memory_bytes == served.card["memory_bytes"]
        assert graph_bytes(served.manifest, "bf16") == graph_bytes(served.manifest, "fp32")
        assert graph_bytes(served.manifest, "int2") == 0

    @pytest.mark.parametrize(("threads", "clock"), [(1, time.thread_time), (2, time.perf_counter)])
    def test_what_runs_in_this_thread_is_measured_by_the_processors_seconds(
        self, make_loader: MakeLoader, monkeypatch: Any, threads: int, clock: Any
    ) -> None:
        clocks: list[Any] = []

        def measure(student: Student, **options: Any) -> tuple[StageCost, ...]:
            clocks.append(options["clock"])
            return ()

        monkeypatch.setattr(loading, "measure", measure)
        make_loader(backend="onnxruntime", threads_per_slot=threads)("toy", 1)
        assert clocks == [clock]

    def test_a_student_that_cannot_be_measured_serves(self, make_loader: MakeLoader, monkeypatch: Any) -> None:
        def broken(student: Student, **_: Any) -> Any:
            raise RunFailed("not today")

        monkeypatch.setattr(loading, "measure", broken)
        assert make_loader(backend="onnxruntime")("toy", 1).handle.costs == ()


@pytest.mark.usefixtures("two_backends")
class TestAuto:
    def test_it_starts_with_the_default(self, make_loader: MakeLoader) -> None:
        served = make_loader()("toy", 1)
        assert (ran_on(served), served.settled) == (("onnxruntime", "int8"), False)
        assert served.card["chosen"]["why"] == "the default, until others are measured"

    def test_with_nothing_else_at_hand_it_is_settled(self, make_loader: MakeLoader, monkeypatch: Any) -> None:
        monkeypatch.setattr(session, "BACKENDS", {"onnxruntime": session.BACKENDS["onnxruntime"]})
        served = make_loader(precision="int8")("toy", 1)
        assert served.settled
        assert served.card["chosen"]["why"] == "the default; nothing else is at hand"

    def test_what_is_clearly_cheaper_is_taken(
        self, make_loader: MakeLoader, priced: dict[tuple[str, str], float], caplog: pytest.LogCaptureFixture
    ) -> None:
        priced["spare", "int8"] = 0.2
        load = make_loader()
        before = load("toy", 1)
        with caplog.at_level(logging.INFO):
            after = load.improve(before)
        assert (ran_on(after), after.settled, after.version) == (("spare", "int8"), True, 1)
        assert after.handle is not before.handle
        assert after.card["backend"] == "spare"
        assert after.card["chosen"]["why"].startswith("int8 on spare saves 80%")
        (chosen,) = [record.fields for record in caplog.records if record.message == "chosen"]  # type: ignore[attr-defined]
        assert chosen["backend"] == "spare"
        assert "int8 on spare: 175 us a text" in chosen["weighed"]

    def test_what_does_not_win_in_turn_is_not_taken(
        self, make_loader: MakeLoader, priced: dict[tuple[str, str], float]
    ) -> None:
        priced["spare", "int8"] = 0.2
        priced["runoff", ""] = 0.05
        load = make_loader()
        before = load("toy", 1)
        after = load.improve(before)
        assert after.handle is before.handle
        assert after.settled
        assert after.card["chosen"]["why"].startswith("the default; int8 on spare saves 5%")

    def test_exits_are_part_of_the_price(self, make_loader: MakeLoader, priced: dict[tuple[str, str], float]) -> None:
        # without a certificate every text goes through both stages: 2 × 0.75 is as much as 1 + 0.5
        priced["spare", "int8"] = 0.75
        load = make_loader()
        after = load.improve(load("toy", 1))
        assert ran_on(after) == ("onnxruntime", "int8")

    def test_the_default_stays_as_it_was_loaded(
        self, make_loader: MakeLoader, priced: dict[tuple[str, str], float]
    ) -> None:
        load = make_loader()
        before = load("toy", 1)
        after = load.improve(before)
        assert (after.handle, after.settled) == (before.handle, True)
        assert [each["ms_per_text"] is not None for each in after.card["chosen"]["candidates"]] == [True] * 4

    def test_what_is_ruled_out_is_not_even_loaded(
        self, make_loader: MakeLoader, priced: dict[tuple[str, str], float], store_dir: Path
    ) -> None:
        priced["onnxruntime", "fp32"] = priced["spare", "fp32"] = 0.1
        file = store_dir / "toy" / "1" / "manifest.json"
        manifest = json.loads(file.read_text())
        rows = {
            name: [{"risk": None, "exit_shares": [0, 1], "mean_depth": 1, "metrics": {"accuracy": value}}]
            for name, value in (("int8", 0.9), ("fp32", 0.8))
        }
        quality = {"split": "test", "rows": 10, "by_precision": rows}
        file.write_text(json.dumps(manifest | {"quality": quality}))
        load = make_loader()
        after = load.improve(load("toy", 1))
        assert ran_on(after) == ("onnxruntime", "int8")
        assert [each["why_not"] for each in after.card["chosen"]["candidates"]] == [
            None,
            "its accuracy is 0.8000, the default precision's 0.9000",
        ] * 2

    def test_what_does_not_reproduce_the_goldens_is_not_taken(
        self, make_loader: MakeLoader, priced: dict[tuple[str, str], float], monkeypatch: Any
    ) -> None:
        priced["spare", "int8"] = priced["spare", "fp32"] = 0.1
        check = Student.check_golden

        def strict(student: Student) -> None:
            if student.backend == "spare":
                raise GoldenMismatch("other numbers")
            check(student)

        monkeypatch.setattr(Student, "check_golden", strict)
        load = make_loader()
        after = load.improve(load("toy", 1))
        assert ran_on(after) == ("onnxruntime", "int8")
        assert {each["why_not"] for each in after.card["chosen"]["candidates"]} == {None, "other numbers"}

    def test_a_choice_is_remembered(
        self, make_loader: MakeLoader, priced: dict[tuple[str, str], float], tmp_path: Path
    ) -> None:
        priced["spare", "fp32"] = 0.1
        load = make_loader()
        load.improve(load("toy", 1))
        priced.clear()
        again = make_loader()("toy", 1)
        assert (ran_on(again), again.settled) == (("spare", "fp32"), True)
        assert ran_on(make_loader()("toy-embed", 1)) == ("onnxruntime", "int8")

    def test_a_broken_cache_is_ignored_and_told(
        self,
        make_loader: MakeLoader,
        priced: dict[tuple[str, str], float],
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        load = make_loader()
        load.improve(load("toy", 1))
        for file in (tmp_path / "cache" / "choices").iterdir():
            file.write_text("{")
        served = make_loader()("toy", 1)
        assert not served.settled
        assert "choice_ignored" in [record.message for record in caplog.records]

    def test_a_remembered_choice_that_works_no_more_is_left(
        self,
        make_loader: MakeLoader,
        priced: dict[tuple[str, str], float],
        monkeypatch: Any,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        priced["spare", "fp32"] = 0.1
        load = make_loader()
        load.improve(load("toy", 1))

        def broken(*args: Any, **kwargs: Any) -> Any:
            raise BackendUnavailable("gone")

        backends = session.BACKENDS | {"spare": session.Backend(broken, lambda: None)}
        monkeypatch.setattr(session, "BACKENDS", backends)
        served = make_loader()("toy", 1)
        assert (ran_on(served), served.settled) == (("onnxruntime", "int8"), False)
        assert "choice_not_usable" in [record.message for record in caplog.records]

    def test_a_cache_that_cannot_be_written_stops_nothing(
        self, make_loader: MakeLoader, priced: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        (tmp_path / "cache").write_text("a file")
        load = make_loader()
        assert load.improve(load("toy", 1)).settled
        assert "choice_not_kept" in [record.message for record in caplog.records]

    def test_without_a_home_nothing_is_remembered(
        self, make_loader: MakeLoader, priced: Any, monkeypatch: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        def homeless() -> Path:
            raise RuntimeError("no home")

        monkeypatch.setattr(loading.choices, "default_cache_dir", homeless)
        load = make_loader(cache_dir=None)
        assert load.improve(load("toy", 1)).settled
        assert [record.message for record in caplog.records].count("choice_not_kept") == 1

    def test_a_choice_needs_room_beside_what_serves(
        self, make_loader: MakeLoader, priced: dict[tuple[str, str], float]
    ) -> None:
        priced["spare", "int8"] = 0.1
        load = make_loader()
        before = load("toy", 1)
        load.ledger.limit_bytes = load.ledger.held_bytes
        after = load.improve(before)
        assert after.handle is before.handle
        assert "MB are taken" in after.card["chosen"]["candidates"][-1]["why_not"]


class TestMemory:
    def test_one_beyond_the_limit_is_refused_by_name(self, make_loader: MakeLoader) -> None:
        load = make_loader(backend="onnxruntime")
        serving = load("toy", 1)
        load.ledger.limit_bytes = load.ledger.held_bytes
        with pytest.raises(MemoryFull, match="toy-embed int8 on onnxruntime takes"):
            load("toy-embed", 1)
        assert serving.student.manifest.name == "toy"

    def test_the_limit_is_the_setting_or_what_the_container_leaves(self, make_loader: MakeLoader, monkeypatch: Any):
        assert make_loader(memory_limit_mb=16).ledger.limit_bytes == 16 << 20
        monkeypatch.setattr(loading, "memory_quota", lambda: None)
        assert make_loader().ledger.limit_bytes is None
        monkeypatch.setattr(loading, "memory_quota", lambda: 1 << 50)
        assert (1 << 49) < (make_loader().ledger.limit_bytes or 0) < (1 << 50)
        monkeypatch.setattr(loading, "memory_quota", lambda: 1)
        assert make_loader().ledger.limit_bytes == 0

    def test_what_is_let_go_is_freed(self, make_loader: MakeLoader) -> None:
        load = make_loader(backend="onnxruntime")
        ends = []
        for _ in range(20):
            served = load("toy", 1)
            list(map(ends.append, map(weakref.ref, (served.student, *served.student._pool.sessions))))
            del served
            gc.collect()
            load.tidy()
        assert [end() for end in ends] == [None] * len(ends)
        assert repr(load) == f"Loader(Ledger(held=0 bytes by 0, limit={load.ledger.limit_bytes}))"


def test_slots_share_a_graph_s_session(make_loader: MakeLoader) -> None:
    served = make_loader(backend="onnxruntime", slots=4)("toy", 1)
    sessions = served.student._pool.sessions
    assert len(set(map(id, sessions))) == len(served.manifest.stages)

"""Which backend and precision `auto` takes, why, and what it remembers."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.runtime.choice import (
    MARGIN,
    Candidate,
    Choice,
    Weighed,
    after_runoff,
    candidates,
    decide,
    default_cache_dir,
    processor,
    reach,
    remember,
    remembered,
    runoff,
    surroundings,
    text_s,
)
from service.runtime.cost import StageCost
from service.runtime.encode import Encoded
from service.runtime.heads import ExitPolicy

ORT8, ORT32 = Candidate("onnxruntime", "int8"), Candidate("onnxruntime", "fp32")
OV8, OV32 = Candidate("openvino", "int8"), Candidate("openvino", "fp32")
BACKENDS = ("onnxruntime", "openvino")


def quality(**accuracy: float) -> dict:
    rows = {
        name: [{"risk": None, "exit_shares": [0, 1], "mean_depth": 1, "metrics": {"accuracy": value}}]
        for name, value in accuracy.items()
    }
    return {"split": "test", "rows": 10, "by_precision": rows}


@pytest.fixture
def manifest(bundle):
    return bundle.manifest


def with_quality(manifest, **accuracy: float):
    return type(manifest).model_validate(manifest.model_dump() | {"quality": quality(**accuracy)})


class TestCandidates:
    def test_the_default_comes_first_and_fp32_needs_no_record(self, manifest):
        found = candidates(manifest, backends=BACKENDS, precision=None)
        assert [each.candidate for each in found] == [ORT8, ORT32, OV8, OV32]
        assert {each.why_not for each in found} == {""}

    def test_a_precision_that_was_asked_for_is_the_only_one(self, manifest):
        found = candidates(manifest, backends=BACKENDS, precision="fp32")
        assert [each.candidate for each in found] == [ORT32, OV32]

    @pytest.mark.parametrize(
        ("accuracy", "why_not"),
        [
            ({"fp32": 0.9, "int8": 0.91}, "its accuracy is 0.9000, the default precision's 0.9100"),
            ({"fp32": 0.909, "int8": 0.91}, ""),
            ({"fp32": 0.95, "int8": 0.91}, ""),
            ({"fp32": 0.1}, ""),
        ],
    )
    def test_quality_is_kept(self, manifest, accuracy, why_not):
        found = candidates(with_quality(manifest, **accuracy), backends=BACKENDS, precision=None)
        assert [each.why_not for each in found] == ["", why_not, "", why_not]

    def test_what_nobody_measured_is_out(self, manifest):
        document = manifest.model_dump()
        document["precisions"]["int4"] = document["precisions"]["int8"]
        found = candidates(type(manifest).model_validate(document), backends=("onnxruntime",), precision=None)
        assert {str(each.candidate): each.why_not for each in found} == {
            "int8 on onnxruntime": "",
            "fp32 on onnxruntime": "",
            "int4 on onnxruntime": "its quality is not recorded",
        }


class TestExpectedCost:
    def test_exits_count_where_they_are_certified(self, manifest):
        assert reach(manifest, ORT8) == (1.0, 0.5)
        assert reach(manifest, OV8) == (1.0, 1.0)

    def test_exits_that_are_off_by_default_do_not_count(self, manifest):
        assert reach(manifest.model_copy(update={"default_risk": None}), ORT8) == (1.0, 1.0)

    @given(st.floats(0, 1), st.floats(1e-6, 1e-3), st.floats(1e-8, 1e-5))
    def test_fewer_texts_cost_less(self, share, base, token):
        costs = (StageCost(base, token), StageCost(base, token))
        assert text_s(costs, (1.0, share)) <= text_s(costs, (1.0, 1.0)) * (1 + 1e-9)

    def test_a_stage_without_texts_costs_nothing(self):
        costs = (StageCost(1e-4, 0.0), StageCost(1e-4, 0.0))
        assert text_s(costs, (1.0, 0.0)) == pytest.approx(1e-4 * (1 + 1 / 4 + 1 / 16) / 3)


class TestDecision:
    def test_the_cheapest_is_taken_and_says_what_it_saves(self):
        choice = decide([Weighed(ORT8, 1e-3), Weighed(ORT32, 2e-3), Weighed(OV8, 5e-4)])
        assert (choice.candidate, choice.why) == (OV8, "saves 50% of a text's time against int8 on onnxruntime")

    def test_the_default_stays_within_the_margin(self):
        choice = decide([Weighed(ORT8, 1e-3), Weighed(OV8, 0.95e-3)])
        assert choice.candidate == ORT8
        assert choice.why == "the default; int8 on openvino would save 5%, less than 10%"

    def test_the_default_stays_where_nothing_is_faster(self):
        assert decide([Weighed(ORT8, 1e-3), Weighed(OV8, 2e-3)]).why == "the default; nothing else is faster"

    def test_the_default_stays_where_there_is_nothing_else(self):
        assert decide([Weighed(ORT8, 1e-3)]).why == "the default; nothing else is at hand"

    def test_what_is_out_of_the_question_is_not_taken(self):
        choice = decide([Weighed(ORT8, 1e-3), Weighed(OV8, None, "not the golden outputs")])
        assert choice.candidate == ORT8
        assert choice.document()["candidates"] == [
            {"backend": "onnxruntime", "precision": "int8", "ms_per_text": 1.0, "why_not": None},
            {"backend": "openvino", "precision": "int8", "ms_per_text": None, "why_not": "not the golden outputs"},
        ]

    @given(st.lists(st.floats(1e-6, 1), min_size=1, max_size=6))
    def test_the_default_is_left_only_for_the_cheapest_and_only_for_enough(self, costs):
        weighed = [Weighed(Candidate("onnxruntime", f"p{i}"), cost) for i, cost in enumerate(costs)]
        chosen = decide(weighed).candidate
        cost = next(each.seconds for each in weighed if each.candidate == chosen)
        assert chosen == weighed[0].candidate or cost == min(costs) <= costs[0] * (1 - MARGIN) * (1 + 1e-9)


class TestMemory:
    def here(self, manifest, **fields):
        usual = {"backends": BACKENDS, "threads": 1, "slots": 2, "precision": None}
        return surroundings(manifest, **usual | fields)

    def choice(self) -> Choice:
        return decide([Weighed(ORT8, 1e-3), Weighed(ORT32, None, "no"), Weighed(OV8, 5e-4)])

    def test_it_is_read_back(self, manifest, tmp_path):
        here = self.here(manifest)
        assert remembered(tmp_path, here) is None
        remember(tmp_path, here, self.choice())
        assert remembered(tmp_path, here) == self.choice()
        assert [path.name for path in (tmp_path / "choices").iterdir()] == [f"{here.digest}.json"]

    def test_other_surroundings_know_nothing_of_it(self, manifest, tmp_path):
        here = self.here(manifest)
        remember(tmp_path, here, self.choice())
        others = [
            self.here(manifest, threads=2),
            self.here(manifest, slots=1),
            self.here(manifest, precision="fp32"),
            self.here(manifest, backends=("onnxruntime",)),
            self.here(manifest.model_copy(update={"default_risk": 0.01})),
            replace(here, processor="another"),
            replace(here, backends=(("onnxruntime", "0.1"), here.backends[1])),
        ]
        assert [remembered(tmp_path, other) for other in others] == [None] * len(others)

    @pytest.mark.parametrize(
        "spoil",
        [
            lambda document: "{",
            lambda document: "[]",
            lambda document: json.dumps(document | {"schema": 99}),
            lambda document: json.dumps(document | {"surroundings": {}}),
            lambda document: json.dumps(document | {"weighed": []}),
            lambda document: json.dumps(document | {"candidate": {"colour": "blue"}}),
            lambda document: json.dumps({name: value for name, value in document.items() if name != "why"}),
        ],
    )
    def test_a_broken_file_is_told(self, manifest, tmp_path, spoil):
        here = self.here(manifest)
        remember(tmp_path, here, self.choice())
        file = tmp_path / "choices" / f"{here.digest}.json"
        file.write_text(spoil(json.loads(file.read_text())))
        with pytest.raises(ValueError, match="not a choice of ours"):
            remembered(tmp_path, here)

    def test_a_file_that_cannot_be_read_is_told(self, manifest, tmp_path):
        here = self.here(manifest)
        (tmp_path / "choices" / f"{here.digest}.json").mkdir(parents=True)
        with pytest.raises(ValueError, match="cannot be read"):
            remembered(tmp_path, here)

    def test_a_choice_that_cannot_be_written_leaves_nothing(self, manifest, tmp_path):
        here = self.here(manifest)
        (tmp_path / "choices" / f"{here.digest}.json").mkdir(parents=True)
        with pytest.raises(OSError, match="directory"):
            remember(tmp_path, here, self.choice())
        assert len(list((tmp_path / "choices").iterdir())) == 1

    def test_a_backend_that_is_not_installed_has_no_version(self, manifest):
        assert dict(self.here(manifest, backends=("cuda",)).backends) == {"cuda": "unknown"}


class TestPlaces:
    def test_the_cache_is_the_user_s(self):
        assert default_cache_dir({"XDG_CACHE_HOME": "/caches"}) == Path("/caches/understudy")
        assert default_cache_dir({}) == Path.home() / ".cache" / "understudy"
        assert default_cache_dir().name == "understudy"

    def test_the_processor_is_its_model_and_flags(self, tmp_path):
        def told(text: str) -> str:
            (tmp_path / "cpuinfo").write_text(text)
            return processor(tmp_path / "cpuinfo")

        one = told("processor : 0\nmodel name : Fast 9\nflags : avx2 amx\n")
        assert one.startswith("Fast 9 ")
        assert one == told("model name : Fast 9\nflags : amx avx2\n") != told("model name : Fast 9\nflags : avx2\n")
        assert told("Features : asimd bf16\n") != told("Features : asimd\n")
        assert processor(tmp_path / "absent")


class Scripted:
    """A side of a runoff that takes so many seconds a token, and writes down what it ran."""

    def __init__(self, clock: "Clock", token_s: float) -> None:
        self._clock, self._token_s = clock, token_s
        self.shapes: list[tuple[int, ...]] = []

    def of_ids(self, ids: np.ndarray) -> Encoded:
        return Encoded(ids, np.zeros_like(ids), tokens=len(ids), kept=len(ids))

    def policy(self, exit: str = "default", /) -> ExitPolicy:
        return ExitPolicy(())

    def run(self, batch, policies, /) -> None:
        self.shapes.append(tuple(item.kept for item in batch))
        self._clock.now += self._token_s * sum(self.shapes[-1])


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class TestRunoff:
    def test_both_run_the_same_batches_of_many_shapes(self):
        clock = Clock()
        ours, theirs = Scripted(clock, 2.0), Scripted(clock, 1.0)
        saved = runoff(ours, theirs, ids=[1, 2, 3], max_tokens=32, clock=clock)
        assert saved == pytest.approx(0.5)
        assert ours.shapes == theirs.shapes
        assert len(set(ours.shapes)) > len(ours.shapes) / 2
        assert max(map(max, ours.shapes)) <= 32

    def test_a_slower_challenger_saves_less_than_nothing(self):
        clock = Clock()
        assert runoff(Scripted(clock, 1.0), Scripted(clock, 2.0), ids=[1], max_tokens=8, clock=clock) == -1.0

    @pytest.mark.parametrize(("saved", "backend"), [(0.5, "openvino"), (0.099, "onnxruntime"), (-1.0, "onnxruntime")])
    def test_the_challenger_must_save_the_margin(self, saved, backend):
        default, challenger = Candidate("onnxruntime", "int8"), Candidate("openvino", "int8")
        choice = after_runoff(Choice(challenger, ""), default, saved)
        assert choice.candidate.backend == backend
        assert f"saves {saved:.0%}" in choice.why

"""The frontier is what no other student beats; the table says it, and the picture draws it."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axes import Axes

from models.evaluate.metrics import Interval
from models.report.frontier import (
    FRONTIER,
    LEAST_BYTES,
    LEAST_MEMORY,
    NEAR_BEST,
    NOISE,
    Comparison,
    Point,
    comparison_page,
    comparison_table,
    dominates,
    frontier,
    marks,
    smallest,
)
from models.report.frontier_plot import plot_comparison

MAX_BYTES = 60_000


def point(name: str, quality: float, cost: float | None = 100.0, **more: object) -> Point:
    return Point(name, quality=Interval(quality, quality - 0.02, quality + 0.02), us_per_text=cost, **more)


# few values of each, so that equal ones occur
QUALITIES = st.one_of(st.sampled_from([0.8, 0.9, 0.95]), st.floats(0, 1))
COSTS = st.one_of(st.sampled_from([50.0, 100.0, 102.0, 103.0, 110.0]), st.floats(0.1, 1e5))
POINTS = st.lists(st.builds(point, st.just("some"), QUALITIES, COSTS), min_size=1, max_size=12)


def kept(points: list[Point]) -> list[Point]:
    return [points[at] for at in frontier(points)]


@pytest.mark.parametrize(
    ("first", "second", "wins"),
    [
        ((0.9, 100.0), (0.9, 102.9), False),
        ((0.9, 100.0), (0.9, 103.0), True),
        ((0.9, 100.0), (0.89, 103.0), True),
        ((0.901, 100.0), (0.9, 100.0), True),
        ((0.901, 100.0), (0.9, 99.0), False),
        ((0.9, 100.0), (0.9, 100.0), False),
        ((0.899, 1.0), (0.9, 100.0), False),
        ((0.9, math.nan), (0.8, 100.0), False),
        ((math.nan, 1.0), (0.8, 100.0), False),
    ],
)
def test_to_dominate_is_to_be_as_good_and_clearly_cheaper_or_better_and_not_dearer(
    first: tuple[float, float], second: tuple[float, float], wins: bool
) -> None:
    assert dominates(point("a", *first), point("b", *second)) is wins


@given(POINTS)
def test_a_frontier_is_never_empty_and_holds_the_best(points: list[Point]) -> None:
    best = max(each.value for each in points)
    assert best in [each.value for each in kept(points)]
    assert not any(dominates(a, b) for a in kept(points) for b in kept(points))


@given(POINTS)
def test_whatever_is_left_out_is_beaten_by_one_that_is_kept(points: list[Point]) -> None:
    places = frontier(points)
    for at, each in enumerate(points):
        assert at in places or any(dominates(other, each) for other in kept(points))


@given(POINTS, st.data())
def test_adding_what_is_dominated_changes_nothing(points: list[Point], data: st.DataObject) -> None:
    stronger = data.draw(st.sampled_from(points))
    dearer = stronger.cost * data.draw(st.floats(1 + 2 * NOISE, 10))
    worse = point("worse", stronger.value - data.draw(st.floats(0, 0.5)), dearer)
    assert kept([*points, worse]) == kept(points)


@given(POINTS, st.randoms())
def test_the_order_of_points_does_not_matter(points: list[Point], random) -> None:
    shuffled = points.copy()
    random.shuffle(shuffled)
    coordinates = [(each.cost, each.value) for each in kept(points)]
    assert [(each.cost, each.value) for each in kept(shuffled)] == coordinates == sorted(coordinates)


@given(POINTS)
def test_the_smallest_is_near_the_best_and_nothing_near_it_is_smaller(points: list[Point]) -> None:
    sized = [replace(each, bundle_bytes=int(each.cost * 7919) % 13) for each in points]
    place = smallest(sized, "bundle_bytes")
    assert place is not None
    best = max(each.value for each in sized)
    assert sized[place].value >= best - NEAR_BEST
    near = [each.bundle_bytes for each in sized if each.value >= best - NEAR_BEST]
    assert sized[place].bundle_bytes == min(near)


def test_of_equal_sizes_the_better_then_the_cheaper_is_the_smallest() -> None:
    points = [
        point("slow", 0.9, 200.0, bundle_bytes=5),
        point("fast", 0.9, 100.0, bundle_bytes=5),
        point("worse", 0.895, 1.0, bundle_bytes=5),
    ]
    assert smallest(points, "bundle_bytes") == 1
    assert smallest(points, "memory_bytes") is None
    assert smallest([], "bundle_bytes") is None


def test_references_and_what_was_not_made_are_on_no_frontier() -> None:
    points = [
        point("teacher", 0.99, 1.0, reference=True, bundle_bytes=1),
        point("student", 0.9, bundle_bytes=9, memory_bytes=9),
        Point("broken", failed="the loss is not finite"),
        point("untimed", 0.95, None),
    ]
    assert frontier(points) == (1,)
    assert marks(points) == ((), (FRONTIER,), (), ())
    assert smallest(points, "bundle_bytes") is None  # the student is not near the untimed one
    assert frontier([points[0], points[2]]) == ()


@pytest.fixture
def found() -> Comparison:
    """Two students, one of them with an operating point, a teacher, a baseline, and one that was not made."""
    scored = {"macro_f1": Interval(0.88, 0.86, 0.9), "retention": Interval(0.98, 0.97, 0.99)}
    sizes = {"memory_bytes": 30 << 20, "bundle_bytes": 4_200_000, "parameters": 2_800_000, "layers": 4}
    times = {"us_alone": 321.0, "ms_whole": 0.456}
    return Comparison(
        task="classify",
        measure="accuracy",
        split="500 dev rows",
        timed="some processor",
        points=(
            point("deep", 0.92, 300.0, **scored, **sizes, **times),
            point("deep", 0.919, 60.0, setting="risk 0.01", **scored, **sizes, **times),
            point("odd | name", 0.90, 80.0, **{**sizes, "bundle_bytes": 900_000}),
            Point("broken", failed="the loss is not finite"),
            point("teacher", 0.95, 5000.0, reference=True),
            point("baseline", 0.85, None, reference=True),
        ),
        notes=("Measured on dev.",),
    )


def test_the_table_says_what_is_worth_shipping(found: Comparison) -> None:
    lines = comparison_table(found).splitlines()
    head, deep, risk, odd, broken, teacher, baseline = (
        [cell.strip() for cell in line.replace("\\|", "/").strip("|").split("|")] for line in (lines[0], *lines[2:])
    )
    assert len({len(line) for line in (head, deep, risk, odd, broken, teacher, baseline)}) == 1
    assert deep[:4] == ["**deep**", "full depth", "92.00% (90.00% to 94.00%)", "88.00% (86.00% to 90.00%)"]
    assert deep[4:-1] == ["0.9800 (0.9700 to 0.9900)", "300.0", "321.0", "0.456", "30.0", "4.20", "4", "2.80"]
    assert deep[-1] == f"{FRONTIER}, {LEAST_BYTES}, {LEAST_MEMORY}"
    assert risk[1] == "risk 0.01"
    assert risk[-1] == FRONTIER
    assert (odd[0], odd[-1]) == ("odd / name", "")
    assert (broken[2], broken[-1]) == ("not made", "")
    assert (teacher[-1], baseline[5], baseline[-1]) == ("reference", "–", "reference")


def test_sizes_are_marked_once(found: Comparison) -> None:
    near = replace(found, points=(*found.points, point("small", 0.915, 900.0, memory_bytes=1, bundle_bytes=1)))
    assert marks(near.points)[-1] == (LEAST_BYTES, LEAST_MEMORY)
    assert sum(LEAST_BYTES in each for each in marks(near.points)) == 1


def test_other_measures_are_plain_numbers_and_undefined_is_said(found: Comparison) -> None:
    table = comparison_table(replace(found, task="embed", points=(point("some", 0.8), point("none", math.nan))))
    assert "0.8000 (0.7800 to 0.8200)" in table
    assert "undefined" in table
    assert "macro F1" not in table


def test_the_page_says_how_what_and_what_not(found: Comparison) -> None:
    page = comparison_page(found, picture="compare.png")
    assert page.startswith("# classify: 3 students compared\n\naccuracy on 500 dev rows; some processor.\n")
    assert "![accuracy against processor time](compare.png)" in page
    assert "Worth shipping, cheapest first: deep, risk 0.01; deep." in page
    assert "Within one point of the best, smallest bundle: deep." in page
    assert "Not made:\n\n- broken: the loss is not finite\n" in page
    assert page.endswith("- Measured on dev.\n")
    assert "![" not in comparison_page(found)


def test_known_passages_have_a_column_where_any_ranker_keeps_them(found: Comparison) -> None:
    points = (point("split", 0.8, 90.0, us_known=4.5), point("joint", 0.81, 400.0))
    head, _, split, joint = comparison_table(replace(found, task="rank", points=points)).splitlines()
    at = [cell.strip() for cell in head.split("|")].index("µs, known passages")
    assert [line.split("|")[at].strip() for line in (split, joint)] == ["4.5", "–"]
    assert "µs a pair, batch 32" in head
    assert "known passages" not in comparison_table(found)
    assert frontier(points) == (0, 1)


def test_names_stand_beside_what_they_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, found: Comparison) -> None:
    """Close settings of one student share a name; without room there is none; full depth never has one."""
    written: list[tuple[str, tuple[float, float]]] = []

    def annotate(self: Axes, text: str, xy: tuple[float, float], **look: object) -> None:
        written.append((text, xy))

    monkeypatch.setattr(Axes, "annotate", annotate)
    points = (
        point("b", 0.80, 95.0),
        point("a", 0.82, 100.0, setting="risk 0.05"),
        point("a", 0.83, 105.0, setting="risk 0.01"),
        point("a", 0.84, 115.0),
        point("a", 0.85, 140.0, setting="risk 0.001"),
        point("b", 0.86, 141.0, setting="risk 0.01"),
        point("c", 0.87, 142.0, setting="risk 0.02"),
        point("c", 0.88, 190.0, setting="risk 0.01"),
    )
    plot_comparison(tmp_path / "named.png", replace(found, points=points))
    assert written == [
        ("risk 0.05, 0.01", (100.0, 0.82)),
        ("risk 0.001", (140.0, 0.85)),
        ("risk 0.01", (190.0, 0.88)),
    ]


@pytest.mark.filterwarnings("error")
def test_a_crowded_picture_is_small_too(tmp_path: Path, found: Comparison) -> None:
    crowd = [
        point(
            f"a student with a long name {number}", 0.5 + number / 40, 10.0 * 2**number, setting=setting, us_known=3.0
        )
        for number in range(12)
        for setting in ("full depth", "risk 0.01")
    ]
    path = tmp_path / "crowd.png"
    plot_comparison(path, replace(found, task="rank", points=tuple(crowd)))
    assert path.stat().st_size < MAX_BYTES


@pytest.mark.filterwarnings("error")
def test_the_picture_is_a_small_png_and_repeatable(tmp_path: Path, found: Comparison) -> None:
    first, second, bare = (tmp_path / f"{name}.png" for name in ("first", "second", "bare"))
    plot_comparison(first, found)
    plot_comparison(second, found)
    assert first.read_bytes().startswith(b"\x89PNG")
    assert 1_000 < first.stat().st_size < MAX_BYTES
    assert first.read_bytes() == second.read_bytes()
    plot_comparison(bare, replace(found, points=found.points[3:4]))
    assert bare.read_bytes().startswith(b"\x89PNG")

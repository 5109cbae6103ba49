"""Plots are small PNG files, the same bytes for the same numbers, and hold what they should."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from models.evaluate.quality import StudentQuality
from models.evaluate.speed import Timing
from models.report.plots import plot_calibration, plot_exits, plot_frontier

SPEED = tuple(
    Timing(name, "ids", 32, 1000, (seconds,))
    for name, seconds in [("exit early", 0.01), ("exit full", 0.2), ("risk 0.01", 0.1), ("risk 0.05", 0.05)]
)
MAX_BYTES = 60_000

Plot = Callable[[Path, StudentQuality], None]


@pytest.mark.parametrize(
    "plot",
    [
        lambda path, quality: plot_frontier(path, quality),
        lambda path, quality: plot_frontier(path, quality, speed=SPEED),
        lambda path, quality: plot_frontier(path, quality, speed=SPEED[:1]),
        lambda path, quality: plot_exits(path, quality),
        lambda path, quality: plot_calibration(path, quality.reliability),
    ],
    ids=["depth", "depth and speed", "speed of one exit only", "exits", "calibration"],
)
def test_a_plot_is_a_small_png_and_repeatable(tmp_path: Path, quality: StudentQuality, plot: Plot) -> None:
    first, second = tmp_path / "first.png", tmp_path / "second.png"
    plot(first, quality)
    plot(second, quality)
    assert first.read_bytes().startswith(b"\x89PNG")
    assert 1_000 < first.stat().st_size < MAX_BYTES
    assert first.read_bytes() == second.read_bytes()


def test_unlabelled_measurements_are_plotted_by_agreement(tmp_path: Path, quality: StudentQuality) -> None:
    bare = replace(
        quality,
        teacher_accuracy=None,
        exits=tuple(replace(leave, accuracy=None) for leave in quality.exits),
        settings=tuple(replace(setting, accuracy=None) for setting in quality.settings),
    )
    plot_frontier(tmp_path / "bare.png", bare)
    plot_frontier(tmp_path / "labelled.png", quality)
    assert (tmp_path / "bare.png").read_bytes() != (tmp_path / "labelled.png").read_bytes()


def test_a_student_without_points_is_plotted(tmp_path: Path, quality: StudentQuality) -> None:
    plain = replace(quality, settings=quality.settings[:1])
    plot_frontier(tmp_path / "frontier.png", plain, speed=SPEED)
    plot_exits(tmp_path / "exits.png", plain)
    assert (tmp_path / "exits.png").stat().st_size > 1_000

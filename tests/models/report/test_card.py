"""The card says what was measured, in the words of the promise, and nothing that was not given to it."""

from dataclasses import replace
from pathlib import Path

import pytest

from models.evaluate.by_file import FileQuality
from models.evaluate.company import CompanyCheck
from models.evaluate.metrics import Interval
from models.evaluate.quality import EvaluationRows, StudentQuality, evaluate_student
from models.evaluate.resplits import ResplitSummary
from models.evaluate.speed import SpeedReport, Timing
from models.report.card import Card, GateResult, render, write_card
from service.bundle.manifest import DataSource, Manifest
from service.runtime.student import Student

SOURCES = (
    DataSource(role="train", name="set/train.jsonl", sha256="a" * 64, rows=1000, licence="CC BY-NC 4.0"),
    DataSource(role="test", name="set/test.jsonl", sha256="b" * 64, rows=300, licence="CC BY 4.0"),
    DataSource(role="unlabelled", name="more/rows.jsonl", sha256="c" * 64, rows=50),
)


@pytest.fixture
def card(student: Student, quality: StudentQuality) -> Card:
    """With measurements only."""
    return Card(student.manifest, (quality,))


def with_provenance(manifest: Manifest, **fields: object) -> Manifest:
    return manifest.model_copy(update={"provenance": manifest.provenance.model_copy(update=fields)})


def test_the_card_and_its_plots_are_written_and_named(card: Card, tmp_path: Path) -> None:
    written = write_card(card, tmp_path)
    assert written == ("card.md", "card/quality.png", "card/exits.png", "card/calibration.png")
    assert all((tmp_path / file).is_file() for file in written)
    text = (tmp_path / "card.md").read_text()
    assert all(f"]({file})" in text for file in written[1:])
    assert sum((tmp_path / file).stat().st_size for file in written) < 150_000


def test_writing_again_replaces_the_same_files(card: Card, tmp_path: Path) -> None:
    assert write_card(card, tmp_path) == write_card(card, tmp_path)


def test_the_promise_is_worded_with_its_numbers(card: Card) -> None:
    text = render(card)
    assert "with probability ≥ 0.95 over the draw of the 1,000 calibration rows" in text
    assert "at most a share ε of all inputs from the calibrated population (toy texts)" in text
    assert "get a label other than the reference's (full depth, same precision)" in text
    assert "not per input, class or tenant; it does not cover correctness, scores, degraded answers, or drift." in text
    assert "| 0.01 | 1,000 | 3 | 0.01 | 0.9 | 50.0% | 50.0% | 62.5% |" in text
    assert text.count("All points hold together (δ = 0.05") == 2


def test_a_threshold_that_nobody_meets_reads_never(card: Card) -> None:
    certificate = card.manifest.certificates[0]
    point = certificate.points[0].model_copy(update={"thresholds": (None,)})
    closed = certificate.model_copy(update={"points": (point,)})
    text = render(replace(card, manifest=card.manifest.model_copy(update={"certificates": (closed,)})))
    assert "| 0.01 | 1,000 | 3 | 0.01 | never |" in text


def test_without_certificates_the_card_says_so(card: Card) -> None:
    manifest = card.manifest.model_copy(update={"certificates": (), "default_risk": None})
    text = render(replace(card, manifest=manifest))
    assert "Nothing is certified for this version" in text
    assert "As served by default" not in text


def test_teacher_and_student_stand_side_by_side(card: Card, quality: StudentQuality) -> None:
    text = render(card)
    kept = quality.full_depth.retention
    assert kept is not None
    assert f"Retention {kept.value:.4f} (95% paired bootstrap interval {kept.low:.4f} to {kept.high:.4f})" in text
    assert "| teacher |" in text
    assert "| int8, risk 0.05 |" in text


def test_unlabelled_measurements_leave_the_teacher_out(student: Student, rows: EvaluationRows) -> None:
    text = render(Card(student.manifest, (evaluate_student(student, EvaluationRows(rows.texts)),)))
    assert "Retention" not in text
    assert "| teacher |" not in text
    assert "calibration.png" not in text


def test_bounds_by_label_are_those_of_the_default_point(card: Card, quality: StudentQuality) -> None:
    text = render(card)
    setting = quality.at(0.05)
    assert setting is not None
    assert setting.bounds
    assert "At risk 0.05 (int8)" in text
    assert all(f"| {bound.label} | {bound.rows} | {bound.errors} |" in text for bound in setting.bounds)
    none = tuple(replace(each, bounds=()) for each in quality.settings)
    assert "## By predicted label" not in render(replace(card, qualities=(replace(quality, settings=none),)))


def test_many_labels_are_cut_to_the_widest(card: Card, quality: StudentQuality) -> None:
    setting = quality.at(0.05)
    assert setting is not None
    bounds = tuple(replace(setting.bounds[0], label=f"label {i}", upper=i / 100) for i in range(30))
    settings = tuple(replace(each, bounds=bounds) for each in quality.settings)
    text = render(replace(card, qualities=(replace(quality, settings=settings),)))
    assert "The 20 widest of 30 are shown." in text
    assert "| label 29 |" in text
    assert "| label 9 |" not in text


def test_data_and_licences_are_named(card: Card) -> None:
    text = render(
        replace(
            card,
            manifest=with_provenance(card.manifest, data=SOURCES),
            data_notes=("12 rows of the test file were taken out of train",),
        )
    )
    assert "| train | set/train.jsonl | 1,000 | CC BY-NC 4.0 | `aaaaaaaaaaaaaaaa…` |" in text
    assert "**Restricted to non-commercial use or research by its data:** CC BY-NC 4.0." in text
    assert "No licence is stated for: more/rows.jsonl." in text
    assert "- 12 rows of the test file were taken out of train" in text


@pytest.mark.parametrize(
    ("licence", "restricted"),
    [
        ("CC BY-NC-SA 4.0", True),
        ("non-commercial research only", True),
        ("Noncommercial", True),
        ("for research use only", True),
        ("CC BY 4.0", False),
        ("Apache-2.0", False),
        ("as distributed by Ncorp", False),
    ],
)
def test_restrictions_are_recognised(card: Card, licence: str, restricted: bool) -> None:
    source = SOURCES[1].model_copy(update={"licence": licence})
    text = render(replace(card, manifest=with_provenance(card.manifest, data=(source,))))
    assert ("Restricted to non-commercial" in text) is restricted


def test_how_it_was_made_is_told(card: Card) -> None:
    manifest = with_provenance(
        card.manifest,
        recipe_sha256="d" * 64,
        recipe={"description": "Tells moods apart."},
        machine="a machine",
        libraries={"torch": "2.13.0", "numpy": "2.4.6"},
        notes=("seed 0 of three",),
    )
    text = render(replace(card, manifest=manifest, commands=("understudy refresh mood.yaml",)))
    assert "Tells moods apart." in text
    assert f"- recipe digest: `{'d' * 64}`" in text
    assert "- libraries: numpy 2.4.6, torch 2.13.0" in text
    assert "- machine: a machine" in text
    assert "- seed 0 of three" in text
    assert "```\nunderstudy refresh mood.yaml\n```" in text


def test_sizes_are_compared_with_the_teacher(card: Card) -> None:
    total = sum(entry.bytes for entry in card.manifest.files.values())
    text = render(replace(card, teacher_bytes=10 * total, receipts=("static int8: 10 -> 5 bytes",)))
    assert f"| all files | {total:,} |" in text
    assert "(10.0 times as much)" in text
    assert "static int8: 10 -> 5 bytes" in text


def test_optional_measurements_get_their_sections(card: Card) -> None:
    plain = render(card)
    sections = ("## Gates", "## Company", "## Speed", "## Calibration drawn again")
    assert not any(section in plain for section in sections)
    again = ResplitSummary(0.01, 50, 60, 140, 100, 1.0, (0.6, 0.4), 0.5, 0.8, (0.0, 0.005, 0.01), 0.02, 0.0)
    full = render(
        replace(
            card,
            gates=(GateResult("retention", "≥ 0.95", "0.99", True), GateResult("bytes", "≤ 10", "12", False)),
            company=(
                CompanyCheck("int8", "exit early", "padded", 10, 1e-4, 0, 0, 0),
                CompanyCheck("int8", "risk 0.05", "padded", 10, 3e-4, 1, 2, 0),
            ),
            speed=SpeedReport("a machine", 1, 5, (Timing("toy", "texts", 32, 100, (0.1,)),)),
            resplits=(again,),
        )
    )
    assert all(section in full for section in sections)
    assert "| retention | ≥ 0.95 | 0.99 | passed |" in full
    assert "| bytes | ≤ 10 | 12 | FAILED |" in full
    assert "| int8 | padded | 10 | 3.0e-04 | 1 | 2 | 0 |" in full
    assert "| toy | texts (tokenizing timed) | 32 | 100 | 1,000 |" in full
    assert "| 0.01 | 100.0% | 60.0% | 50.0% | 0.80 | 0.00% / 0.50% / 1.00% | 2.0% |" in full


def test_each_test_file_has_its_lines(card: Card) -> None:
    assert "## By test file" not in render(card)
    files = (
        FileQuality("a/x.jsonl", 1200, "teacher", 0.9, 0.8, None, None),
        FileQuality("a/x.jsonl", 1200, "full depth", 0.81, 0.4, Interval(0.9, 0.85, 0.95), 0.5),
    )
    full = render(replace(card, files=files))
    assert "| file | rows | setting | accuracy | macro F1 | accuracy ÷ teacher | 95% interval | F1 ÷ teacher |" in full
    assert "| a/x.jsonl | 1,200 | teacher | 90.00% | 80.00% | – | – | – |" in full
    assert "| a/x.jsonl | 1,200 | full depth | 81.00% | 40.00% | 0.9000 | 0.8500 to 0.9500 | 0.5000 |" in full
    two = card.manifest.model_copy(update={"labels": ("no", "yes")})
    assert "| F1 of yes |" in render(replace(card, manifest=two, qualities=card.qualities, files=files))


def test_the_card_says_what_it_does_not_say(card: Card) -> None:
    limits = render(card).split("## What this card does not say")[1]
    assert "how often either is" in limits
    assert "drift" in limits


def test_a_bar_in_a_name_does_not_break_a_table(card: Card) -> None:
    source = SOURCES[0].model_copy(update={"licence": "this | that"})
    assert r"this \| that" in render(replace(card, manifest=with_provenance(card.manifest, data=(source,))))

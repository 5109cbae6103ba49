"""The verb `understudy evaluate STUDENT[@VERSION] DATA`: quality per exit and per operating point."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from models.data.read import read_rows
from models.data.rows import Row, text_of
from models.errors import DataInvalid
from models.evaluate.opening import (
    one_line_errors,
    open_bundle,
    require_classify,
    require_known_labels,
    require_shape,
    write_json,
)
from models.evaluate.quality import EvaluationRows, StudentQuality, evaluate_student
from models.evaluate.rank_command import measure_rankings
from models.evaluate.speed import student_speed
from models.evaluate.tables import quality_table, speed_table
from models.evaluate.variants import Variant, require_backends, variants
from models.recipe.parts import FIRST_BACKEND
from service.bundle.load import Bundle


def command(
    student: Annotated[str, typer.Argument(help="NAME, NAME@VERSION, NAME@ALIAS, or a bundle's folder.")],
    data: Annotated[Path, typer.Argument(help="Rows: JSONL, CSV or Parquet; labels are optional.")],
    store: Annotated[Path, typer.Option(envvar="UNDERSTUDY_STORE", help="The store.")] = Path("models/store"),
    precision: Annotated[str | None, typer.Option(help="Default: every precision of the student.")] = None,
    backend: Annotated[str, typer.Option(help="The backend to measure on.")] = FIRST_BACKEND,
    json_out: Annotated[Path | None, typer.Option("--json", help="Write the measurements here too.")] = None,
) -> None:
    """Measure a student on a file of rows: at each exit, at each operating point, at full depth, and its speed.

    A ranker is measured on queries with their passages, beside BM25 and the file's own order.
    """
    with one_line_errors():
        require_backends([backend], where="--backend")
        bundle = open_bundle(student, store=store)
        wanted = variants([backend], [precision] if precision else sorted(bundle.manifest.precisions))
        if bundle.manifest.task == "rank":
            write_json(json_out, [asdict(each) for each in measure_rankings(bundle, data, wanted)])
            return
        require_classify(bundle)
        rows = _rows(bundle, data)
        measured = [_measure(bundle, variant, rows) for variant in wanted]
        write_json(json_out, [asdict(each) for each in measured])


def _rows(bundle: Bundle, data: Path) -> EvaluationRows:
    rows = read_rows(data, task="classify", labels="optional")
    require_shape(bundle, rows)
    require_known_labels(bundle, rows)
    return EvaluationRows(texts=tuple(text_of(row) for row in rows), labels=_labels(rows))


def _labels(rows: list[Row]) -> tuple[str, ...] | None:
    """All or none. Raises: DataInvalid: some rows have a label and some have none."""
    labels = tuple(row.label for row in rows if row.label is not None)
    if labels and len(labels) != len(rows):
        bare = next(row for row in rows if row.label is None)
        raise DataInvalid(f"{bare.file}:{bare.line}: label: missing, while other rows have one")
    return labels or None


def _measure(bundle: Bundle, variant: Variant, rows: EvaluationRows) -> StudentQuality:
    student = variant.load(bundle)
    quality = evaluate_student(student, rows)
    typer.echo(quality_table(quality))
    typer.echo(speed_table(student_speed(student, rows.texts)) + "\n")
    return quality

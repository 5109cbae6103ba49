"""`python -m models.evaluate.speed_command STUDENT TEACHER DATA`: a student's speed against its teacher's.

The teacher is a bundle: `understudy import default`, or a fine-tuned one from the runs folder of its refresh,
`understudy import RUNS/teacher/DIGEST/teacher --task classify --name NAME-teacher --max-tokens N`, N being the
student's, so that both read as much of a long text. Input "ids" times the graphs alone; "texts" is end to end.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from models.data.read import read_rows, read_texts
from models.data.rows import text_of
from models.evaluate.opening import one_line_errors, open_bundle, write_json
from models.evaluate.scale import bert_base_size
from models.evaluate.speed import BATCH_ITEMS, Contender, Mode, SpeedReport, machine_name, measure, pinned
from models.evaluate.speed import student_contenders as contenders_of
from models.evaluate.tables import markdown, speed_table
from models.evaluate.variants import Variant, require_backends
from models.recipe.parts import FIRST_BACKEND
from service.bundle.load import Bundle
from service.runtime.encode import Text
from service.runtime.student import Student

DEFAULT_RISK = 0.01
SCALE_STRIDE = 16
"""The encoder of BERT-base's size runs every 16th batch only: it is there for scale."""


@dataclass(frozen=True, slots=True)
class Sides:
    """How each side runs. `teachers`: float32 first, which ratios are to."""

    student: Variant
    teachers: tuple[Variant, ...]


def report(
    student: Bundle,
    teacher: Bundle,
    texts: Sequence[Text],
    *,
    risks: Sequence[float],
    sides: Sides,
    core: int | None,
) -> SpeedReport:
    """Load both sides on one pinned core and time them; the teacher runs at full depth in each of its precisions.

    Raises: DataInvalid: a risk is not certified for the student on its backend and precision.
    """
    with pinned(core) as used, tempfile.TemporaryDirectory() as scratch:
        baseline, *others = [variant.load(teacher) for variant in sides.teachers]
        contenders = [*contenders_of(sides.student.load(student), risks), *_teacher(baseline)]
        contenders += [contender for other in others for contender in _teacher(other)]
        contenders.append(
            Contender("12x768, random weights", baseline.encoder, bert_base_size(Path(scratch)), SCALE_STRIDE)
        )
        timings = measure(contenders, texts, order_by=baseline.encoder)
    backends = dict.fromkeys((FIRST_BACKEND, sides.student.backend, sides.teachers[0].backend))
    machine = machine_name(tuple(backends))
    return SpeedReport(machine=machine, core=used, repeats=len(timings[0].seconds), timings=timings)


def _texts(student: Bundle, data: Path) -> list[Text]:
    """What the rows show the student: pairs, or the texts of pairs one by one where it takes single texts."""
    if student.manifest.pairs == "none":
        return [each.text for each in read_texts(data)]
    return [text_of(row) for row in read_rows(data, task="classify", labels="optional")]


def _precisions(teacher: Bundle, backend: str) -> tuple[Variant, ...]:
    """fp32 and then the other precisions of the teacher."""
    return tuple(
        Variant(backend, name) for name in sorted(teacher.manifest.precisions, key=lambda name: name != "fp32")
    )


def _lengths(student: Bundle, teacher: Bundle) -> str:
    ours, theirs = student.manifest.max_tokens, teacher.manifest.max_tokens
    unlike = "" if ours == theirs else "; longer texts are more work for one than for the other"
    return f"texts are cut to {ours} tokens for the student, {theirs} for the teacher{unlike}\n"


def _teacher(teacher: Student) -> tuple[Contender, ...]:
    (full,) = contenders_of(teacher, ())
    return (replace(full, name=f"teacher {Variant(teacher.backend, teacher.precision).name}"),)


def ratios_table(measured: SpeedReport, baseline: str) -> str:
    """How many times as fast as the contender `baseline` every contender is, in each mode."""
    names = list(dict.fromkeys(t.contender for t in measured.timings))
    modes: list[tuple[Mode, int]] = list(dict.fromkeys((t.mode, t.batch_items) for t in measured.timings))
    head = ["times the teacher's speed", *(f"{mode}, batch {size}" for mode, size in modes)]
    rows = [
        [name, *(f"{measured.ratio(name, baseline, mode=mode, batch_items=size):.1f}" for mode, size in modes)]
        for name in names
    ]
    return markdown(head, rows)


def command(
    student: Annotated[str, typer.Argument(help="NAME, NAME@VERSION, NAME@ALIAS, or a bundle's folder.")],
    teacher: Annotated[str, typer.Argument(help="The teacher as a bundle: in the store, or its folder.")],
    data: Annotated[Path, typer.Argument(help="Rows: JSONL, CSV or Parquet.")],
    store: Annotated[Path, typer.Option(envvar="UNDERSTUDY_STORE")] = Path("models/store"),
    risk: Annotated[
        list[float] | None,
        typer.Option(help="Operating points to time; may be repeated. Default: 0.01, where there are exits."),
    ] = None,
    precision: Annotated[str | None, typer.Option(help="The student's; default: its default.")] = None,
    backend: Annotated[str, typer.Option(help="The student's.")] = FIRST_BACKEND,
    teacher_backend: Annotated[str, typer.Option(help="The teacher's.")] = FIRST_BACKEND,
    core: Annotated[int | None, typer.Option(help="Which core; default: the last allowed.")] = None,
    json_out: Annotated[Path | None, typer.Option("--json", help="Write the timings here too.")] = None,
) -> None:
    """Time a student against its teacher: same rows, same batches, one pinned thread on each side in turn."""
    with one_line_errors():
        require_backends([backend], where="--backend")
        require_backends([teacher_backend], where="--teacher-backend")
        first, second = open_bundle(student, store=store), open_bundle(teacher, store=store)
        texts = _texts(first, data)
        served = Variant(backend, precision or first.manifest.default_precision)
        sides = Sides(student=served, teachers=_precisions(second, teacher_backend))
        risks = risk or ((DEFAULT_RISK,) if len(first.manifest.exits) > 1 else ())
        measured = report(first, second, texts, risks=risks, sides=sides, core=core)
        typer.echo(f"{measured.machine}; core {measured.core}; median of {measured.repeats} interleaved repeats")
        typer.echo(f"batches of {BATCH_ITEMS} sorted by the teacher's lengths; at batch 1 a sample of the same rows")
        typer.echo("ids: the graphs and the exits' decisions alone; texts: tokenizing as well")
        typer.echo(_lengths(first, second))
        typer.echo(f"{speed_table(measured.timings)}\n\n{ratios_table(measured, f'teacher {sides.teachers[0].name}')}")
        write_json(json_out, asdict(measured))


if __name__ == "__main__":
    typer.run(command)

"""The verb `understudy compare RECIPE...`."""

import json
import math
import shlex
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from safetensors import SafetensorError

from models.errors import RecipeInvalid
from models.evaluate.speed import REPEATS, SINGLE_ROWS
from models.recipe.parts import FIRST_BACKEND, Recipe
from models.recipe.read import read_recipe
from models.refresh.cache import StepCache, sole_user
from models.refresh.cards import put_on_card
from models.refresh.command import WorkFailed
from models.refresh.comparing import MOST_ROWS, Costing, Field, carded, compare
from models.refresh.progress import Reporter
from models.report.frontier import Comparison, comparison_page, marks
from models.report.frontier_plot import plot_comparison
from models.teachers.fit import KEPT_BYTES
from service.runtime.memory import keep_freed

PICTURE: Final = "compare.png"


def command(
    recipes: Annotated[list[Path], typer.Argument(help="Recipes of one task, YAML files with the same dev rows.")],
    student: Annotated[
        list[str] | None, typer.Option(help="NAME[@VERSION] of the store, or a bundle's folder; may be repeated.")
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(help="The teacher as a bundle, in the store or its folder: its costs are measured too."),
    ] = None,
    store: Annotated[Path, typer.Option(envvar="UNDERSTUDY_STORE", help="The store of --student.")] = Path(
        "models/store"
    ),
    runs: Annotated[Path, typer.Option(help="Where steps keep what they made; refresh uses the same.")] = Path("runs"),
    stored_only: Annotated[
        bool, typer.Option(help="Make nothing: recipes say the dev rows only, and each --student is compared.")
    ] = False,
    card: Annotated[
        list[str] | None,
        typer.Option(help="NAME[@VERSION] of the store, compared: its card gets the result; may be repeated."),
    ] = None,
    out: Annotated[Path, typer.Option(help="The folder for compare.md, compare.json and compare.png.")] = Path(
        "compare"
    ),
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="FILE:KEY.KEY=VALUE: override one key of FILE.yaml.")
    ] = None,
    most_rows: Annotated[int, typer.Option(min=1, help="Time about so many dev texts at batch 32.")] = MOST_ROWS,
    single_rows: Annotated[int, typer.Option(min=1, help="Time about so many of them one by one.")] = SINGLE_ROWS,
    repeats: Annotated[int, typer.Option(min=1, help="Repeats, interleaved; the median counts.")] = REPEATS,
    backend: Annotated[str, typer.Option(help="The backend to measure on.")] = FIRST_BACKEND,
    core: Annotated[int | None, typer.Option(min=0, help="Which core; default: the last allowed.")] = None,
    resume: Annotated[bool, typer.Option(help="Continue an interrupted step at its last checkpoint.")] = False,
) -> None:
    """Compare many students of one task: quality on dev, processor time, memory and bytes, and the frontier of them.

    Students that are made already are only measured; the others are made first, held to no gate and not published.
    A recipe whose student cannot be made is listed as such, the exit status is 2, and no card is written.
    """
    reporter = Reporter()
    keep_freed(kept_bytes=KEPT_BYTES, one_heap=False)
    field = Field(
        recipes=tuple(zip((path.name for path in recipes), _read(recipes, overrides or ()), strict=True)),
        store=store,
        students=tuple(student or ()),
        teacher=teacher,
        stored_only=stored_only,
    )
    costing = Costing(backend, core, most_rows, single_rows, repeats)
    _writable(out)
    targets = carded(field, card or ())
    typed = command_line(recipes, field, costing, overrides=overrides or (), cards=card or ())
    try:
        with sole_user(runs):
            found = compare(field, costing, StepCache(runs, resume=resume), reporter, targets=targets)
        write_comparison(found, out)
    except KeyboardInterrupt:
        reporter.say("interrupted; --resume continues at the last checkpoint")
        raise
    except (OSError, SafetensorError) as error:
        where, why = getattr(error, "filename", None) or runs, getattr(error, "strerror", None) or error
        raise WorkFailed(f"{where}: {why}") from error
    sys.stdout.write(comparison_page(found))
    if found.failed:
        if targets:
            reporter.say("card: not every student was made; no card was written")
        raise typer.Exit(2)
    for target in targets:
        changed = put_on_card(target, found, picture=(out / PICTURE).read_bytes(), command=typed)
        reporter.say(f"card: {target.shown}: {'written' if changed else 'has it already'}")


def command_line(
    recipes: Sequence[Path], field: Field, costing: Costing, *, overrides: Sequence[str], cards: Sequence[str]
) -> str:
    """The command as one would type it elsewhere: without this machine's folders, and what is as by default.

    >>> field = Field(recipes=(), store=Path("store"), students=("topic@1",))
    >>> command_line([Path("/home/me/topic.yaml")], field, Costing(repeats=3), overrides=(), cards=("topic@1",))
    'understudy compare topic.yaml --student topic@1 --card topic@1 --repeats 3'
    >>> command_line([Path("a.yaml")], field, Costing(), overrides=("a:teacher.from=/home/me/t", "a:seed=1"), cards=())
    'understudy compare a.yaml --set a:teacher.from=t --set a:seed=1 --student topic@1'
    """
    words = ["understudy", "compare", *(_portable(path) for path in recipes)]
    words += [word for each in overrides for word in ("--set", _portable_override(each))]
    words += [word for each in field.students for word in ("--student", _portable(Path(each)))]
    words += [] if field.teacher is None else ["--teacher", _portable(Path(field.teacher))]
    words += ["--stored-only"] if field.stored_only else []
    words += [word for each in cards for word in ("--card", each)]
    for each in dataclass_fields(Costing):
        value = getattr(costing, each.name)
        if value != each.default:
            words += [f"--{each.name.replace('_', '-')}", str(value)]
    return shlex.join(words)


def _portable(path: Path) -> str:
    return path.name if path.is_absolute() else path.as_posix()


def _portable_override(written: str) -> str:
    key, equals, value = written.partition("=")
    return f"{key}{equals}{Path(value).name}" if Path(value).is_absolute() else written


def _read(files: Sequence[Path], overrides: Sequence[str]) -> list[Recipe]:
    """The recipes, each with the overrides of its own. Raises: RecipeInvalid."""
    given: dict[str, list[str]] = {path.stem: [] for path in files}
    for override in overrides:
        stem, colon, change = override.partition(":")
        if not colon or stem not in given:
            raise RecipeInvalid(f"--set {override}: must be FILE:KEY.KEY=VALUE, FILE one of {', '.join(given)}")
        given[stem].append(change)
    return [read_recipe(path, overrides=tuple(given[path.stem])) for path in files]


def _writable(out: Path) -> None:
    """Make the folder. Raises: WorkFailed: it cannot be made, or takes no file."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise WorkFailed(f"--out {out}: {error.strerror}") from error


def write_comparison(found: Comparison, out: Path) -> None:
    """`compare.md`, `compare.json` and `compare.png` in the folder. Raises: OSError."""
    plot_comparison(out / PICTURE, found)
    said = marks(found.points)
    points = [{**asdict(point), "marks": mark} for point, mark in zip(found.points, said, strict=True)]
    document = _numbers({**asdict(found), "points": points})
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
    (out / "compare.json").write_text(f"{text}\n", encoding="utf-8")
    (out / "compare.md").write_text(comparison_page(found, picture=PICTURE), encoding="utf-8")


def _numbers(value: Any) -> Any:
    """The same with None for what is no number, which JSON cannot say."""
    if isinstance(value, dict):
        return {key: _numbers(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_numbers(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

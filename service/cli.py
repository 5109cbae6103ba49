"""The command line: `understudy serve`, `understudy models ...`, and the verbs of the offline half.

Verbs from elsewhere (entry points of the group `understudy.commands`, and `serve`) are imported only when they are
invoked, so that `understudy --help` needs neither the service nor torch. Whatever a user can mend ends as one line on
standard error and exit status 2, or the error's own `exit_status`; an interrupt ends with 130.
"""

import importlib
import inspect
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup

from service.bundle.load import load_manifest
from service.bundle.manifest import Manifest, dump_manifest
from service.errors import BundleError, ServiceError, SettingsInvalid, StoreError
from service.store.aliases import DEFAULT_ALIAS
from service.store.store import Store

PROGRAM = "understudy"
ENTRY_POINTS = "understudy.commands"
INTERRUPTED = 130
WRONG = 2
_SECTIONS = re.compile(r"\n\s*(Args|Returns|Raises|Source|Yields):")
_SUMMARIES: Final = {
    "refresh": "Make a new version of a student from a recipe and publish it.",
    "certify": "Certify the exits of a published version on a further backend or precision.",
    "import": "Wrap an existing model as a bundle, without training.",
    "compare": "Compare many students of one task: quality against cost, and the frontier of them.",
    "evaluate": "Measure a student: quality, quality per exit, speed.",
    "loadtest": "Send a scenario's load to a server and hold the answers against its service level.",
}


@dataclass(frozen=True, slots=True)
class LazyVerb:
    """A verb whose function is imported when it is invoked. `target` is `MODULE:FUNCTION`."""

    target: str
    summary: str

    def function(self) -> Callable[..., Any]:
        """Import and return it. Raises: ModuleNotFoundError: one of its libraries is not installed."""
        module, _, name = self.target.partition(":")
        found: Callable[..., Any] = getattr(importlib.import_module(module), name)
        return found


def lazy_verbs() -> dict[str, LazyVerb]:
    """The verbs that are imported on demand, by name: `serve` and the installed entry points."""
    verbs = {"serve": LazyVerb("service.api.serve_command:serve", "Serve the students of a store over HTTP.")}
    for point in entry_points(group=ENTRY_POINTS):
        summary = _SUMMARIES.get(point.name, f"See `{PROGRAM} {point.name} --help`.")
        verbs.setdefault(point.name, LazyVerb(point.value, summary))
    return verbs


class VerbGroup(TyperGroup):
    """A group some of whose commands are only stubs, with a name and a summary, until they are invoked."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self._lazy: Mapping[str, LazyVerb] = lazy_verbs()
        for name, verb in self._lazy.items():
            self.commands.setdefault(name, _command(name, _stub, help_text=verb.summary))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that `args` name, imported if it was a stub."""
        name, command, rest = super().resolve_command(ctx, args)
        if name is not None and name in self._lazy:
            function = self._lazy[name].function()
            command = _command(name, function, help_text=_SECTIONS.split(inspect.getdoc(function) or "")[0])
        return name, command, rest


def _stub() -> None:
    """Stands for a verb that is not imported; never run."""


def _command(name: str, function: Callable[..., Any], *, help_text: str) -> Any:
    single = typer.Typer(add_completion=False)
    single.command(name, help=help_text)(function)
    return typer.main.get_command(single)


app = typer.Typer(
    name=PROGRAM,
    cls=VerbGroup,
    help="Make and serve small student models of large text encoders.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
models = typer.Typer(name="models", help="Look at the students of a store, check them, move aliases, and clear up.")
app.add_typer(models)
keys = typer.Typer(name="keys", help="API keys for the service.")
app.add_typer(keys)

StoreOption = Annotated[Path, typer.Option("--store", envvar="UNDERSTUDY_STORE", help="The store's directory.")]
Reference = Annotated[str, typer.Argument(help="NAME (its production alias), NAME@ALIAS or NAME@VERSION.")]
NewSpaceOption = Annotated[bool, typer.Option("--allow-new-space", help="Let it move to another embedding space.")]
DEFAULT_STORE: Final = Path("models/store")


@app.callback()
def _root() -> None:
    # subtle: without a callback typer would turn a group of one registered command into that command
    """Make and serve small student models of large text encoders."""


@models.command("list")
def list_models(store: StoreOption = DEFAULT_STORE) -> None:
    """List every version of every student, with its aliases; a broken one is listed with what is wrong."""
    opened = _existing(store)
    for name in opened.students():
        for line in _student_lines(opened, name):
            typer.echo(line)


@models.command("show")
def show_model(
    reference: Reference,
    store: StoreOption = DEFAULT_STORE,
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest as it is.")] = False,
) -> None:
    """Show what a version is: pipeline, exits, operating points, quality and provenance."""
    opened = _existing(store)
    resolved = opened.resolve(reference)
    manifest = load_manifest(opened.root / resolved.name / str(resolved.version))
    if as_json:
        typer.echo(dump_manifest(manifest).decode(), nl=False)
        return
    typer.echo(f"{resolved.name}@{resolved.version}{_pointing(opened, resolved.name, resolved.version)}")
    for line in _manifest_lines(manifest):
        typer.echo(f"  {line}")


@models.command("verify")
def verify_model(
    reference: Reference,
    store: StoreOption = DEFAULT_STORE,
    backend: Annotated[str, typer.Option(help="The backend that must reproduce the golden samples.")] = "auto",
) -> None:
    """Check a version: schema, digests, graphs, and that every precision reproduces the golden samples."""
    # subtle: the runtime brings ONNX Runtime along, which no other verb here needs
    from service.runtime.student import Student

    opened = _existing(store)
    resolved = opened.resolve(reference)
    bundle = opened.open(resolved.name, resolved.version)
    for precision in sorted(bundle.manifest.precisions):
        student = Student(bundle, backend=backend, precision=precision)
        student.check_golden()
        typer.echo(f"{resolved.name}@{resolved.version} {precision} on {student.backend}: OK")


@models.command("alias")
def alias_model(
    reference: Reference,
    alias: Annotated[str, typer.Argument(help="The alias to make or to move; not a number.")],
    store: StoreOption = DEFAULT_STORE,
    weight: Annotated[float | None, typer.Option(help="Share of traffic, 0 to 1; left out: as it was.")] = None,
    allow_new_space: NewSpaceOption = False,
) -> None:
    """Point an alias at a version; a running service follows by itself."""
    opened = _existing(store)
    resolved = opened.resolve(reference)
    opened.set_alias(resolved.name, alias, resolved.version, weight=weight, allow_new_space=allow_new_space)
    typer.echo(f"{resolved.name}@{alias} -> version {resolved.version}")


@models.command("promote")
def promote_model(
    name: Annotated[str, typer.Argument(help="The student.")],
    store: StoreOption = DEFAULT_STORE,
    source: Annotated[str, typer.Option("--from", help="The alias whose version goes into production.")] = "canary",
    allow_new_space: NewSpaceOption = False,
) -> None:
    """Point production at the version that another alias points at."""
    opened = _existing(store)
    version = opened.resolve(f"{name}@{source}").version
    opened.set_alias(name, DEFAULT_ALIAS, version, allow_new_space=allow_new_space)
    typer.echo(f"{name}@{DEFAULT_ALIAS} -> version {version}")


@models.command("rollback")
def roll_back_model(
    name: Annotated[str, typer.Argument(help="The student.")],
    store: StoreOption = DEFAULT_STORE,
    alias: Annotated[str, typer.Option(help="The alias to move back.")] = DEFAULT_ALIAS,
    allow_new_space: NewSpaceOption = False,
) -> None:
    """Point an alias at the version before; a second time, at the one before that."""
    version = _existing(store).roll_back(name, alias, allow_new_space=allow_new_space)
    typer.echo(f"{name}@{alias} -> version {version}")


@models.command("gc")
def collect_models(
    names: Annotated[list[str] | None, typer.Argument(help="The students; all if left out.")] = None,
    store: StoreOption = DEFAULT_STORE,
    keep: Annotated[int, typer.Option(min=1, help="How many of the newest versions stay in any case.")] = 3,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be deleted, and delete nothing.")] = False,
) -> None:
    """Delete the versions that no alias points at or would roll back to, but for the newest."""
    opened = _existing(store)
    for name in names or opened.students():
        for version in opened.collect(name, keep=keep, dry_run=dry_run):
            typer.echo(f"{name}@{version} {'would be deleted' if dry_run else 'deleted'}")


@keys.command("new")
def new_api_key(name: Annotated[str, typer.Argument(help="Whose key it is: letters, digits, . _ -")]) -> None:
    """Make a fresh random key: it is told once, here; the file of keys holds its digest (docs/keys.md)."""
    # subtle: brings the service's libraries along, which the other verbs here do not need
    from service.api.keys import new_entry

    key, entry = new_entry(name)
    typer.echo(f"key (told this once): {key}", err=True)
    typer.echo(entry)


def main() -> None:
    """The console script."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command line.

    Args:
        arguments: without the program's name.
    Returns: the exit status (0 done, 1 an SLA was missed, 2 the user can mend it, 3 a gate failed, 4 an alias stays
        where it is, 130 interrupted).
    Raises: Exception: a bug, as it is.
    """
    command = typer.main.get_command(app)
    try:
        result = command.main(args=list(arguments), prog_name=PROGRAM, standalone_mode=False)
    except (typer.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except Exception as error:
        told = _told(error)
        if told is None:
            raise
        message, status = told
        typer.echo(f"{PROGRAM}: {' '.join(message.split())}", err=True)
        return status
    return result if isinstance(result, int) else 0


def _told(error: Exception) -> tuple[str, int] | None:
    """What to say of an error and its exit status; None for a bug, which keeps its traceback."""
    if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] != "service":
        return (
            f"this verb needs the offline half ({error}): pip install 'understudy[offline]', or make install-offline",
            WRONG,
        )
    if hasattr(error, "format_message"):
        return f"{error.format_message()} (see {PROGRAM} --help)", WRONG
    if isinstance(error, StoreError | BundleError | SettingsInvalid | ServiceError) or hasattr(error, "exit_status"):
        return str(error), int(getattr(error, "exit_status", WRONG))
    return None


def _existing(root: Path) -> Store:
    if not root.is_dir():
        raise StoreError(f"{root}: no such store")
    return Store(root)


def _student_lines(store: Store, name: str) -> list[str]:
    """A line for each version, or one that says why there are none to be read."""
    try:
        versions = store.versions(name)
        lines = [f"{name}@{version}{_pointing(store, name, version)}" for version in versions]
    except StoreError as error:
        return [f"{name}  broken: {error}"]
    return [f"{line}  {_summary(store.root / name / str(v))}" for line, v in zip(lines, versions, strict=True)]


def _pointing(store: Store, name: str, version: int) -> str:
    entries = store.aliases(name).aliases
    names = sorted(
        (a for a, entry in entries.items() if entry.version == version), key=lambda a: (a != DEFAULT_ALIAS, a)
    )
    return f" [{', '.join(names)}]" if names else ""


def _summary(path: Path) -> str:
    try:
        manifest = load_manifest(path)
    except BundleError as error:
        return f"broken: {error}"
    precisions = ", ".join(f"{name} {_megabytes(manifest, name)}" for name in sorted(manifest.precisions))
    return f"{manifest.task}, {len(manifest.exits)} exits, {precisions}, made by {manifest.provenance.made_by}"


def _megabytes(manifest: Manifest, precision: str) -> str:
    graphs = set(manifest.precisions[precision].files.values())
    return f"{sum(manifest.files[file].bytes for file in graphs) / 1e6:.1f} MB"


def _manifest_lines(manifest: Manifest) -> list[str]:
    labels = ", ".join(manifest.labels[:8]) + (" ..." if len(manifest.labels) > 8 else "")
    lines = [
        f"format {manifest.format}, task {manifest.task}, at most {manifest.max_tokens} tokens, pairs {manifest.pairs}",
        *([f"{len(manifest.labels)} labels: {labels}"] if labels else []),
        *([f"space {manifest.space_id}, {manifest.embedding_dimensions} dimensions"] if manifest.space_id else []),
        *(f"exit {leave.id} after stage {leave.stage}: depth {leave.depth:.3f}" for leave in manifest.exits),
    ]
    for name in sorted(manifest.precisions):
        default = " (default)" if name == manifest.default_precision else ""
        lines.append(f"precision {name}{default}: {_megabytes(manifest, name)}")
    for certificate in manifest.certificates:
        where = f"certified on {certificate.backend}, {certificate.precision}, {certificate.confidence}"
        for point in certificate.points:
            measured = f"{point.errors} of {point.rows} rows differed, mean depth {point.mean_depth:.3f}"
            lines.append(f"{where}: risk {point.risk:g} (delta {certificate.delta:g}): {measured}")
    return lines + _origin_lines(manifest)


def _origin_lines(manifest: Manifest) -> list[str]:
    lines = []
    if manifest.quality is not None:
        quality = manifest.quality
        for precision, settings in sorted(quality.by_precision.items()):
            for setting in settings:
                point = "full depth" if setting.risk is None else f"risk {setting.risk:g}"
                metrics = ", ".join(f"{name} {value:.4f}" for name, value in sorted(setting.metrics.items()))
                lines.append(f"{quality.split} ({quality.rows} rows), {precision}, {point}: {metrics}")
    origin = manifest.provenance
    teacher = f", teacher {origin.teacher}" if origin.teacher else ""
    return [*lines, f"made by {origin.made_by}, {origin.created}{teacher}", *(f"note: {note}" for note in origin.notes)]


if __name__ == "__main__":
    main()

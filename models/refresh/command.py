"""The verb `understudy refresh RECIPE`."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from safetensors import SafetensorError

from models.errors import AliasKept, OfflineError
from models.recipe.read import read_recipe
from models.refresh.cache import StepCache, sole_user
from models.refresh.jobs import check, refresh
from models.refresh.progress import Reporter
from models.teachers.fit import KEPT_BYTES
from service.runtime.memory import keep_freed


class WorkFailed(OfflineError):
    """The runs folder or the store cannot be read or written."""


def command(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a YAML file.")],
    store: Annotated[Path, typer.Option(envvar="UNDERSTUDY_STORE", help="The store to publish into.")],
    runs: Annotated[Path, typer.Option(help="Where steps keep what they made; delete it to start over.")] = Path(
        "runs"
    ),
    overrides: Annotated[list[str] | None, typer.Option("--set", help="KEY.KEY=VALUE: override one key.")] = None,
    seeds: Annotated[int, typer.Option(min=1, max=20, help="Train this many seeds; the first is published.")] = 1,
    resume: Annotated[
        bool, typer.Option(help="Continue the step that was interrupted at its last checkpoint.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option(help="Check recipe, data and teacher, say what they hold; make nothing.")
    ] = False,
) -> None:
    """Make a student by a recipe and publish it. Finished steps are reused; what changed is redone."""
    reporter = Reporter()
    keep_freed(kept_bytes=KEPT_BYTES, one_heap=False)
    wanted = read_recipe(recipe, overrides=tuple(overrides or ()))
    try:
        with sole_user(runs):
            cache = StepCache(runs, resume=resume)
            if dry_run:
                check(wanted, cache, reporter)
                reporter.say("dry run: recipe, data and teacher are in order; nothing was made")
                return
            published = refresh(wanted, store=store, cache=cache, seeds=seeds, reporter=reporter)
    except KeyboardInterrupt:
        reporter.say("interrupted; --resume continues at the last checkpoint")
        raise
    except AliasKept:
        _tell_costs(cache, reporter)
        raise
    except (OSError, SafetensorError) as error:
        # safetensors turns a full disk into an error of its own
        where, why = getattr(error, "filename", None) or runs, getattr(error, "strerror", None) or error
        raise WorkFailed(f"{where}: {why}") from error
    _tell_costs(cache, reporter)
    verb = "published" if published.new else "already published"
    sys.stdout.write(f"{verb} {published.name}@{published.version} as {published.name}@{published.alias} in {store}\n")


def _tell_costs(cache: StepCache, reporter: Reporter) -> None:
    for receipt in cache.receipts:
        reporter.say(receipt.line())

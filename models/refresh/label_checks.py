"""The step that searches train for labels that are likely wrong: listed, and left out where the recipe says so."""

import json
from importlib import metadata
from pathlib import Path
from typing import Any

from models.data.cuts import SMALLEST_CLASS, Splits, family_of, without
from models.evaluate.baseline import INVERSE_DECAY, LEAST_TEXTS, MOST_ROUNDS, NAME, NGRAMS
from models.evaluate.label_issues import FILTER, LabelIssue, label_issues, to_drop
from models.recipe.classify import ClassifyRecipe, LabelChecks
from models.recipe.parts import files_of
from models.refresh.cache import StepCache
from models.refresh.progress import Reporter

LABEL_ISSUES_STEP = 1

LISTED = "issues.jsonl"
_JUDGED = "judged.json"


def check_labels(recipe: ClassifyRecipe, splits: Splits, cache: StepCache, reporter: Reporter) -> Splits:
    """The splits, less the rows of train whose label is likely wrong where the recipe drops them.

    The rows are listed in the step's folder, one a line: file, line, text, given and suggested label. Held-out rows are
    neither judged nor touched.
    """
    settings = recipe.data.label_issues
    if settings is None:
        return splits
    inputs = {
        "step": LABEL_ISSUES_STEP,
        "folds": settings.folds,
        "family": recipe.data.parts,
        "rows": splits.digests["train"],
        "files": [[file.file for file in files_of(recipe.data.train)], [each.sha256 for each in splits.sources]],
        "settings": [NGRAMS, LEAST_TEXTS, INVERSE_DECAY, MOST_ROUNDS, FILTER],
        "libraries": [metadata.version(library) for library in ("scikit-learn", "cleanlab")],
    }

    def make(folder: Path) -> None:
        found = label_issues(
            splits.train, splits.labels, folds=settings.folds, family=lambda row: family_of(row, recipe.data)
        )
        lines = [json.dumps(_listed(issue), ensure_ascii=False) for issue in found.issues]
        (folder / LISTED).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        judged = {"judged": found.judged, "rare": found.rare}
        (folder / _JUDGED).write_text(json.dumps(judged), encoding="utf-8")

    folder = cache.run("label-issues", inputs, make)
    found = [json.loads(line) for line in (folder / LISTED).read_text(encoding="utf-8").split("\n") if line]
    at = {(row.file, row.line): row for row in splits.train}
    rows = [at[each["file"], each["line"]] for each in found]
    dropped = to_drop(rows, splits.train, least=SMALLEST_CLASS) if settings.action == "drop" else frozenset()
    note = _note(settings, splits, issues=len(rows), dropped=len(dropped), folder=folder)
    reporter.say(f"data: {note}; listed in {folder / LISTED}")
    return without(splits, dropped, note)


def _listed(issue: LabelIssue) -> dict[str, Any]:
    """What is written of an issue; its row is found again by file and line."""
    row = issue.row
    return {
        "file": row.file,
        "line": row.line,
        "text": row.text,
        **({} if row.text_pair is None else {"text_pair": row.text_pair}),
        "label": row.label,
        "suggested": issue.suggested,
        "label_probability": round(issue.given_probability, 6),
        "suggested_probability": round(issue.suggested_probability, 6),
    }


def _note(settings: LabelChecks, splits: Splits, *, issues: int, dropped: int, folder: Path) -> str:
    """For the log and the card, without a path."""
    judged = json.loads((folder / _JUDGED).read_text(encoding="utf-8"))
    whole, rare = len(splits.train), len(judged["rare"])
    note = (
        f"{issues:,} of the {judged['judged']:,} train rows that were judged have a label that is likely wrong "
        f"(confident learning, {settings.folds} folds of {NAME}); "
    )
    note += f"{dropped:,} of the {whole:,} train rows dropped" if settings.action == "drop" else "none dropped"
    return note + (f"; {rare:,} labels with fewer than {settings.folds} distinct texts not judged" if rare else "")

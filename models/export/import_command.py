"""`understudy import`: wrap an existing model as a bundle and publish it, without training."""

import tempfile
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from models.data.read import read_rankings, read_rows
from models.export.families import ImportRefused
from models.export.import_model import CALIBRATION_ROWS, Calibration, ImportReport, import_model, spread
from models.export.sources import load_source
from service.bundle.load import file_entry
from service.bundle.manifest import NAME, DataSource
from service.runtime.encode import Text
from service.store.store import Store

POOR_COSINE = 0.98
"""Below this mean cosine (of scores: correlation) the command says that int8 should not be served unseen."""


class ImportTask(StrEnum):
    """What an imported model can be for."""

    classify = "classify"
    embed = "embed"
    rank = "rank"


def command(
    source: Annotated[
        str, typer.Argument(help="A Hugging Face or sentence-transformers directory, or `default` (all-MiniLM-L6-v2).")
    ],
    task: Annotated[ImportTask, typer.Option(help="What the model is for.")],
    name: Annotated[str, typer.Option(help="The new student's name.")],
    store: Annotated[
        Path, typer.Option("--store", envvar="UNDERSTUDY_STORE", help="The store's directory, made if missing.")
    ],
    calibration: Annotated[
        list[Path] | None,
        typer.Option(
            help="Rows to make the int8 scales from: JSONL, CSV or Parquet with `text`; for rank JSONL with `query` "
            "and `passages`. Given several times, the files share the rows evenly."
        ),
    ] = None,
    alias: Annotated[str, typer.Option(help="The alias that the new version gets.")] = "production",
    max_tokens: Annotated[int | None, typer.Option(min=3, help="A limit below the model's own.")] = None,
    pairs: Annotated[bool, typer.Option("--pairs", help="A classifier of text pairs, joined in one sequence.")] = False,
) -> None:
    """Wrap a BERT-family model as a bundle, fp32 and (with --calibration) int8, and publish it. Nothing is trained.

    Args:
        source: `default`, or a directory.
        task: classify, embed or rank. A ranker with one label scores pairs; any other model ranks by its embeddings.
        name: of the student.
        store: where to publish.
        calibration: files of rows for the static int8 scales, best like those to be served; without them the bundle
            is fp32 only.
        alias: moved to the new version.
        max_tokens: longest sequence, special tokens included.
        pairs: only for classify.
    Raises:
        ImportRefused: the model, the name or the rows cannot be used; one line says why.
    """
    if not NAME.fullmatch(name):
        raise ImportRefused(f"--name {name}: lower-case letters, digits, - and _, starting with a letter or digit")
    if pairs and task is not ImportTask.classify:
        raise ImportRefused("--pairs: only a classifier is told to read pairs")
    imported = load_source(source, task=task.value, max_tokens=max_tokens, pairs=pairs)
    rows = _calibration(calibration, task, imported.pairs) if calibration else None
    with tempfile.TemporaryDirectory(prefix="understudy-import-") as work:
        report = import_model(imported, name=name, task=task.value, work=Path(work), calibration=rows)
        store.mkdir(parents=True, exist_ok=True)
        version = Store(store).publish(report.bundle.path, name=name, alias=alias)
    for line in _lines(report, f"{name}@{version}", alias, imported.max_tokens):
        typer.echo(line)


def _calibration(paths: list[Path], task: ImportTask, pairs: bool) -> Calibration:
    chosen: list[Text] = []
    sources: list[DataSource] = []
    for path in paths:
        texts = _ranked_texts(path, pairs) if task is ImportTask.rank else _texts(path, task, pairs)
        if len(texts) < 2:
            raise ImportRefused(f"{path}: at least two rows are needed")
        taken = spread(texts, max(2, 2 * CALIBRATION_ROWS // len(paths)))
        chosen.extend(taken)
        sha256 = file_entry(path).sha256
        sources.append(DataSource(role="calibration", name=path.name, sha256=sha256, rows=len(taken)))
    return Calibration(tuple(chosen), tuple(sources))


def _texts(path: Path, task: ImportTask, pairs: bool) -> list[Text]:
    texts: list[Text] = []
    for row in read_rows(path, task=task.value, labels="optional"):
        if pairs and row.text_pair is None:
            raise ImportRefused(f"{path}: --pairs needs rows with text_pair")
        if pairs and row.text_pair is not None:
            texts.append((row.text, row.text_pair))
        else:
            texts.extend(text for text in (row.text, row.text_pair) if text is not None)
    return texts


def _ranked_texts(path: Path, pairs: bool) -> list[Text]:
    """Each query with each of its passages; or all of them by themselves, every text once."""
    rankings = read_rankings(path)
    if pairs:
        return [(row.query, passage.text) for row in rankings for passage in row.passages]
    return list(dict.fromkeys(text for row in rankings for text in (row.query, *(p.text for p in row.passages))))


def _lines(report: ImportReport, version: str, alias: str, max_tokens: int) -> list[str]:
    manifest = report.bundle.manifest
    size = sum(entry.bytes for entry in manifest.files.values())
    lines = [
        f"published {version} as {alias}: {manifest.task}, {max_tokens} tokens, "
        f"{' and '.join(manifest.precisions)}, {size:,} bytes"
    ]
    if report.fidelity is None:
        lines.append("int8 was not made: its scales are static and need rows (--calibration DATA)")
        return lines
    lines.append(report.fidelity.line())
    if report.fidelity.likeness < POOR_COSINE:
        lines.append(f"that is below {POOR_COSINE}: compare int8 with fp32 on your task before serving it")
    return lines

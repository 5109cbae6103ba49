"""The in-process ceiling of a student on one core: what a server can at best come near to.

`python -m models.evaluate.ceiling STUDENT DATA` loads the student on the core it was pinned to, says so in a line of
JSON, and then, for every line of standard input that holds a number of seconds, runs that long over the rows and writes
another line: texts and seconds. Batches are perfect (rows sorted by length, of the fastest size), tokenizing included.
"""

import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

from models.data.read import read_rows
from models.data.rows import text_of
from models.errors import DataInvalid
from models.evaluate.opening import one_line_errors, open_bundle
from service.runtime.encode import Text, pad
from service.runtime.heads import ExitPolicy, ExitSetting
from service.runtime.memory import keep_freed
from service.runtime.student import Student, batches_by_length

BATCH_SIZES = (8, 16, 32, 64)


class Ceiling:
    """A student that runs perfect batches of texts, tokenizing included."""

    def __init__(self, student: Student, texts: Sequence[Text], *, policy: ExitPolicy, batch_items: int) -> None:
        """Cut the texts into batches.

        Args:
            student: loaded with one thread.
            texts: at least one.
            policy: when items leave.
            batch_items: the most items in a batch.
        """
        places = batches_by_length(student.encoder.encode(texts), batch_items)
        self._student = student
        self._policy = policy
        self._batches = [[texts[i] for i in batch] for batch in places]
        self._endless: Iterator[list[Text]] = itertools.cycle(self._batches)

    def run(self, seconds: float, *, clock: Callable[[], float] = time.perf_counter) -> tuple[int, float]:
        """Go round the batches for about so long, at least one batch. Returns: texts, and seconds taken."""
        texts, begin = 0, clock()
        while True:
            batch = next(self._endless)
            self._answer(batch)
            texts += len(batch)
            if (taken := clock() - begin) >= seconds:
                return texts, taken

    def _answer(self, batch: Sequence[Text]) -> None:
        student = self._student
        encoded = student.encoder.encode(batch)
        if student.apart is None:
            student.run_padded(pad(encoded, pad_id=student.pad_id), self._policy)
        else:
            student.run(encoded, self._policy)


def fastest(student: Student, texts: Sequence[Text], policy: ExitPolicy, *, seconds: float) -> tuple[Ceiling, int]:
    """The ceiling with the best of `BATCH_SIZES`, and that size; each is tried for so many seconds, once warm."""
    tried = []
    for size in BATCH_SIZES:
        ceiling = Ceiling(student, texts, policy=policy, batch_items=size)
        ceiling.run(seconds / 4)
        done, taken = ceiling.run(seconds)
        tried.append((done / taken, size, ceiling))
    _, size, best = max(tried, key=lambda one: one[0])
    return best, size


def exit_setting(words: str) -> ExitSetting:
    """`default`, `never`, or a risk. Raises: DataInvalid.

    >>> exit_setting("0.01")
    0.01
    """
    if words in ("default", "never"):
        return "default" if words == "default" else "never"
    try:
        return float(words)
    except ValueError:
        raise DataInvalid(f"--exit {words}: must be default, never or a risk") from None


def command(
    student: Annotated[str, typer.Argument(help="NAME, NAME@VERSION, NAME@ALIAS, or a bundle's folder.")],
    data: Annotated[Path, typer.Argument(help="Rows: JSONL, CSV or Parquet.")],
    store: Annotated[Path, typer.Option(envvar="UNDERSTUDY_STORE")] = Path("models/store"),
    exits: Annotated[str, typer.Option("--exit", help="default, never or a risk.")] = "default",
    precision: Annotated[str | None, typer.Option(help="Default: the student's.")] = None,
    backend: Annotated[str, typer.Option(help="What runs the graphs.")] = "onnxruntime",
    try_s: Annotated[float, typer.Option(help="Seconds for which each batch size is tried.")] = 1.0,
) -> None:
    """Run perfect batches in this process, for as many seconds as each line of standard input says."""
    with one_line_errors():
        keep_freed()
        texts = [text_of(row) for row in read_rows(data, task="classify", labels="optional")]
        loaded = Student(open_bundle(student, store=store), backend=backend, precision=precision)
        ceiling, size = fastest(loaded, texts, loaded.policy(exit_setting(exits)), seconds=try_s)
        _say({"ready": loaded.backend, "precision": loaded.precision, "batch_items": size})
        for line in sys.stdin:
            done, taken = ceiling.run(float(line))
            _say({"texts": done, "seconds": taken})


def _say(value: object) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    typer.run(command)

"""What a person sees while a refresh works: a bar on a terminal, plain lines in a log."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from tqdm import tqdm

_LINE_EVERY_S = 15.0


class Reporter:
    """Writes to `stream` (standard error): headlines, and the progress of one step at a time."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._terminal = self._stream.isatty()

    def say(self, line: str) -> None:
        """One line that stays."""
        self._stream.write(f"{line}\n")
        self._stream.flush()

    @contextmanager
    def step(self, name: str) -> Iterator[Callable[[int, int, str], None]]:
        """A callback (done, total, note) for the length of one step."""
        if self._terminal:
            with tqdm(desc=name, file=self._stream, leave=False) as bar:
                yield lambda done, total, note: _move(bar, done, total, note)
        else:
            yield _lines(name, self.say)


def _move(bar: "tqdm[None]", done: int, total: int, note: str) -> None:
    bar.total = total
    bar.n = done
    bar.set_postfix_str(note)


def _lines(name: str, say: Callable[[str], None]) -> Callable[[int, int, str], None]:
    last = time.monotonic()

    def tell(done: int, total: int, note: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _LINE_EVERY_S or done == total or "accuracy" in note:
            last = now
            say(f"  {name}: {done:,} of {total:,}{f', {note}' if note else ''}")

    return tell

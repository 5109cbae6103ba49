"""Steps cached by the digest of their inputs, so that an interrupted or edited run redoes only what changed.

A step's folder is `RUNS/<step>/<digest>/`. It holds the step's files and, written last, `done.json`: a folder
without it is unfinished, and is either continued (`resume`: the step finds its own checkpoints there) or emptied.
"""

import fcntl
import json
import os
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from models.errors import OfflineError
from models.recipe.parts import digest_of


class RunsBusy(OfflineError):
    """Another refresh is working in the same runs folder."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a finished step cost. `peak_bytes` is the process's high-water mark when the step ended."""

    step: str
    digest: str
    cached: bool
    wall_s: float
    cpu_s: float
    peak_bytes: int

    def line(self) -> str:
        """The receipt in one line for people; of a cached step, what it cost when it was made."""
        made = f"{self.wall_s:.0f} s, {self.cpu_s:.0f} CPU-s, peak {self.peak_bytes >> 20:,} MiB"
        return f"{self.step}: {made}{' (cached)' if self.cached else ''}"


class StepCache:
    """Runs steps at most once for each digest of their inputs.

    Args:
        root: the runs folder; made if missing.
        resume: continue the unfinished folder of a step instead of emptying it.
    """

    def __init__(self, root: Path, *, resume: bool = False) -> None:
        self.root = root
        self.resume = resume
        self.receipts: list[Receipt] = []
        root.mkdir(parents=True, exist_ok=True)

    def run(self, step: str, inputs: Any, make: Callable[[Path], None]) -> Path:
        """The folder of `step` for these `inputs`, made by `make(folder)` if it is not finished yet.

        Args:
            step: the step's name.
            inputs: JSON-able; everything the step's result depends on, its own version included.
            make: writes the step's files into the folder it is given.
        """
        digest = digest_of(inputs)
        folder = self.root / step / digest[:16]
        done = folder / "done.json"
        if done.is_file():
            receipt = Receipt(**{**json.loads(done.read_text()), "cached": True})
        else:
            if not self.resume:
                shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True, exist_ok=True)
            receipt = _measured(step, digest, lambda: make(folder))
            _write_whole(done, json.dumps(asdict(receipt), indent=1))
        self.receipts.append(receipt)
        return folder


def _measured(step: str, digest: str, work: Callable[[], None]) -> Receipt:
    wall, cpu = time.monotonic(), time.process_time()
    work()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Receipt(step, digest, False, time.monotonic() - wall, time.process_time() - cpu, peak)


def _write_whole(path: Path, text: str) -> None:
    """Write so that a reader sees all of it or nothing, also after a crash."""
    aside = path.with_suffix(".partial")
    with aside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


@contextmanager
def sole_user(root: Path) -> Iterator[None]:
    """Hold the runs folder for this process. Raises: RunsBusy: another process holds it."""
    root.mkdir(parents=True, exist_ok=True)
    with (root / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RunsBusy(f"{root}: another refresh is working here; give this one its own --runs folder") from error
        yield

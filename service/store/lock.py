"""One writer of a student at a time, over all processes."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Hold an exclusive lock on a directory, waiting for it; yields whether this call made the directory."""
    made, opened = False, None
    while opened is None:
        made = _made(folder) or made
        opened = _lock(folder)
    try:
        yield made
    finally:
        os.close(opened)


def _made(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        return False
    return True


def _lock(folder: Path) -> int | None:
    """The locked descriptor of a directory; None where it went away before the lock was ours."""
    try:
        opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(opened, fcntl.LOCK_EX)
        # subtle: who held the lock before may have taken an empty directory away while we waited
        if os.path.samestat(os.fstat(opened), folder.stat()):
            return opened
    except FileNotFoundError:
        pass
    except BaseException:
        os.close(opened)
        raise
    os.close(opened)
    return None

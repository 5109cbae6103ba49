"""The steps of publishing that touch the disk, each durable when it returns."""

import os
import shutil
from pathlib import Path


class Disk:
    """Durable file operations. The store is given one, so that a test can make any step fail.

    Every method raises OSError as the operating system gives it.
    """

    def make_directory(self, path: Path) -> None:
        """Make one directory, whose parent exists."""
        path.mkdir()

    def copy(self, source: Path, target: Path) -> None:
        """Copy a file's bytes to a new file and flush them to the device."""
        with source.open("rb") as reading, target.open("xb") as writing:
            shutil.copyfileobj(reading, writing, 2**20)
            writing.flush()
            os.fsync(writing.fileno())

    def write(self, target: Path, raw: bytes) -> None:
        """Write a new file and flush it to the device."""
        with target.open("xb") as writing:
            writing.write(raw)
            writing.flush()
            os.fsync(writing.fileno())

    def sync_directory(self, path: Path) -> None:
        """Flush a directory's entries to the device."""
        opened = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)

    def rename(self, source: Path, target: Path) -> None:
        """Move atomically within a file system; a file replaces a file, a directory only an empty one."""
        source.rename(target)

"""What the loaded students take of this process's memory, and a limit for all of them together."""

import ctypes
import os
import sys
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar

from service.errors import MemoryFull

T = TypeVar("T")
STATM: Final = Path("/proc/self/statm")
KEPT_BYTES: Final = 128 << 20
# a larger tensor is mapped and unmapped on its own
MAPPED_BYTES: Final = 32 << 20
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8


def resident_bytes(statm: Path = STATM) -> int:
    """Bytes of this process that are in memory now; 0 where the system does not say."""
    try:
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def trim() -> None:
    """Give what the C library has freed back to the system, where it can."""
    # subtle: without it a student that is unloaded leaves most of its memory with the process, in holes
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


def keep_freed(*, kept_bytes: int = KEPT_BYTES, one_heap: bool = True) -> bool:
    """Let the C library keep what this process frees, up to `kept_bytes`, instead of giving it back at once.

    Every run of a graph allocates and frees its tensors; pages that went back to the system come again one fault at a
    time. Measured on a virtual machine, 3x384 student, mixed lengths: a tenth to a fifth more texts a second.

    Args:
        kept_bytes: at most 2 GiB less one.
        one_heap: whether all threads share one heap: each keeping its own took a third more memory in a server under
            the same load. In training, whose threads allocate together, sharing one doubles the time.
    Returns: whether the C library took it; others than glibc do as they do.
    """
    if sys.platform != "linux":
        return False
    try:
        adjust = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    wanted = {_M_MMAP_THRESHOLD: MAPPED_BYTES, _M_TRIM_THRESHOLD: kept_bytes}
    if one_heap:
        wanted[_M_ARENA_MAX] = 1
    taken = [bool(adjust(what, value)) for what, value in wanted.items()]
    return all(taken)


class Ledger:
    """Who holds how much, from loading until the last request that uses it is over.

    Owner: the loading thread; an object may end, and be struck off, in any thread.
    """

    def __init__(self, *, limit_bytes: int | None, resident: Callable[[], int] = resident_bytes) -> None:
        """Nobody holds anything yet.

        Args:
            limit_bytes: what all may hold together; None: as much as they want.
            resident: tells the bytes in memory.
        """
        self.limit_bytes = limit_bytes
        self._resident = resident
        self._held: dict[int, int] = {}
        self._ended = False

    def __repr__(self) -> str:
        return f"Ledger(held={self.held_bytes} bytes by {len(self._held)}, limit={self.limit_bytes})"

    @property
    def held_bytes(self) -> int:
        """Bytes held by all that live."""
        return sum(tuple(self._held.values()))

    def load(self, make: Callable[[], T], *, name: str, least_bytes: int) -> tuple[T, int]:
        """Make something, and write down the memory it took.

        Args:
            make: loads it.
            name: names it in errors.
            least_bytes: what it takes at the least; it counts as that even where less was seen to be taken.
        Returns: the object, and the bytes it holds until it ends.
        Raises:
            MemoryFull: all together would hold more than the limit; the object, if made, is gone again.
        """
        self._check(name, least_bytes)
        trim()
        before = self._resident()
        made = make()
        trim()
        took = max(least_bytes, self._resident() - before)
        self._check(name, took)
        self._held[id(made)] = took
        weakref.finalize(made, self._strike, id(made))
        return made, took

    def tidy(self) -> None:
        """After something ended, give its memory back to the system."""
        if self._ended:
            self._ended = False
            trim()

    def _check(self, name: str, more_bytes: int) -> None:
        held = self.held_bytes
        if self.limit_bytes is not None and held + more_bytes > self.limit_bytes:
            raise MemoryFull(
                f"{name} takes {_mb(more_bytes)} MB, and {_mb(held)} of {_mb(self.limit_bytes)} MB are taken "
                "(memory_limit_mb)"
            )

    def _strike(self, key: int) -> None:
        self._held.pop(key, None)
        self._ended = True


def _mb(size_bytes: int) -> int:
    return -(-size_bytes // (1 << 20))

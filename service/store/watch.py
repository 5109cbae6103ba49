"""Waking when a store changes: a version published, an alias moved."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

from watchfiles import Change, awatch

from service.store.aliases import ALIASES
from service.store.store import VERSION

_QUIET_MS = 50


def changes(root: Path, stop: asyncio.Event) -> AsyncIterator[None]:
    """Yield each time students, versions or aliases under `root` have changed; several changes at once yield once.

    What changed is not told: the reader looks at the store again. Publishing in progress does not yield.

    Args:
        root: an existing directory.
        stop: ends the iteration when set.
    Raises: FileNotFoundError: there is no such directory.
    """
    # subtle: not a coroutine itself, since resolving blocks
    return _changes(root.resolve(), stop)


async def _changes(root: Path, stop: asyncio.Event) -> AsyncIterator[None]:
    def matters(_: Change, path: str) -> bool:
        return is_visible(Path(path), root)

    async for _ in awatch(root, watch_filter=matters, stop_event=stop, step=_QUIET_MS):
        yield


def is_visible(path: Path, root: Path) -> bool:
    """Whether a change of this path can change what the store holds: a student, a version or an alias file.

    >>> paths = ("/s/a", "/s/a/3", "/s/a/aliases.json", "/s/a/.staging-0", "/s/a/3/x")
    >>> [is_visible(Path(path), Path("/s")) for path in paths]
    [True, True, True, False, False]
    """
    if not path.is_relative_to(root):
        return False
    parts = path.relative_to(root).parts
    if len(parts) == 1:
        return not parts[0].startswith(".")
    return len(parts) == 2 and (parts[1] == ALIASES or VERSION.fullmatch(parts[1]) is not None)

"""Watching a store: published versions and moved aliases wake the reader, publishing in progress does not."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from service.store.store import Store
from service.store.watch import changes, is_visible

BuildBundle = Callable[..., Path]
PATIENCE_S = 30.0


async def wake(stream: AsyncIterator[None], act: Callable[[], object]) -> None:
    """Wait for the next change while `act` is done again and again, since a watch takes a moment to start."""
    woken = asyncio.ensure_future(anext(stream))
    async with asyncio.timeout(PATIENCE_S):
        while not woken.done():
            await asyncio.to_thread(act)
            await asyncio.wait([woken], timeout=0.5)
    woken.result()


async def test_a_moved_alias_and_a_published_version_wake_the_reader(
    store_dir: Path, tmp_path: Path, build_bundle: BuildBundle
) -> None:
    store, stop = Store(store_dir), asyncio.Event()
    staged = build_bundle(tmp_path / "staged")
    stream = aiter(changes(store_dir, stop))
    await wake(stream, lambda: store.set_alias("toy", "canary", 1))
    await wake(stream, lambda: store.publish(staged, name="toy", alias=None))
    stop.set()
    async with asyncio.timeout(PATIENCE_S):
        rest = [None async for _ in stream]
    assert len(rest) <= 1


async def test_stops_when_told(store_dir: Path) -> None:
    stop = asyncio.Event()
    stop.set()
    async with asyncio.timeout(PATIENCE_S):
        assert [None async for _ in changes(store_dir, stop)] == []


async def test_no_such_store(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await anext(aiter(changes(tmp_path / "nowhere", asyncio.Event())))


@pytest.mark.parametrize(
    ("path", "visible"),
    [
        ("/s/toy", True),
        ("/s/toy/3", True),
        ("/s/toy/aliases.json", True),
        ("/s", False),
        ("/other/toy/3", False),
        ("/s/.git", False),
        ("/s/toy/.staging-0a1b", False),
        ("/s/toy/.staging-0a1b/manifest.json", False),
        ("/s/toy/3/manifest.json", False),
        ("/s/toy/03", False),
        ("/s/toy/notes.txt", False),
    ],
)
def test_only_what_a_reader_can_see_matters(path: str, visible: bool) -> None:
    assert is_visible(Path(path), Path("/s")) is visible

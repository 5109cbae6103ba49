"""Publishing: a whole new version or the store as it was, whatever fails, whoever else publishes, whenever killed."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from service.bundle.load import load_bundle
from service.errors import AliasInvalid, DigestMismatch, ManifestInvalid, PublishFailed, SpaceMismatch
from service.store.aliases import AliasEntry
from service.store.disk import Disk
from service.store.store import Store

BuildBundle = Callable[..., Path]


class CountingDisk(Disk):
    """A disk that calls `before(step)` ahead of its step number `step`, 0, 1, 2 ... Owner: one test."""

    def __init__(self, before: Callable[[int], None]) -> None:
        self.steps = 0
        self._before = before

    def _step(self) -> None:
        self.steps += 1
        self._before(self.steps - 1)

    def make_directory(self, path: Path) -> None:
        self._step()
        super().make_directory(path)

    def copy(self, source: Path, target: Path) -> None:
        self._step()
        super().copy(source, target)

    def write(self, target: Path, raw: bytes) -> None:
        self._step()
        super().write(target, raw)

    def sync_directory(self, path: Path) -> None:
        self._step()
        super().sync_directory(path)

    def rename(self, source: Path, target: Path) -> None:
        self._step()
        super().rename(source, target)


def contents(root: Path) -> dict[str, bytes | None]:
    """Every path below `root` with its bytes, None for a directory."""
    return {
        str(path.relative_to(root)): path.read_bytes() if path.is_file() else None for path in sorted(root.rglob("*"))
    }


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def staged(tmp_path: Path, build_bundle: BuildBundle) -> Path:
    return build_bundle(
        tmp_path / "staged", seed=2, extra_files={"card.md": b"# toy\n", "card/plots/a.png": b"\x89PNG"}
    )


def number_of_steps(staged: Path, root: Path) -> int:
    disk = CountingDisk(lambda step: None)
    Store(root, disk=disk).publish(staged, name="toy", alias="production")
    return disk.steps


def test_publishes_the_first_version_of_a_student(tmp_path: Path, staged: Path) -> None:
    store = Store(tmp_path / "new" / "store")
    assert store.publish(staged, name="toy", alias="canary") == 1
    assert store.versions("toy") == [1]
    assert store.aliases("toy").aliases == {"canary": AliasEntry(version=1)}
    assert contents(store.root / "toy" / "1") == contents(staged)
    assert names(store.root / "toy") == ["1", "aliases.json"]


def test_publishes_the_next_version_and_moves_only_its_alias(store_dir: Path, staged: Path) -> None:
    store = Store(store_dir)
    store.set_alias("toy", "canary", 1, weight=0.05)
    assert store.publish(staged, name="toy", alias="canary") == 2
    assert store.resolve("toy").version == 1
    assert store.aliases("toy").aliases["canary"] == AliasEntry(version=2, weight=0.05, previous=(1,))


def test_publishes_without_an_alias(store_dir: Path, staged: Path) -> None:
    before = (store_dir / "toy" / "aliases.json").read_bytes()
    assert Store(store_dir).publish(staged, name="toy", alias=None) == 2
    assert (store_dir / "toy" / "aliases.json").read_bytes() == before


def test_copies_only_what_the_manifest_lists(store_dir: Path, staged: Path) -> None:
    (staged / "secret.txt").write_text("not listed")
    Store(store_dir).publish(staged, name="toy", alias=None)
    assert not (store_dir / "toy" / "2" / "secret.txt").exists()
    assert (store_dir / "toy" / "2" / "card" / "plots" / "a.png").is_file()


def test_a_published_version_can_be_read_by_others(store_dir: Path, staged: Path) -> None:
    Store(store_dir).publish(staged, name="toy", alias=None)
    umask = os.umask(0)
    os.umask(umask)
    assert (store_dir / "toy" / "2").stat().st_mode & 0o777 == 0o777 & ~umask
    assert (store_dir / "toy" / "2" / "manifest.json").stat().st_mode & 0o777 == 0o666 & ~umask


def test_a_number_is_not_used_twice(store_dir: Path, staged: Path) -> None:
    store = Store(store_dir)
    (store_dir / "toy" / "4").mkdir()
    assert store.publish(staged, name="toy", alias="production") == 5
    (store_dir / "toy" / "5").rename(store_dir / "gone")
    assert store.publish(staged, name="toy", alias=None) == 6


def test_refuses_a_broken_bundle(store_dir: Path, staged: Path) -> None:
    (staged / "tokenizer.json").write_bytes(b"x" * (staged / "tokenizer.json").stat().st_size)
    before = contents(store_dir)
    with pytest.raises(DigestMismatch):
        Store(store_dir).publish(staged, name="toy", alias="production")
    assert contents(store_dir) == before


def test_refuses_another_name_an_alias_that_is_a_number_and_another_space(
    store_dir: Path, staged: Path, tmp_path: Path, build_bundle: BuildBundle
) -> None:
    store, before = Store(store_dir), contents(store_dir)
    with pytest.raises(ManifestInvalid, match="/name"):
        store.publish(staged, name="other", alias=None)
    with pytest.raises(AliasInvalid):
        store.publish(staged, name="toy", alias="7")
    moved = build_bundle(tmp_path / "moved", task="embed", space_id="toy-space-2")
    with pytest.raises(SpaceMismatch):
        store.publish(moved, name="toy-embed", alias="production")
    assert contents(store_dir) == before
    assert store.publish(moved, name="toy-embed", alias="production", allow_new_space=True) == 2


def test_refuses_when_the_alias_file_is_broken(store_dir: Path, staged: Path) -> None:
    (store_dir / "toy" / "aliases.json").write_text("{")
    before = contents(store_dir)
    with pytest.raises(AliasInvalid):
        Store(store_dir).publish(staged, name="toy", alias="production")
    assert contents(store_dir) == before


def test_removes_what_killed_publishers_left(store_dir: Path, staged: Path) -> None:
    (store_dir / "toy" / ".staging-dead" / "stages").mkdir(parents=True)
    (store_dir / "toy" / ".staging-dead" / "stages" / "00.onnx").write_bytes(b"half")
    (store_dir / "toy" / ".staging-dead.json").write_text("{")
    (store_dir / "toy" / ".staging-link").symlink_to(store_dir / "toy" / "1")
    assert Store(store_dir).publish(staged, name="toy", alias=None) == 2
    assert names(store_dir / "toy") == ["1", "2", "aliases.json"]
    assert load_bundle(store_dir / "toy" / "1")


def test_a_disk_that_is_full_at_any_step_leaves_the_store_as_it_was(
    store_dir: Path, staged: Path, tmp_path: Path
) -> None:
    steps = number_of_steps(staged, tmp_path / "elsewhere")
    before = contents(store_dir)
    for failing in range(steps - 1):  # the last step flushes an alias that is already seen

        def refuse(step: int, failing: int = failing) -> None:
            if step == failing:
                raise OSError(errno.ENOSPC, "No space left on device")

        with pytest.raises(PublishFailed, match=r"^toy: nothing was published: No space left on device"):
            Store(store_dir, disk=CountingDisk(refuse)).publish(staged, name="toy", alias="production")
        assert contents(store_dir) == before, f"step {failing} of {steps}"


def test_a_failed_first_publish_leaves_no_student(tmp_path: Path, staged: Path) -> None:
    def refuse(step: int) -> None:
        if step == 3:
            raise OSError(errno.ENOSPC, "No space left on device")

    store = Store(tmp_path / "store", disk=CountingDisk(refuse))
    with pytest.raises(PublishFailed):
        store.publish(staged, name="toy", alias="production")
    assert contents(store.root) == {}


def test_a_staged_file_that_changes_while_it_is_copied_is_not_published(store_dir: Path, staged: Path) -> None:
    def spoil(step: int) -> None:
        if step == 1:
            (staged / "golden.json").write_bytes(b"x" * (staged / "golden.json").stat().st_size)

    before = contents(store_dir)
    with pytest.raises(DigestMismatch):
        Store(store_dir, disk=CountingDisk(spoil)).publish(staged, name="toy", alias="production")
    assert contents(store_dir) == before


def test_an_interrupt_leaves_the_store_as_it_was(store_dir: Path, staged: Path) -> None:
    def interrupt(step: int) -> None:
        if step == 4:
            raise KeyboardInterrupt

    before = contents(store_dir)
    with pytest.raises(KeyboardInterrupt):
        Store(store_dir, disk=CountingDisk(interrupt)).publish(staged, name="toy", alias="production")
    assert contents(store_dir) == before


def test_a_number_taken_by_someone_without_the_lock_is_passed_over(store_dir: Path, staged: Path) -> None:
    class Raced(Disk):
        def rename(self, source: Path, target: Path) -> None:
            if target.name == "2":
                target.mkdir()
                (target / "manifest.json").write_text("{}")
            super().rename(source, target)

    store = Store(store_dir, disk=Raced())
    assert store.publish(staged, name="toy", alias="production") == 3
    assert store.resolve("toy").version == 3
    assert names(store_dir / "toy") == ["1", "2", "3", "aliases.json"]


def test_concurrent_publishers_all_succeed(tmp_path: Path, staged: Path) -> None:
    def publish(alias: str) -> int:
        return Store(tmp_path / "store").publish(staged, name="toy", alias=alias)

    aliases = [f"alias-{i}" for i in range(8)]
    with ThreadPoolExecutor(len(aliases)) as pool:
        numbers = list(pool.map(publish, aliases))
    store = Store(tmp_path / "store")
    assert sorted(numbers) == store.versions("toy") == list(range(1, 9))
    pointed = {alias: entry.version for alias, entry in store.aliases("toy").aliases.items()}
    assert pointed == dict(zip(aliases, numbers, strict=True))
    assert all(store.open("toy", version) for version in numbers)


def in_another_process(body: str, *arguments: Path | int) -> subprocess.CompletedProcess[str]:
    """Run a script that has `Store`, `Disk`, `store_dir` and `staged`."""
    script = "import os, resource, signal, sys\nfrom pathlib import Path\n"
    script += "from service.store.disk import Disk\nfrom service.store.store import Store\n"
    script += "store_dir, staged = Path(sys.argv[1]), Path(sys.argv[2])\n" + textwrap.dedent(body)
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_a_disk_that_really_refuses_leaves_the_store_as_it_was(store_dir: Path, staged: Path) -> None:
    before = contents(store_dir)
    limit = (staged / "stages" / "00.fp32.onnx").stat().st_size // 2
    ended = in_another_process(
        """
        from service.errors import PublishFailed
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), int(sys.argv[3])))
        try:
            Store(store_dir).publish(staged, name="toy", alias="production")
        except PublishFailed as error:
            sys.exit(str(error))
        """,
        store_dir,
        staged,
        limit,
    )
    assert ended.returncode == 1
    assert "toy: nothing was published: File too large" in ended.stderr
    assert contents(store_dir) == before


KILLED = """
        class Killed(Disk):
            step = -1
            def _count(self):
                Killed.step += 1
                if Killed.step == int(sys.argv[3]):
                    os.kill(os.getpid(), signal.SIGKILL)
        def counted(method):
            def call(self, *arguments):
                self._count()
                return method(self, *arguments)
            return call
        for name in ("make_directory", "copy", "write", "sync_directory", "rename"):
            setattr(Killed, name, counted(getattr(Disk, name)))
        Store(store_dir, disk=Killed()).publish(staged, name="toy", alias="production")
"""


def test_killed_at_any_step_readers_see_whole_versions_and_the_next_publish_cleans_up(
    tmp_path: Path, store_dir: Path, staged: Path
) -> None:
    steps = number_of_steps(staged, tmp_path / "elsewhere")
    # a spread of steps and all of the last ones, where the renames are
    chosen = sorted({0, 1, steps // 2, *range(steps - 7, steps)})
    store = Store(store_dir)
    for step in chosen:
        expected = len(store.versions("toy"))
        ended = in_another_process(KILLED, store_dir, staged, step)
        assert ended.returncode == -signal.SIGKILL, ended.stderr
        versions = store.versions("toy")
        assert len(versions) in (expected, expected + 1)
        assert all(store.open("toy", version) for version in versions)
        assert store.resolve("toy").version in versions
        assert store.students() == ["toy", "toy-embed"]
    assert store.publish(staged, name="toy", alias="production") == max(versions) + 1
    assert not [name for name in names(store_dir / "toy") if name.startswith(".")]


def test_publishers_that_fail_do_not_take_the_directory_from_those_that_wait(tmp_path: Path, staged: Path) -> None:
    def refuse(step: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def publish(fails: bool) -> int | None:
        disk = CountingDisk(refuse) if fails else Disk()
        try:
            return Store(tmp_path / "store", disk=disk).publish(staged, name="toy", alias=None)
        except PublishFailed:
            return None

    with ThreadPoolExecutor(8) as pool:
        numbers = list(pool.map(publish, [True, True, True, True, True, True, False, True, False, True]))
    assert sorted(number for number in numbers if number is not None) == [1, 2]
    assert names(tmp_path / "store" / "toy") == ["1", "2"]


def test_a_waiting_publisher_remakes_a_directory_that_went_away(tmp_path: Path, staged: Path) -> None:
    folder = tmp_path / "store" / "toy"
    folder.mkdir(parents=True)
    held = os.open(folder, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    with ThreadPoolExecutor(1) as pool:
        publishing = pool.submit(Store(tmp_path / "store").publish, staged, name="toy", alias=None)
        # whether the publisher waits already or comes later, it must end in a directory that is there
        folder.rmdir()
        os.close(held)
        assert publishing.result(timeout=60) == 1
    assert names(folder) == ["1"]

"""What is held is counted from loading until the last user is gone, and the limit holds."""

import gc
import os
import platform
import subprocess
import sys

import pytest

from service.errors import MemoryFull
from service.runtime.memory import Ledger, keep_freed, resident_bytes, trim

MB = 1 << 20


class Thing:
    """Something that takes memory."""


class Machine:
    """A process whose memory the test sets."""

    def __init__(self) -> None:
        self.resident = 100 * MB

    def load(self, megabytes: int):
        def make() -> Thing:
            self.resident += megabytes * MB
            return Thing()

        return make


@pytest.fixture
def machine() -> Machine:
    return Machine()


def ledger(machine: Machine, limit_mb: int | None = None) -> Ledger:
    limit = None if limit_mb is None else limit_mb * MB
    return Ledger(limit_bytes=limit, resident=lambda: machine.resident)


def test_what_loading_took_is_held(machine):
    held = ledger(machine)
    first, took = held.load(machine.load(5), name="first", least_bytes=2 * MB)
    assert (took, held.held_bytes) == (5 * MB, 5 * MB)
    assert isinstance(first, Thing)


def test_it_is_never_less_than_the_graphs(machine):
    held = ledger(machine)
    first, took = held.load(machine.load(0), name="first", least_bytes=2 * MB)
    assert (took, held.held_bytes) == (2 * MB, 2 * MB)
    assert first is not None


def test_what_ends_is_struck_off_and_what_lives_is_not(machine):
    held = ledger(machine, 20)
    first, _ = held.load(machine.load(8), name="first", least_bytes=1)
    second, _ = held.load(machine.load(7), name="second", least_bytes=1)
    user = first
    del first
    gc.collect()
    assert held.held_bytes == 15 * MB
    del user
    gc.collect()
    assert held.held_bytes == 7 * MB
    held.tidy()
    held.tidy()
    assert second is not None


class TestLimit:
    def test_what_cannot_fit_is_not_even_loaded(self, machine):
        held = ledger(machine, 10)
        with pytest.raises(MemoryFull, match=r"third takes 11 MB, and 0 of 10 MB are taken \(memory_limit_mb\)"):
            held.load(lambda: pytest.fail("loaded"), name="third", least_bytes=11 * MB)

    def test_what_turns_out_too_big_is_let_go(self, machine):
        held = ledger(machine, 10)
        first, _ = held.load(machine.load(6), name="first", least_bytes=1)
        with pytest.raises(MemoryFull, match="second takes 5 MB, and 6 of 10 MB are taken"):
            held.load(machine.load(5), name="second", least_bytes=1)
        assert held.held_bytes == 6 * MB
        assert first is not None

    def test_room_that_is_freed_can_be_taken(self, machine):
        held = ledger(machine, 10)
        first, _ = held.load(machine.load(6), name="first", least_bytes=1)
        del first
        gc.collect()
        second, _ = held.load(machine.load(9), name="second", least_bytes=1)
        assert held.held_bytes == 9 * MB
        assert second is not None

    def test_a_load_that_fails_holds_nothing(self, machine):
        held = ledger(machine, 10)
        with pytest.raises(ZeroDivisionError):
            held.load(lambda: 1 // 0, name="broken", least_bytes=1)
        assert repr(held) == f"Ledger(held=0 bytes by 0, limit={10 * MB})"


def test_this_process_takes_some_memory():
    assert resident_bytes() > MB or not os.path.exists("/proc/self/statm")  # noqa: PTH110
    trim()


@pytest.mark.parametrize("text", [None, "", "12", "a b c"])
def test_a_system_that_does_not_say(tmp_path, text):
    if text is not None:
        (tmp_path / "statm").write_text(text)
    assert resident_bytes(tmp_path / "statm") == 0


@pytest.mark.skipif(sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="the knobs are glibc's")
@pytest.mark.parametrize("how", ["", "kept_bytes=(1 << 31) - 1, one_heap=False"])
def test_freed_memory_is_kept_where_the_c_library_can(how: str):
    done = subprocess.run(
        [sys.executable, "-c", f"from service.runtime.memory import keep_freed; print(keep_freed({how}))"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "True\n"


def test_another_system_is_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep_freed()

"""Short texts on the loop, long ones in threads, a portion at a time, within a bound."""

import asyncio
import threading
from collections.abc import Sequence

import pytest

from service.api.tokenizing import PORTION_CHARACTERS, SHORT_CHARACTERS, Tokenizing, are_short, portions
from service.errors import Overloaded
from service.runtime.encode import Text


@pytest.mark.parametrize(
    ("texts", "short"),
    [
        (["x" * SHORT_CHARACTERS], True),
        (["x" * SHORT_CHARACTERS + "x"], False),
        (["x" * (SHORT_CHARACTERS // 2)] * 2, True),
        (["x" * (SHORT_CHARACTERS // 2)] * 3, False),
        ([("x" * (SHORT_CHARACTERS // 2), "y" * (SHORT_CHARACTERS // 2))], True),
        ([("x" * SHORT_CHARACTERS, "y")], False),
        ([""] * SHORT_CHARACTERS, True),
        ([""] * (SHORT_CHARACTERS + 1), False),
    ],
)
def test_what_is_short(texts: list[Text], short: bool) -> None:
    assert are_short(texts) is short


def test_portions_hold_everything_once() -> None:
    texts: list[Text] = ["x" * (i * 1000 % 70_000) for i in range(200)] + [("a", "b")]
    cut = list(portions(texts))
    assert [text for portion in cut for text in portion] == texts
    assert all(len(portion) == 1 or sum(map(len, portion)) <= PORTION_CHARACTERS for portion in cut[:-1])


@pytest.fixture
async def tokenizing() -> Tokenizing:
    return Tokenizing(threads=1, max_items=4)


async def test_in_a_thread_a_portion_at_a_time(tokenizing: Tokenizing) -> None:
    calls = []

    def work(texts: Sequence[Text], first: int) -> list[int]:
        calls.append((threading.current_thread().name, first))
        return [len(text) for text in texts]

    long = "x" * (PORTION_CHARACTERS - 1)
    assert await tokenizing.in_thread([long, "ab", long], work) == [len(long), 2, len(long)]
    assert [first for _, first in calls] == [0, 1, 2]
    assert all(name.startswith("tokenize") for name, _ in calls)
    assert tokenizing.waiting_items == 0
    tokenizing.close()


async def test_too_much_waits_already(tokenizing: Tokenizing) -> None:
    release = threading.Event()
    held = asyncio.create_task(tokenizing.in_thread(["x"] * 3, lambda texts, first: [release.wait(30)] * len(texts)))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await tokenizing.in_thread(["x"] * 2, lambda texts, first: [True])
    release.set()
    assert await held == [True] * 3
    tokenizing.close()


async def test_what_fails_or_is_given_up_no_longer_waits(tokenizing: Tokenizing) -> None:
    def broken(texts: Sequence[Text], first: int) -> list[int]:
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        await tokenizing.in_thread(["x"], broken)
    assert tokenizing.waiting_items == 0
    tokenizing.close()

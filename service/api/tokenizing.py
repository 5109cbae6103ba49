"""Texts are tokenized: short ones on the event loop, long or many ones in threads of their own, a portion at a time."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from service.api.problems import told
from service.errors import InvalidInput, Overloaded, ServiceError
from service.runtime.encode import TOO_LONG, Encoded, Encoder, Text, Truncate, too_long

# tokenized on the loop, in some half a millisecond: going to a thread and back costs more than most texts
SHORT_CHARACTERS = 1 << 12
# tokenized in one go, some ten milliseconds: short requests pass between the portions of a long one
PORTION_CHARACTERS = 1 << 16
RETRY_AFTER_S = 1.0
# above so many items, arithmetic and sorting would hold the event loop for milliseconds
MANY_ITEMS = 64

E = TypeVar("E")
R = TypeVar("R")
# what to do with a portion of the texts and the place of its first one: a result for each
Work = Callable[[Sequence[Text], int], Sequence[E]]


class Tokenizing:
    """The threads that tokenize, and how much waits for them. Owner: event loop."""

    def __init__(self, *, threads: int, max_items: int) -> None:
        """Start no thread yet; at most `max_items` texts wait at one time."""
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="tokenize")
        self._max_items = max_items
        self.waiting_items = 0

    async def in_thread(self, texts: Sequence[Text], work: Work[E]) -> list[E]:
        """Do the work on all texts, portion after portion.

        Raises: Overloaded: too much waits here already.
        """
        if self.waiting_items + len(texts) > self._max_items:
            raise Overloaded("too many inputs are waiting to be tokenized", retry_after_s=RETRY_AFTER_S)
        self.waiting_items += len(texts)
        done: list[E] = []
        try:
            for portion in portions(texts):
                done += await self.aside(partial(work, portion, len(done)))
        finally:
            self.waiting_items -= len(texts)
        return done

    async def aside(self, work: Callable[[], R]) -> R:
        """Do something that would hold the event loop for too long."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def by_size(self, items: int, work: Callable[[], R]) -> R:
        """Do arithmetic about so many items where it holds nobody up."""
        return await self.aside(work) if items > MANY_ITEMS else work()

    def close(self) -> None:
        """Let the threads go."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def are_short(texts: Sequence[Text]) -> bool:
    """Whether tokenizing them takes less than going to a thread, or not much more.

    >>> [are_short(texts) for texts in (["a"], [("a", "b")], ["a" * 4000], ["a"] * 4000)]
    [True, True, False, False]
    """
    if len(texts) == 1 and isinstance(texts[0], str):
        return len(texts[0]) <= SHORT_CHARACTERS
    return len(texts) <= SHORT_CHARACTERS and sum(map(_characters, texts)) <= SHORT_CHARACTERS


def _characters(text: Text) -> int:
    return len(text) if isinstance(text, str) else len(text[0]) + len(text[1])


def portions(inputs: Sequence[Text]) -> Iterator[Sequence[Text]]:
    """Cut a request's inputs into runs of at most `PORTION_CHARACTERS`, or of one text that is longer.

    >>> [len(portion) for portion in portions(["x" * 40_000] * 3 + ["y"])]
    [1, 1, 2]
    """
    first, characters = 0, 0
    for place, text in enumerate(inputs):
        own = _characters(text)
        if place > first and characters + own > PORTION_CHARACTERS:
            yield inputs[first:place]
            first, characters = place, 0
        characters += own
    yield inputs[first:]


def encode(
    encoder: Encoder, truncate: Truncate, inputs: Sequence[Text], first: int
) -> Sequence[Encoded | ServiceError]:
    """Tokenize some of a request's inputs; one that is to be refused gives its error in its place.

    Args:
        encoder: the student's.
        truncate: what to do with those that are too long.
        inputs: texts or pairs.
        first: the place in the request of the first of them.
    """
    if truncate != "error":
        return encoder.encode(inputs, truncate=truncate)
    encoded = encoder.encode(inputs, truncate="end")
    return [
        too_long(place, item, encoder.max_tokens) if item.truncated else item
        for place, item in enumerate(encoded, first)
    ]


def refuse_whole(encoded: Sequence[Encoded | ServiceError]) -> None:
    """Raises: InvalidInput: some inputs are to be refused; names the first of them, and counts the others."""
    errors = [item for item in encoded if isinstance(item, ServiceError)]
    if errors:
        raise InvalidInput(TOO_LONG, errors=told([problem for error in errors for problem in error.errors]))

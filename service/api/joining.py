"""Pairs whose texts are read apart: all texts run by themselves, then what they gave, joined."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from service.api.answers import Answered
from service.api.underway import Inference
from service.errors import ServiceError
from service.runtime.encode import Encoded
from service.runtime.joined import JoinedPair, State, Unit, texts_of
from service.runtime.student import Outcome, state_of


class Run(Protocol):
    """`Service.run` of one student, policy and call."""

    async def __call__(
        self, encoded: Sequence[Unit | ServiceError], *, tokenize_s: float = 0.0, apart: bool = False
    ) -> Inference:
        """Run items. Raises: as `Service.run`."""
        ...


async def run_joined(run: Run, encoded: Sequence[Encoded | ServiceError], *, tokenize_s: float) -> Inference:
    """Read both texts of each pair, then join them; what could not be read keeps its error.

    Args:
        run: of the student.
        encoded: each pair, or why it is not run.
        tokenize_s: what tokenizing took, for the record.
    Raises: as `Service.run`.
    """
    firsts, seconds = texts_of([pair for pair in encoded if isinstance(pair, Encoded)])
    first = await run([*firsts, *seconds], tokenize_s=tokenize_s, apart=True)
    states = [stated(text, one.end) for text, one in zip([*firsts, *seconds], first.items, strict=True)]
    pairs = iter(zip(states[: len(firsts)], states[len(firsts) :], strict=True))
    units = [each if isinstance(each, ServiceError) else _joined(each, *next(pairs)) for each in encoded]
    second = both(first, await run(units))
    items = (
        Answered(pair if isinstance(pair, Encoded) else None, one.end)
        for pair, one in zip(encoded, second.items, strict=True)
    )
    return replace(second, items=tuple(items))


def stated(text: Encoded, end: Outcome | ServiceError) -> State | ServiceError:
    """What a text gave, or why it gave nothing."""
    return end if isinstance(end, ServiceError) else state_of(text, end.raw)


def _joined(pair: Encoded, first: State | ServiceError, second: State | ServiceError) -> JoinedPair | ServiceError:
    if isinstance(first, ServiceError):
        return first
    return second if isinstance(second, ServiceError) else JoinedPair(first, second, billed=pair.kept)


def both(first: Inference, second: Inference) -> Inference:
    """The second of two runs, with the seconds of both."""
    return replace(
        second,
        queue_s=first.queue_s + second.queue_s,
        compute_s=first.compute_s + second.compute_s,
        tokenize_s=first.tokenize_s,
    )

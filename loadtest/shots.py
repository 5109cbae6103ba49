"""Requests ready to be sent, and the order in which a generator takes them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray


class Judgement(NamedTuple):
    """Of an answer's items: how many were right, and how many had a label to be held against."""

    right: int = 0
    judged: int = 0


Judge = Callable[[bytes], Judgement]


@dataclass(frozen=True, slots=True)
class Shot:
    """A request.

    raw: its bytes. kind: place in the mixture. items: texts in it. judge: told its answer's body, where it is wanted.
    """

    raw: bytes
    kind: int = 0
    items: int = 1
    judge: Judge | None = None


class Shots(Protocol):
    """Where generators take requests from."""

    def take(self, place: int) -> Shot:
        """The request of a place in the schedule (closed loop: in the order of sending)."""


class Cycle:
    """The same requests again and again."""

    def __init__(self, shots: list[Shot]) -> None:
        self._shots = shots

    def take(self, place: int) -> Shot:
        """By place, from the start again after the last."""
        return self._shots[place % len(self._shots)]


class Assigned:
    """Requests of several kinds, the kind of each place fixed before; each kind's requests go round."""

    def __init__(self, kinds: NDArray[np.int64], shots: list[list[Shot]]) -> None:
        """Fix the order.

        Args:
            kinds: int64 [N], the kind of each place.
            shots: by kind, its requests; at least one.
        """
        order = np.zeros(len(kinds), dtype=np.int64)
        for kind, own in enumerate(shots):
            places = kinds == kind
            order[places] = np.arange(int(places.sum())) % len(own)
        self._picked: list[Shot] = [
            shots[kind][place] for kind, place in zip(kinds.tolist(), order.tolist(), strict=True)
        ]

    def take(self, place: int) -> Shot:
        """By place, from the start again after the last."""
        return self._picked[place % len(self._picked)]

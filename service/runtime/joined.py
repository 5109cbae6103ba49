"""Pairs of texts that are read apart and joined later: what each text gave, and batches of both.

n items, Q tokens of the longest first text, T of the longest second one, S width of a state.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from service.runtime.encode import Encoded, EncodedPair

State = npt.NDArray[Any]
Feeds = dict[str, npt.NDArray[Any]]


SHORT_TEXT = 16
"""Tokens of a first text for which the costs of joining are measured: a query."""


def joined_length(first: int, second: int) -> int:
    """As how many tokens a pair counts that is joined: what joining costs grows with both texts.

    >>> joined_length(12, 180), joined_length(64, 180), joined_length(256, 3)
    (180, 720, 4096)
    """
    return max(first, second) * max(first, SHORT_TEXT) // SHORT_TEXT


@dataclass(frozen=True, slots=True)
class JoinedPair:
    """What the stages that read one text wrote of the two texts of a pair: [tokens, S] each, or [S].

    `billed`: tokens that count against a quota.
    """

    first: State
    second: State
    billed: int

    @property
    def kept(self) -> int:
        """As how many tokens it counts in a batch; 1 where states are of texts as a whole."""
        return joined_length(len(self.first), len(self.second)) if self.second.ndim > 1 else 1

    @property
    def fingerprint(self) -> bytes:
        """The same for the same pair."""
        return self.first.tobytes() + self.second.tobytes()


Unit = Encoded | JoinedPair
"""What is run as one item: ids, or what two texts gave."""


def as_second(text: Encoded) -> Encoded:
    """A single text as the second one of a pair."""
    return replace(text, token_type_ids=np.ones_like(text.token_type_ids))


def texts_of(pairs: Sequence[Encoded]) -> tuple[list[Encoded], list[Encoded]]:
    """The first texts of pairs that are read apart, and the second ones. Raises: TypeError: one is no such pair."""
    firsts, seconds = [], []
    for pair in pairs:
        if not isinstance(pair, EncodedPair):
            raise TypeError("a student that joins two texts takes pairs")
        at = pair.first_kept
        ids, types = pair.input_ids, pair.token_type_ids
        firsts.append(Encoded(ids[:at], types[:at], tokens=at, kept=at))
        seconds.append(Encoded(ids[at:], types[at:], tokens=len(ids) - at, kept=len(ids) - at))
    return firsts, seconds


def joined_feeds(pairs: Sequence[JoinedPair], source: str, *, length: int | None = None) -> Feeds:
    """Stack pairs into what joined stages read.

    Args:
        pairs: at least one.
        source: whose output the states are, `STAGE.OUTPUT`.
        length: pad the second texts to this many tokens instead of the longest one's.
    Returns: of each side its states, [n, Q, S] and [n, T, S] (or [n, S]), zero beyond a text's end, and its
        `attention_mask`, int64; and `attention_mask` by itself, the second one's.
    """
    feeds: Feeds = {}
    for side, states in (("first", [pair.first for pair in pairs]), ("second", [pair.second for pair in pairs])):
        stacked, mask = _stacked(states, length if side == "second" else None)
        feeds[f"{side}:{source}"], feeds[f"{side}:attention_mask"] = stacked, mask
    return feeds | {"attention_mask": feeds["second:attention_mask"]}


def _stacked(states: Sequence[State], length: int | None) -> tuple[State, npt.NDArray[np.int64]]:
    first = states[0]
    if first.ndim == 1:
        return np.stack(states), np.ones((len(states), 1), dtype=np.int64)
    lengths = [len(state) for state in states]
    shape = (len(states), length or max(lengths))
    stacked, mask = np.zeros((*shape, first.shape[1]), dtype=first.dtype), np.zeros(shape, dtype=np.int64)
    for place, state in enumerate(states):
        stacked[place, : len(state)] = state
        mask[place, : len(state)] = 1
    return stacked, mask

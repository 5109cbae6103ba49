"""Where the inputs of a stage come from, by name."""

from collections.abc import Iterable

TOKEN_TYPES = "token_type_ids"
TOKEN_INPUTS = ("input_ids", "attention_mask", TOKEN_TYPES)
SIDES = ("first", "second")
"""The texts of a pair that is read apart, by which the sources of joined stages begin: `first:00.state`."""
JOINED = "joined"
"""The requirement of a bundle whose pairs are read apart by some stages and joined by later ones."""


def side_of(source: str) -> tuple[str, str]:
    """Which text a source is of, or "" where there is one sequence, and the source within it.

    >>> side_of("first:00.state"), side_of("attention_mask")
    (('first', '00.state'), ('', 'attention_mask'))
    """
    side, colon, rest = source.partition(":")
    return (side, rest) if colon and side in SIDES else ("", source)


def is_sided(sources: Iterable[str]) -> bool:
    """Whether any of them is of one text of a pair."""
    return any(side_of(source)[0] for source in sources)

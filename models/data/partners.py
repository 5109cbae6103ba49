"""New pairs of texts that are there: each text with those of other pairs that say nearly the same in words.

The teacher labels them. What lexical search finds nearest holds paraphrases, and texts that only look like ones, which
is what a student of pairs must tell apart; pairs that people labelled (those of Quora) were found in such ways too.
Source: Thakur et al. 2021 (Augmented SBERT), arXiv:2010.08240, section 3.1, with BM25 for the sampling of pairs.
"""

from collections.abc import Sequence

from models.data.lexical import Lexical, best_of
from models.data.rows import Row, group_key, words

Pair = tuple[str, str]

_SPARE = 8


def partnered(pairs: Sequence[Pair], pool: Sequence[str], count: int, *, forbidden: frozenset[str]) -> list[Pair]:
    """At most `count` new pairs for each text of `pairs`, on either side, and of `pool`, nearest first.

    Args:
        pairs: those of train.
        pool: single texts.
        count: of each text; fewer where few texts share a word with it, or those that do are its partners already.
        forbidden: group keys (`Splits.held_out_keys`) of pairs that must not come out, whichever text stands first.
    Returns: pairs that are not among `pairs` in either order, each once, none of a text with itself.
    """
    if not count:
        return []
    texts = list(dict.fromkeys([*(text for pair in pairs for text in pair), *pool]))
    said = {text: words(text) for text in texts}
    taken = {frozenset((said[first], said[second])) for first, second in pairs}
    index, made = Lexical(texts), []
    for text in texts:
        found = 0
        scores = index.scores(text)
        for place in best_of(scores, count + _SPARE):
            other = texts[place]
            key = frozenset((said[text], said[other]))
            if found == count or not scores[place]:
                break
            if len(key) == 1 or key in taken or _either_way(text, other) & forbidden:
                continue
            taken.add(key)
            made.append((text, other))
            found += 1
    return made


def _either_way(text: str, other: str) -> set[str]:
    return {group_key(Row(text, text_pair=other)), group_key(Row(other, text_pair=text))}

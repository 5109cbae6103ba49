"""BM25 over a set of passages: candidates where a data set brings none, and the baseline beside every ranker."""

from collections.abc import Sequence

import bm25s
import numpy as np
import numpy.typing as npt

# N passages

K1, B = 0.9, 0.4
"""Anserini's defaults, with which the published BM25 figures of passage ranking were made."""

_PATTERN = r"(?u)\b\w+\b"


class Lexical:
    """An index over N passages. Words are lower-cased runs of letters and digits; none are stop words.

    Source: Robertson & Zaragoza 2009, doi:10.1561/1500000019; in the form of Lucene (Kamphuis et al. 2020).
    """

    def __init__(self, passages: Sequence[str]) -> None:
        self._size = len(passages)
        self._index = bm25s.BM25(k1=K1, b=B, method="lucene")
        self._index.index(_words(passages), show_progress=False)

    def scores(self, query: str) -> npt.NDArray[np.float32]:
        """float32 [N]; 0 where no word is shared."""
        (words,) = _words([query])
        if not words:
            return np.zeros(self._size, np.float32)
        found: npt.NDArray[np.float32] = np.asarray(self._index.get_scores(words), np.float32)
        return found

    def best(self, query: str, count: int) -> list[int]:
        """The places of the `count` best passages, best first; of equals the first."""
        return best_of(self.scores(query), count)


def best_of(scores: npt.NDArray[np.float32], count: int) -> list[int]:
    """The places of the `count` largest of float32 [N], largest first; of equals the first."""
    places = np.arange(len(scores))
    if count < len(scores):
        # subtle: the whole of them in order would take ten times as long as their scores
        places = np.flatnonzero(scores >= np.partition(scores, -count)[-count])
    return [int(place) for place in places[np.argsort(-scores[places], kind="stable")][:count]]


def _words(texts: Sequence[str]) -> list[list[str]]:
    found: list[list[str]] = bm25s.tokenize(
        list(texts), token_pattern=_PATTERN, stopwords=[], return_ids=False, show_progress=False
    )
    return found

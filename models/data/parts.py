"""Which texts are parts of others: contiguous runs of words, punctuation aside."""

from collections.abc import Iterable, Iterator

from models.data.rows import words


class PartIndex:
    """Finds which texts of a set occur inside a longer text.

    Args:
        texts: the texts to look for.
    Invariant: an entry of `_lengths` lists the word counts of all texts that begin with its one or two words, so
        that a search builds only runs that may be there.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = {words(text) for text in texts}
        lengths: dict[tuple[str, ...], set[int]] = {}
        for text in self._texts:
            tokens = text.split()
            lengths.setdefault(tuple(tokens[:2]), set()).add(len(tokens))
        self._lengths = {start: tuple(sorted(counts)) for start, counts in lengths.items()}

    def parts_of(self, text: str) -> set[str]:
        """The texts of the index, as `words`, that are runs of words of `text` (`text` itself among them)."""
        return {run for run in self._runs(words(text).split()) if run in self._texts}

    def _runs(self, tokens: list[str]) -> Iterator[str]:
        for begin in range(len(tokens)):
            for start in (tuple(tokens[begin : begin + 1]), tuple(tokens[begin : begin + 2])):
                for count in self._lengths.get(start, ()):
                    if begin + count <= len(tokens):
                        yield " ".join(tokens[begin : begin + count])


def whole_texts(texts: Iterable[str]) -> set[str]:
    """The texts, as `words`, that are no part of another: sentences, where the rest are their phrases.

    >>> sorted(whole_texts(["a good film .", "good film", "film", "bad"]))
    ['a good film', 'bad']
    """
    distinct = {words(text) for text in texts}
    index = PartIndex(distinct)
    inner: set[str] = set()
    for text in sorted(distinct, key=lambda text: -len(text.split())):
        if text not in inner:  # a part's parts are parts of its whole: found already
            inner |= index.parts_of(text) - {text}
    return distinct - inner

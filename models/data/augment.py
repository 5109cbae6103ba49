"""Variants of training texts without a language model: words dropped or replaced, windows, and windows mixed.

The teacher labels the variants, so they need to be near real texts, not to keep a label.
Source: Tang et al. 2019, arXiv:1903.12136, section 3.3; with neighbours in the teacher's token embeddings in place of
words of the same part of speech.
"""

import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence

from models.data.rows import Row, group_key
from models.recipe.distil import Augment

TRIES = 3


class Augmenter:
    """Makes variants; what it makes of a text depends on the text, the seed and the pool, not on earlier calls.

    Args:
        neighbours: for a word (case folded, without punctuation around it) the words that may stand in for it.
        settings: the probabilities `drop` and `replace` (for each word), `window` and `mix` (for each variant).
        seed: of all choices.
        forbidden: group keys (`Splits.held_out_keys`) of texts that must not come out.
    """

    def __init__(
        self,
        neighbours: Mapping[str, tuple[str, ...]] | None,
        settings: Augment,
        seed: int,
        *,
        forbidden: frozenset[str] = frozenset(),
    ) -> None:
        self._neighbours = neighbours or {}
        self._settings = settings
        self._seed = seed
        self._forbidden = forbidden
        self._stand_ins: dict[str, tuple[str, ...]] = {}

    def augment_all(self, texts: Sequence[str], rows: int) -> list[str]:
        """At most `rows` variants of each text, in the order of `texts`; each once, and none that is among `texts`."""
        made = dict.fromkeys(variant for text in texts for variant in self.variants(text, rows, pool=texts))
        known = set(texts)
        return [variant for variant in made if variant not in known]

    def augment_pairs(self, pairs: Sequence[tuple[str, str]], rows: int) -> list[tuple[str, str]]:
        """At most `rows` variants of each pair, each once: the pair the other way round, then both texts varied."""
        made: dict[tuple[str, str], None] = {}
        for first, second in pairs if rows else ():
            left, right = (self.variants(text, rows - 1, pool=()) or [text] for text in (first, second))
            varied = list(zip(left, right, strict=False))[: rows - 1]
            made |= dict.fromkeys(pair for pair in ((second, first), *varied) if self._may_be(pair))
        known = set(pairs)
        return [pair for pair in made if pair not in known]

    def _may_be(self, pair: tuple[str, str]) -> bool:
        return not self._forbidden or group_key(Row(pair[0], text_pair=pair[1])) not in self._forbidden

    def variants(self, text: str, n: int, *, pool: Sequence[str] = ()) -> list[str]:
        """At most `n` distinct variants of `text`, none of them empty, forbidden or `text` itself.

        A short text may have fewer: `TRIES * n` are tried. `pool` holds the texts whose windows `mix` appends;
        without any, nothing is mixed.
        """
        chance = random.Random(hashlib.sha256(f"{self._seed}\n{text}".encode()).digest())
        made: dict[str, None] = {}
        for _ in range(TRIES * n):
            if len(made) >= n:
                break
            variant = self._variant(text.split(), pool, chance)
            if variant and variant != text and variant not in made and self._allowed(variant):
                made[variant] = None
        return list(made)

    def _allowed(self, variant: str) -> bool:
        return not self._forbidden or group_key(Row(variant)) not in self._forbidden

    def _variant(self, tokens: list[str], pool: Sequence[str], chance: random.Random) -> str:
        if pool and chance.random() < self._settings.mix:
            tokens = _window(tokens, chance) + _window(chance.choice(pool).split(), chance)
        elif chance.random() < self._settings.window:
            tokens = _window(tokens, chance)
        edited = list(self._edited(tokens, chance))
        if not edited and tokens:
            edited = [chance.choice(tokens)]
        return " ".join(edited)

    def _edited(self, tokens: list[str], chance: random.Random) -> Iterator[str]:
        drop, either = self._settings.drop, self._settings.drop + self._settings.replace
        for token in tokens:
            drawn = chance.random()
            if drawn < drop:
                continue
            stand_ins = self._stand_ins_of(token) if drawn < either else ()
            yield chance.choice(stand_ins) if stand_ins else token

    def _stand_ins_of(self, token: str) -> tuple[str, ...]:
        """What may replace a token: its word's neighbours, in the token's own punctuation."""
        if token not in self._stand_ins:
            word = token.strip("\"'`.,;:!?()[]")
            before, _, after = token.partition(word) if word else ("", "", "")
            found = self._neighbours.get(token.casefold()) or tuple(
                f"{before}{neighbour}{after}" for neighbour in self._neighbours.get(word.casefold(), ())
            )
            self._stand_ins[token] = found
        return self._stand_ins[token]


def _window(tokens: list[str], chance: random.Random) -> list[str]:
    """A contiguous run of `tokens`, its length uniform over 1 to all of them."""
    if not tokens:
        return []
    count = chance.randint(1, len(tokens))
    begin = chance.randint(0, len(tokens) - count)
    return tokens[begin : begin + count]

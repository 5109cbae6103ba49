"""Dark examples: passages of moderate relevance, made of a list's own passages in the space of words.

A teacher tells a first stage's negatives from what is relevant too easily for its scores of them to hold much more
than the grades do. What lies between has to be made: relevant passages with words left out, those shared with the query
above all, and runs of their words joined to runs of a hard negative's. The teacher scores them; no grade is claimed for
them.

Source: Tao et al. 2022 (ADAM), arXiv:2212.10192; there words are masked, here they are left out, since no student is
ever asked about a mask.
"""

import hashlib
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from models.data.rank_sets import Ranking
from models.data.rankings import RankSplits
from models.data.rows import Row, group_key
from models.recipe.dark_examples import DarkExamples

TRIES = 3
"""Attempts for each example that is wanted; what would be empty, or is a passage that there is, is dropped."""

_SHARES = (0.25, 0.75)
"""Of a mix's words, the least and the largest share that are the relevant passage's."""

_AROUND = "\"'`.,;:!?()[]"


@dataclass(frozen=True, slots=True)
class DarkMaker:
    """What decides the examples of a list beside the list itself.

    settings: the recipe's. hard: how many of a list's negatives, the first ones, count as hard; of a list that has
    fewer hard ones its random ones are among them. seed: of all choices. taken: the group keys of what must not come
    out, from `taken_by`.
    """

    settings: DarkExamples
    hard: int
    seed: int
    taken: Collection[str] = frozenset()

    def darkened(self, ranking: Ranking) -> Ranking:
        """The list with its examples at its end, of grade 0 and counted in `dark`; one without an answer as it is.

        No example has the words of another, of a passage of the list, or of what is `taken`. Examples depend on the
        list and this maker alone. Short passages may give fewer.
        """
        if not ranking.answered:
            return ranking
        made = self._examples(ranking)
        grades = (*ranking.grades, *(0.0,) * len(made))
        return replace(ranking, passages=(*ranking.passages, *made), grades=grades, dark=len(made))

    def _examples(self, ranking: Ranking) -> list[str]:
        graded = [*zip(ranking.passages, ranking.grades, strict=True)]
        relevant = [text for text, grade in graded if grade > 0]
        others = [text for text, grade in graded if grade == 0]
        hard = others[: self.hard] or others
        shared = frozenset(map(_plain, ranking.query.split()))
        chance = random.Random(hashlib.sha256(f"{self.seed}\n{ranking.query}\n{relevant[0]}".encode()).digest())
        made: dict[str, str] = {}
        barred = {_key(text) for text in ranking.passages}
        for _ in range(TRIES * self.settings.of_list):
            if len(made) == self.settings.of_list:
                break
            text = self._example(relevant, hard, shared, chance)
            key = _key(text)
            if text and key not in barred and key not in self.taken:
                made.setdefault(key, text)
        return list(made.values())

    def _example(
        self, relevant: Sequence[str], hard: Sequence[str], shared: frozenset[str], chance: random.Random
    ) -> str:
        words = chance.choice(relevant).split()
        if hard and chance.random() < self.settings.mix:
            return " ".join(_mixed(words, chance.choice(hard).split(), chance))
        mask, mask_shared = self.settings.mask, self.settings.mask_shared
        left = (word for word in words if chance.random() >= (mask_shared if _plain(word) in shared else mask))
        return " ".join(left)


def taken_by(splits: RankSplits) -> frozenset[str]:
    """The group keys of every passage that the splits name, held-out and relevant ones among them."""
    held_out = [*splits.dev, *splits.calibration, *splits.gate, *(r for found in splits.tests.values() for r in found)]
    trained = [ranking for each in splits.train for ranking in (*each.answered, *each.unanswered)]
    texts = {text for ranking in (*held_out, *trained) for text in ranking.passages}
    texts |= {missed.text for ranking in (*held_out, *trained) for missed in ranking.missed}
    texts |= {text for each in splits.train for text in each.pool}
    return frozenset(map(_key, texts))


def _key(text: str) -> str:
    return group_key(Row(text))


def _plain(word: str) -> str:
    return word.strip(_AROUND).casefold()


def _mixed(relevant: Sequence[str], other: Sequence[str], chance: random.Random) -> list[str]:
    """A run of each, in either order, together about as long as the relevant one."""
    kept = max(1, round(chance.uniform(*_SHARES) * len(relevant)))
    parts = [_run(relevant, kept, chance), _run(other, max(1, len(relevant) - kept), chance)]
    chance.shuffle(parts)
    return [*parts[0], *parts[1]]


def _run(words: Sequence[str], count: int, chance: random.Random) -> Sequence[str]:
    """`count` words in a row, or all of them where there are fewer."""
    begin = chance.randint(0, max(0, len(words) - count))
    return words[begin : begin + count]

"""BM25: the formula on a case worked by hand, order, and texts without words."""

import math

import numpy as np
import pytest

from models.data.lexical import K1, B, Lexical

PASSAGES = ["the cat sat", "dogs bark loud today", "a cat and a dog", "!!!"]


def test_a_score_is_that_of_the_formula() -> None:
    lengths = [3, 4, 5, 0]
    idf = math.log(1 + (4 - 1 + 0.5) / (1 + 0.5))
    wanted = idf * 1 / (1 + K1 * (1 - B + B * lengths[1] / np.mean(lengths)))
    assert Lexical(PASSAGES).scores("bark")[1] == pytest.approx(wanted, rel=0.05)


def test_the_best_come_first_and_of_equals_the_first() -> None:
    index = Lexical(PASSAGES)
    assert index.best("CAT, dog?", 2) == [2, 0]
    assert index.best("zebra", 3) == [0, 1, 2]


@pytest.mark.parametrize("query", ["", "?!", "zebra"])
def test_a_query_that_shares_no_word_scores_nothing(query: str) -> None:
    assert Lexical(PASSAGES).scores(query).tolist() == [0.0] * 4

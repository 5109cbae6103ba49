"""The golden inputs: written for this project, taken from no data set, of many lengths and scripts.

They hold what a backend or a tokenizer may get wrong: nothing at all, one character, capitals, digits and
punctuation, accents, other scripts, an emoji, words that fall into many pieces, and a text near the length limit.
"""

from collections.abc import Sequence
from typing import Final

from service.runtime.encode import Text

GOLDEN_TEXTS: Final[tuple[str, ...]] = (
    "The order arrived on Tuesday, two days early.",
    "",
    "?",
    "WHERE can I change the delivery address of order no. 4711-B?",
    "The café's naïve façade didn't fool anyone — déjà vu…",
    "Great 👍 see you at 8:30!",
    "Спасибо, 谢谢, どうも",
    "Antidisestablishmentarianism and electroencephalography are hard to spell.",
    "We stayed for three nights. The room was quiet and clean, the view over the harbour was lovely, and the staff "
    "went out of their way to help us with a broken suitcase; on the other hand the breakfast was cold, the lift was "
    "out of order, and parking cost far more than the website had said it would. I would stay again, but only if "
    "somebody else were paying for it.",
)


def golden_texts(texts: Sequence[str] = GOLDEN_TEXTS, *, pairs: bool) -> tuple[Text, ...]:
    """The texts, or each of them with the next as a pair."""
    if not pairs:
        return tuple(texts)
    return tuple(zip(texts, (*texts[1:], texts[0]), strict=True))

"""What a card gets when its version was compared with other students of its task: one section, replaced by the next."""

import re
from typing import Final

from models.report.frontier import Comparison, comparison_table, verdict

PICTURE: Final = "card/frontier.png"
"""Where the picture lies in the bundle."""

_HEADING: Final = "## Frontier"
_SECTION = re.compile(rf"^{_HEADING}\n.*?(?=^## |\Z)", re.DOTALL | re.MULTILINE)
_MEASURED_AS: Final = "Measured as version"
_BEFORE: Final = "\n## Gates\n"


def frontier_section(found: Comparison, *, point: str, command: str) -> str:
    """The section as Markdown, without a final newline.

    Args:
        point: what the card's own version is called in the comparison.
        command: what measured it, as one would type it.
    """
    others = len({each.name for each in found.points if not each.reference}) - 1
    beside = {0: "by itself", 1: "beside 1 other student of its task"}.get(
        others, f"beside {others} other students of its task"
    )
    return "\n\n".join(
        [
            _HEADING,
            f"This version, `{point}` in the table, {beside}: {found.measure} on {found.split}; {found.timed}.",
            f"![{found.measure} against processor time]({PICTURE})",
            comparison_table(found),
            verdict(found),
            "\n".join(f"- {note}" for note in found.notes),
            f"Measured by\n\n```\n{command}\n```",
        ]
    )


def with_frontier(card: str, section: str) -> str:
    """The card with the section in place of the one it has; else before its gates, or at its end where it has none.

    >>> once = with_frontier("# a\\n\\n## Gates\\n\\nall\\n", "## Frontier\\n\\nold")
    >>> with_frontier(once, "## Frontier\\n\\nnew")
    '# a\\n\\n## Frontier\\n\\nnew\\n\\n## Gates\\n\\nall\\n'
    >>> with_frontier("# a\\n", "## Frontier")
    '# a\\n\\n## Frontier\\n'
    """
    without = _SECTION.sub("", card)
    before, found, after = without.partition(_BEFORE)
    return f"{before.rstrip()}\n\n{section}\n{found}{after}"


def with_frontier_of(card: str, version: int) -> str:
    """A card that was copied to a later version of the same student: its section says which version it was measured as.

    >>> copied = with_frontier_of("# a\\n\\n## Frontier\\n\\nall\\n", 3)
    >>> copied
    '# a\\n\\n## Frontier\\n\\nMeasured as version 3, which has the same graphs and exits.\\n\\nall\\n'
    >>> with_frontier_of(copied, 4) == copied
    True
    """
    found = frontier_of(card)
    if found is None or f"\n\n{_MEASURED_AS}" in found:
        return card
    body = found.removeprefix(_HEADING).lstrip()
    return with_frontier(
        card, f"{_HEADING}\n\n{_MEASURED_AS} {version}, which has the same graphs and exits.\n\n{body}"
    )


def frontier_of(card: str) -> str | None:
    """The section as `with_frontier` takes it; None where the card has none.

    >>> frontier_of("# a\\n\\n## Frontier\\n\\nall\\n\\n## Gates\\n\\nmet\\n")
    '## Frontier\\n\\nall'
    >>> frontier_of("# a\\n") is None
    True
    """
    found = _SECTION.search(card)
    return None if found is None else found.group().rstrip()

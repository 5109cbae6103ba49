"""What waits for one stage of one student, sorted by urgency."""

from bisect import insort
from collections.abc import Sequence
from operator import attrgetter

from service.engine.forecast import Forecast, Outlook
from service.engine.item import Group, Item

Entry = Item | Group

# of a long queue so many entries tell how many are of a length
SAMPLE = 64
SORT_COST = 16  # an insertion costs about what sorting so many places does
_MOMENT = attrgetter("moment")


class StageQueue:
    """Items that wait for the first stage, or groups of survivors that wait for a later one.

    Owner: event loop.
    Invariant: an item that ended while it waited is counted out at once; its place goes when it is looked at, or when
    such places are as many as those that wait.

    Attributes:
        stage: which.
        entries: sorted by urgency.
        items, tokens: of those that wait.
    """

    def __init__(self, stage: int, forecast: Forecast) -> None:
        self.stage = stage
        self.entries: list[Entry] = []
        self.items = 0
        self.tokens = 0
        self._forecast = forecast

    @property
    def outlook(self) -> Outlook:
        """What running it costs."""
        return self._forecast.outlooks[self.stage]

    def add(self, entries: Sequence[Entry]) -> None:
        """Put entries that are sorted by urgency in their places."""
        queue = self.entries
        if not queue or queue[-1].moment <= entries[0].moment:
            queue.extend(entries)
        elif len(entries) * SORT_COST < len(queue):
            for entry in entries:
                insort(queue, entry, key=_MOMENT)
        else:
            # subtle: two sorted runs, which this sort merges in linear time; of equals those that were here come first
            queue.extend(entries)
            queue.sort(key=_MOMENT)
        self.items += sum([entry.items for entry in entries])
        self.tokens += sum([entry.real_tokens for entry in entries])

    def left(self, entries: Sequence[Entry]) -> None:
        """Count entries out that stopped waiting."""
        self.items -= sum([entry.items for entry in entries])
        self.tokens -= sum([entry.real_tokens for entry in entries])

    def ended(self, item: Item) -> None:
        """Count an item out that ended here, by itself or in its group."""
        self.items -= 1
        self.tokens -= item.tokens
        if item.group is not None:
            item.group.items -= 1
            item.group.real_tokens -= item.tokens

    def near(self, tokens: int, band: float) -> float:
        """About how many items wait here whose length differs from that by no more than the band."""
        sample = self.entries[:SAMPLE]
        if not sample:
            return 0.0
        near = sum([entry.items for entry in sample if -band <= entry.tokens - tokens <= band])
        return near * len(self.entries) / len(sample)

    def clear(self, front: int) -> None:
        """Give up the places of entries that no longer wait, among so many from the front."""
        self.entries[:front] = [entry for entry in self.entries[:front] if entry.waits]

    def sweep(self) -> None:
        """Give up all places of entries that no longer wait, once they are as many as the items that do."""
        if len(self.entries) >= 2 * self.items:
            self.clear(len(self.entries))

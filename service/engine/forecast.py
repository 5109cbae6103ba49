"""What runs will cost and when the work that waits will be done: the measured costs, kept up to date as runs end."""

from collections.abc import Sequence
from dataclasses import dataclass

from service.runtime.cost import StageCost

# padding, taking survivors, answering: what each run costs around its graph
RUN_S = 6e-5
# of a student nobody measured: small batches, never on the event loop
UNMEASURED = StageCost(base_s=2e-4, token_s=1e-5)
# the shape at which the first guess of a token's seconds is taken, items and tokens
TYPICAL = (16, 16)
REFRESH_RUNS = 16
SCALE_STEP = 0.1
SCALE_STEP_UNMEASURED = 0.3
SCALE_SAMPLE_BOUNDS = (0.2, 5.0)
MEMORY_TOKENS = 8192
MEMORY_ITEMS = 256
MEMORY_S = 0.2
# more between two runs says nothing of the next: what waited has ended without one, or the processor was away for once
LONGEST_GAP_S, LONGEST_STRETCH = 0.1, 10
ITEM_STEP = 0.1


@dataclass(frozen=True, slots=True)
class Outlook:
    """What runs of a stage cost.

    Attributes:
        run: one run of it, with what the engine adds.
        ahead: of it and of the later stages together, as many items reaching each as lately did.
        peak: neither its run nor a later stage's costs more.
    """

    run: StageCost
    ahead: StageCost
    peak: StageCost


class Forecast:
    """One student's costs. Owner: event loop.

    Attributes:
        measured: whether its costs were measured before it was served.
        outlooks: one a stage.
        survive: the share of a stage's items that go on to the next, one a stage.
        item_tokens: tokens of an item, roughly.
    """

    def __init__(self, costs: Sequence[StageCost], *, stages: int) -> None:
        self.measured = len(costs) == stages
        self._costs = tuple(costs) if self.measured else (UNMEASURED,) * stages
        self._scales = [1.0] * stages
        self._entered = [1.0] * stages
        self._stayed = [1.0] * stages
        items, longest = TYPICAL
        self._tokens = float(items * longest)
        self._busy_s = sum(cost.seconds(items, longest) + RUN_S for cost in self._costs)
        self.item_tokens = float(longest)
        self._runs = 0
        self.survive = [1.0] * stages
        self.outlooks: tuple[Outlook, ...] = ()
        self._refresh()

    @property
    def token_s(self) -> float:
        """Busy seconds that a token takes on its whole way."""
        return self._busy_s / self._tokens

    def seconds(self, stage: int, items: int, longest: int) -> float:
        """Predicted seconds of one run of a stage, with what the engine adds."""
        return self.outlooks[stage].run.seconds(items, longest)

    def through(self, items: int, longest: int) -> float:
        """Predicted seconds of one run of all stages as one; a little high, as what the engine adds counts for each."""
        return sum([outlook.run.seconds(items, longest) for outlook in self.outlooks])

    def ran_through(self, *, items: int, longest: int, seconds: float) -> None:
        """All stages ran as one: each took its share, as far as was predicted, and everyone went on to the last."""
        parts = [outlook.run.seconds(items, longest) - RUN_S for outlook in self.outlooks]
        # a fit may find that runs cost nothing
        last, whole_s = len(parts) - 1, max(sum(parts), 1e-9)
        for stage, part_s in enumerate(parts):
            stayed = items if stage < last else 0
            self.ran(stage, items=items, longest=longest, stayed=stayed, seconds=seconds * part_s / whole_s)
        # it was one run
        self._busy_s -= last * RUN_S

    def ran(self, stage: int, *, items: int, longest: int, stayed: int, seconds: float) -> None:
        """A stage ran: `stayed` of its items go on; `seconds` inside the graph."""
        step = SCALE_STEP if self.measured else SCALE_STEP_UNMEASURED
        low, high = SCALE_SAMPLE_BOUNDS
        scale = self._scales[stage]
        seen = seconds / max(self._costs[stage].seconds(items, longest), 1e-9)
        self._scales[stage] += step * (min(max(seen, low * scale), high * scale) - scale)
        keep = 1.0 if self._entered[stage] < MEMORY_ITEMS else 0.5
        self._entered[stage] = keep * self._entered[stage] + items
        self._stayed[stage] = keep * self._stayed[stage] + stayed
        self._busy_s += seconds + RUN_S
        self._runs += 1
        if self._runs % REFRESH_RUNS == 0 or self._runs < REFRESH_RUNS:
            self._refresh()

    def ended(self, items: int, tokens: int) -> None:
        """Items were answered, of so many tokens together."""
        self.item_tokens += ITEM_STEP * (tokens / items - self.item_tokens)
        self._tokens += tokens
        if self._tokens > MEMORY_TOKENS:
            self._tokens, self._busy_s = self._tokens / 2, self._busy_s / 2

    def _refresh(self) -> None:
        costs = [_scaled(cost, scale) for cost, scale in zip(self._costs, self._scales, strict=True)]
        self.survive = [stayed / entered for stayed, entered in zip(self._stayed, self._entered, strict=True)]
        ahead, peak = costs[:], costs[:]
        for stage in range(len(costs) - 2, -1, -1):
            ahead[stage] = _followed(costs[stage], ahead[stage + 1], self.survive[stage])
            peak[stage] = _larger(costs[stage], peak[stage + 1])
        self.outlooks = tuple(Outlook(*each) for each in zip(costs, ahead, peak, strict=True))


def _scaled(cost: StageCost, scale: float) -> StageCost:
    return StageCost(cost.base_s * scale + RUN_S, cost.token_s * scale, cost.square_s * scale)


def _followed(cost: StageCost, later: StageCost, share: float) -> StageCost:
    base_s = cost.base_s + later.base_s
    return StageCost(base_s, cost.token_s + share * later.token_s, cost.square_s + share * later.square_s)


def _larger(one: StageCost, other: StageCost) -> StageCost:
    return StageCost(max(one.base_s, other.base_s), max(one.token_s, other.token_s), max(one.square_s, other.square_s))


class Stretch:
    """How many seconds pass for a second of predicted work, while work waits. Owner: event loop.

    Below 1 where several slots work at once; above where the processor has other things to do.
    """

    def __init__(self, *, slots: int) -> None:
        self._wall_s, self._busy_s = MEMORY_S / slots, MEMORY_S
        self._since: float | None = None

    @property
    def factor(self) -> float:
        """Seconds for a second of work."""
        return self._wall_s / self._busy_s

    def note(self, now: float, *, busy_s: float, waiting: bool) -> None:
        """Work of so many busy seconds has ended; `waiting`: whether more waits now."""
        if self._since is not None:
            self._wall_s += min(now - self._since, LONGEST_GAP_S + LONGEST_STRETCH * busy_s)
            self._busy_s += busy_s
            if self._busy_s > 2 * MEMORY_S:
                self._wall_s, self._busy_s = self._wall_s / 2, self._busy_s / 2
        self._since = now if waiting else None

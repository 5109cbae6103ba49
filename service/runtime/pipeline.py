"""A batch's way through the stages: what each stage reads, who leaves after it, what the survivors carry on.

Pure numpy; the graphs themselves are run by a function that the caller gives. `Student.run` and the engine both go
through `Pass`, so that they cannot differ. B items, T tokens, H hidden, C labels; n items still on their way.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from service.bundle.manifest import Confidence
from service.bundle.sources import SIDES, side_of
from service.errors import RunFailed
from service.runtime import heads
from service.runtime.heads import Doubles, ExitPolicy, Flags, Floats
from service.runtime.joined import joined_length
from service.runtime.plan import Carried, Leave, Pipeline, StagePlan

Array = npt.NDArray[Any]
Rows = npt.NDArray[np.int64]
RunStage = Callable[[int, Mapping[str, Array], Sequence[str]], Mapping[str, Array]]
# a threshold at which an exit is computed and nobody leaves; at None it is not computed
UNREACHED: Final = math.inf
_FIRST_MASK: Final = f"{SIDES[0]}:attention_mask"
# the last exit's, where everyone leaves
_ALWAYS: Final = -math.inf


@dataclass(frozen=True, slots=True)
class Stepped:
    """What one stage did with the n items that went in.

    Attributes:
        stage: its index.
        rows: int64 [n], the items' places in the batch as it began.
        leaves: bool [n], who is answered here.
        leaving: how many that are.
        raw: float32 [n, ...], this exit's raw output of all n; None where the stage has no exit, or nobody may leave.
        sure: float64 [n], the largest probability of each; None: that was not worked out.
        exit_index: which exit that is.
        longest: the longest item's length.
        lengths: each item's own length.
        run_s: seconds inside the graph.
    """

    stage: int
    rows: Rows
    leaves: Flags
    leaving: int
    raw: Floats | None
    sure: Doubles | None
    exit_index: int | None
    longest: int
    lengths: Sequence[int]
    run_s: float

    @property
    def padded_tokens(self) -> int:
        """Tokens that were computed."""
        return len(self.rows) * self.longest

    @property
    def real_tokens(self) -> int:
        """The items' own lengths together."""
        return sum(self.lengths)


@dataclass(frozen=True, slots=True)
class _BatchPolicy:
    """The items' policies: one that all share, or float64 [n, exits - 1] with NaN where nobody leaves."""

    thresholds: tuple[float | None, ...] | Doubles
    confidence: Confidence

    def at(self, exit_index: int) -> float | Doubles | None:
        """The threshold, or each item's; None where nobody leaves."""
        if isinstance(self.thresholds, tuple):
            return self.thresholds[exit_index]
        column = np.asarray(self.thresholds[:, exit_index])
        return None if np.isnan(column).all() else column

    def select(self, kept: Rows) -> "_BatchPolicy":
        """Those of the items kept."""
        if isinstance(self.thresholds, tuple):
            return self
        return _BatchPolicy(self.thresholds[kept], self.confidence)

    def table(self, items: int) -> Doubles:
        """Each item's thresholds: float64 [items, exits - 1]."""
        if isinstance(self.thresholds, tuple):
            return np.array([self.thresholds] * items, dtype=np.float64)
        return self.thresholds


def _merged_policy(passes: Sequence["Pass"]) -> _BatchPolicy:
    policies = [going._policy for going in passes]
    first = policies[0]
    # subtle: tuples first, since arrays compare element by element
    if all(isinstance(policy.thresholds, tuple) for policy in policies) and all(policy == first for policy in policies):
        return first
    rules = {policy.confidence for policy in policies if _lets_leave(policy)}
    assert len(rules) <= 1, "a student has one confidence rule"
    table = np.concatenate([going._policy.table(len(going.rows)) for going in passes])
    return _BatchPolicy(table, rules.pop() if rules else "max_probability")


def _lets_leave(policy: _BatchPolicy) -> bool:
    return bool((~np.isnan(policy.table(1))).any())


def _batch_policy(policies: ExitPolicy | Sequence[ExitPolicy]) -> _BatchPolicy:
    if isinstance(policies, ExitPolicy):
        return _BatchPolicy(policies.thresholds, policies.confidence)
    first = policies[0]
    if all(policy is first or policy == first for policy in policies):
        return _BatchPolicy(first.thresholds, first.confidence)
    rules = {policy.confidence for policy in policies if any(t is not None for t in policy.thresholds)}
    assert len(rules) <= 1, "a student has one confidence rule"
    thresholds = np.array([policy.thresholds for policy in policies], dtype=np.float64)
    return _BatchPolicy(thresholds, rules.pop() if rules else "max_probability")


def _is_long(source: str, value: Array) -> bool:
    """Whether a fed tensor's second dim is the items' length."""
    is_state = "." in source and value.ndim < 3  # of a text as a whole: [n, S]
    return side_of(source)[0] != SIDES[0] and not is_state


class Pass:
    """One batch on its way, stage by stage.

    Owner: the thread that runs it.
    Invariant: after each step every array holds the survivors only, cut to their longest, floats zero beyond each
    item's own length.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        run_stage: RunStage,
        feeds: Mapping[str, Array],
        policies: ExitPolicy | Sequence[ExitPolicy],
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Begin before the first stage.

        Args:
            pipeline: the student's.
            run_stage: (stage index, feeds by tensor name, outputs wanted) to outputs by tensor name, more than those
                if it likes; raises RunFailed.
            feeds: `input_ids`, `attention_mask`, `token_type_ids`: int64 [B, T], padded on the right; or what
                `joined_feeds` gives.
            policies: one for the whole batch, or one for each item.
            clock: seconds, by which runs are timed.
        """
        self._pipeline = pipeline
        self._clock = clock
        self._run_stage = run_stage
        self._state: dict[str, Array] = dict(feeds)
        self._policy = _batch_policy(policies)
        self._lengths: list[int] = feeds["attention_mask"].sum(axis=1).tolist()
        self._longest: int = max(self._lengths)
        self._beyond: Flags | None = None
        self.rows: Rows = np.arange(len(self._lengths))
        self.stage = 0

    @classmethod
    def merge(cls, passes: Sequence["Pass"]) -> "Pass":
        """One pass of the items of several that stand before the same stage of one student; these are spent.

        Its rows are numbered anew, in the order given. A single pass goes on as it is, without a copy.
        """
        merged = passes[0]
        if len(passes) > 1:
            merged = merged._copy()
            merged._policy = _merged_policy(passes)
            merged._lengths = [length for going in passes for length in going._lengths]
            merged._longest = max(going._longest for going in passes)
            merged._beyond = None
            merged._state = {c.source: merged._joined(c, passes) for c in merged._carried()}
        merged.rows = np.arange(len(merged._lengths))
        return merged

    def _joined(self, carried: Carried, passes: Sequence["Pass"]) -> Array:
        """One carried tensor of all passes: [n, ...], or [n, T, ...] with short ones filled up to the longest."""
        values = [going._state[carried.source] for going in passes]
        # the first texts of pairs have lengths of their own
        longest = self._longest if carried.has_tokens else max(value.shape[1:2] or (1,) for value in values)[0]
        if values[0].ndim == 1 or all(value.shape[1] == longest for value in values):
            return np.concatenate(values)
        filler = self._pipeline.pad_id if carried.source == "input_ids" else 0
        shape = (len(self._lengths), longest, *values[0].shape[2:])
        joined = np.full(shape, filler, dtype=values[0].dtype)
        first = 0
        for value in values:
            joined[first : first + len(value), : value.shape[1]] = value
            first += len(value)
        return joined

    @property
    def done(self) -> bool:
        """Whether nobody is left."""
        return len(self.rows) == 0

    @property
    def longest(self) -> int:
        """Tokens of the longest item."""
        return self._longest

    def step(self) -> Stepped:
        """Run the next stage, decide who leaves, keep the survivors.

        Raises:
            RunFailed: the graph failed, or wrote another number of items. The pass is as it was: `halves` may go on.
        """
        plan = self._pipeline.stages[self.stage]
        threshold = self._threshold(plan)
        leave = None if threshold is None else plan.leave
        began = self._clock()
        outputs = self._outputs(plan, leave)
        run_s = self._clock() - began
        raw = None if leave is None else outputs[leave.output]
        leaves, sure = self._leaving(leave, threshold, raw)
        leaving = 0 if raw is None else int(np.count_nonzero(leaves))
        rows, longest, lengths = self.rows, self._counted(), self._lengths
        stepped = Stepped(self.stage, rows, leaves, leaving, raw, sure, plan.exit_index, longest, lengths, run_s)
        for name, source in plan.writes:
            self._state[source] = outputs[name]
        self.stage += 1
        self._keep(None if leaving == 0 else ~leaves, plan.carried)
        self._zero_beyond([source for _, source in plan.writes])
        return stepped

    def _counted(self) -> int:
        """As how many tokens the longest item counts."""
        first = self._state.get(_FIRST_MASK)
        return self._longest if first is None or self._longest == 1 else joined_length(first.shape[1], self._longest)

    def _threshold(self, plan: StagePlan) -> float | Doubles | None:
        """That of a stage's exit, or each item's; None where nobody may leave."""
        if plan.exit_index is None:
            return None
        return _ALWAYS if plan.exit_index == len(self._pipeline.exits) - 1 else self._policy.at(plan.exit_index)

    def _outputs(self, plan: StagePlan, leave: Leave | None) -> Mapping[str, Array]:
        """What a stage's graph writes of what somebody reads. Raises: RunFailed."""
        wanted = plan.names if leave is None else plan.names_with_exit
        if not wanted:
            return {}
        feeds = {tensor: self._state[source] for tensor, source in plan.inputs}
        outputs = self._run_stage(self.stage, feeds, wanted)
        for name in wanted:
            if len(outputs[name]) != len(self.rows):
                raise RunFailed(f"stage {plan.id} wrote {len(outputs[name])} items, not {len(self.rows)}")
        return outputs

    def drop(self, gone: Flags) -> None:
        """Take items out before the next stage. Args: gone: bool [n], in the order of `rows`."""
        self._keep(~gone, self._carried())

    def _carried(self) -> tuple[Carried, ...]:
        if self.stage == 0:
            return tuple(Carried(source, _is_long(source, value)) for source, value in self._state.items())
        return self._pipeline.stages[self.stage - 1].carried

    def halves(self) -> tuple["Pass", "Pass"]:
        """Two passes that go on from here with half of the items each; this one is spent."""
        first = np.arange(len(self.rows)) < len(self.rows) // 2
        return self._only(first), self._only(~first)

    def _only(self, keep: Flags) -> "Pass":
        part = self._copy()
        part.drop(~keep)
        return part

    def _copy(self) -> "Pass":
        copy = object.__new__(Pass)
        copy._pipeline, copy._run_stage, copy._policy = self._pipeline, self._run_stage, self._policy
        copy._state, copy._lengths, copy._longest = dict(self._state), self._lengths, self._longest
        copy._beyond = self._beyond
        copy.rows, copy.stage, copy._clock = self.rows, self.stage, self._clock
        return copy

    def _leaving(
        self, leave: Leave | None, threshold: float | Doubles | None, raw: Floats | None
    ) -> tuple[Flags, Doubles | None]:
        """Who is answered, and the largest probability of each item where that is what decides."""
        n = len(self.rows)
        if leave is None or threshold is None or raw is None:
            return np.zeros(n, dtype=np.bool_), None
        if isinstance(threshold, float) and math.isinf(threshold):
            return np.full(n, threshold == _ALWAYS), None
        rule = self._policy.confidence
        sure = heads.certainty(raw, temperature=leave.temperature, rule=rule)
        return np.asarray(sure >= threshold), sure if rule == "max_probability" else None

    def _keep(self, keep: Flags | None, carried: tuple[Carried, ...]) -> None:
        """Compact every carried array to the items kept (None: everyone) and to their longest."""
        kept = None if keep is None else np.flatnonzero(keep)
        if kept is not None:
            self.rows = self.rows[kept]
            self._lengths = [self._lengths[place] for place in kept.tolist()]
            if self.done:
                self._state = {}
                return
            self._policy = self._policy.select(kept)
            self._longest = max(self._lengths)
            self._beyond = None
        state = {}
        for c in carried:
            value = self._state[c.source]
            if c.has_tokens and value.shape[1] > self._longest:
                value = value[:, : self._longest]
            state[c.source] = value if kept is None else value[kept]
        self._state = state

    def _zero_beyond(self, sources: Sequence[str]) -> None:
        """Overwrite what a stage wrote beyond each item's own length."""
        if self.done or min(self._lengths) == self._longest:
            return
        written = [c.source for c in self._carried() if c.has_tokens and c.source in sources]
        floats = [self._state[source] for source in written if self._state[source].dtype == np.float32]
        if self._beyond is None:
            # kept while nobody leaves: after a graph has run the caches are cold, and it costs ten times its work
            self._beyond = np.arange(self._longest) >= np.array(self._lengths)[:, None]
        for value in floats:
            value[self._beyond] = 0.0

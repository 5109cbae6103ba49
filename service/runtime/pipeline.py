"""A batch's way through the stages: what each stage reads, who leaves after it, what the survivors carry on.

Pure numpy; the graphs themselves are run by a function that the caller gives. `Student.run` and the engine both go
through `Pass`, so that they cannot differ. B items, T tokens, H hidden, C labels; n items still on their way.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from service.bundle.manifest import TOKEN_INPUTS, Confidence, Exit, Manifest
from service.errors import RunFailed
from service.runtime import heads
from service.runtime.heads import Doubles, ExitPolicy, Flags, Floats

Array = npt.NDArray[Any]
Rows = npt.NDArray[np.int64]
RunStage = Callable[[int, Mapping[str, Array]], Mapping[str, Array]]


@dataclass(frozen=True, slots=True)
class Carried:
    """A tensor that later stages read: its source, and whether its second dim is T."""

    source: str
    has_tokens: bool


@dataclass(frozen=True, slots=True)
class StagePlan:
    """One stage, worked out beforehand.

    Attributes:
        id: the manifest's stage id.
        inputs: (tensor name, source) pairs to feed.
        writes: (tensor name, source) of the outputs that later stages read.
        carried: everything that later stages read.
        exit_index: which exit lies here, or None.
        leave: that exit.
    """

    id: str
    inputs: tuple[tuple[str, str], ...]
    writes: tuple[tuple[str, str], ...]
    carried: tuple[Carried, ...]
    exit_index: int | None
    leave: Exit | None


@dataclass(frozen=True, slots=True)
class Pipeline:
    """All stages of a student in order. The last one has an exit."""

    stages: tuple[StagePlan, ...]
    exits: tuple[Exit, ...]


def pipeline_of(manifest: Manifest) -> Pipeline:
    """Work out a manifest's pipeline."""
    stages = tuple(_stage_plan(manifest, place) for place in range(len(manifest.stages)))
    return Pipeline(stages, manifest.exits)


def _stage_plan(manifest: Manifest, place: int) -> StagePlan:
    stage = manifest.stages[place]
    later = {source for following in manifest.stages[place + 1 :] for source in following.inputs.values()}
    before = [f"{s.id}.{name}" for s in manifest.stages[: place + 1] for name in s.outputs]
    exits = [i for i, leave in enumerate(manifest.exits) if leave.stage == stage.id]
    return StagePlan(
        id=stage.id,
        inputs=tuple(stage.inputs.items()),
        writes=tuple((name, f"{stage.id}.{name}") for name in stage.outputs if f"{stage.id}.{name}" in later),
        carried=tuple(Carried(s, _has_tokens(manifest, s)) for s in (*TOKEN_INPUTS, *before) if s in later),
        exit_index=exits[0] if exits else None,
        leave=manifest.exits[exits[0]] if exits else None,
    )


def _has_tokens(manifest: Manifest, source: str) -> bool:
    if source in TOKEN_INPUTS:
        return True
    stage_id, _, output = source.partition(".")
    return manifest.stage(stage_id).outputs[output].dims[1:2] == ("T",)


@dataclass(frozen=True, slots=True)
class Stepped:
    """What one stage did with the n items that went in.

    Attributes:
        stage: its index.
        rows: int64 [n], the items' places in the batch as it began.
        leaves: bool [n], who is answered here.
        raw: float32 [n, ...], this exit's raw output of all n; None where the stage has no exit.
        exit_index: which exit that is.
        lengths: int64 [n], the items' own lengths.
        longest: the largest of them.
        run_s: seconds inside the graph.
    """

    stage: int
    rows: Rows
    leaves: Flags
    raw: Floats | None
    exit_index: int | None
    lengths: Rows
    longest: int
    run_s: float

    @property
    def padded_tokens(self) -> int:
        """Tokens that were computed."""
        return len(self.lengths) * self.longest

    @property
    def real_tokens(self) -> int:
        """Tokens that are the items' own."""
        return int(self.lengths.sum())


@dataclass(frozen=True, slots=True)
class _BatchPolicy:
    """The items' policies: one that all share, or float64 [n, exits - 1] with NaN where nobody leaves."""

    thresholds: tuple[float | None, ...] | Doubles
    confidence: Confidence

    def at(self, exit_index: int) -> float | Doubles | None:
        """The threshold, or each item's; None where nobody leaves."""
        if isinstance(self.thresholds, tuple):
            return self.thresholds[exit_index]
        return np.asarray(self.thresholds[:, exit_index])

    def select(self, kept: Rows) -> "_BatchPolicy":
        """Those of the items kept."""
        if isinstance(self.thresholds, tuple):
            return self
        return _BatchPolicy(self.thresholds[kept], self.confidence)


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
    ) -> None:
        """Begin before the first stage.

        Args:
            pipeline: the student's.
            run_stage: (stage index, feeds by tensor name) to outputs by tensor name; raises RunFailed.
            feeds: `input_ids`, `attention_mask`, `token_type_ids`: int64 [B, T], padded on the right.
            policies: one for the whole batch, or one for each item.
        """
        self._pipeline = pipeline
        self._run_stage = run_stage
        self._state: dict[str, Array] = dict(feeds)
        self._policy = _batch_policy(policies)
        self._lengths: Rows = feeds["attention_mask"].sum(axis=1)
        self._longest = int(self._lengths.max())
        self.rows: Rows = np.arange(len(self._lengths))
        self.stage = 0

    @property
    def done(self) -> bool:
        """Whether nobody is left."""
        return len(self.rows) == 0

    def step(self) -> Stepped:
        """Run the next stage, decide who leaves, keep the survivors.

        Raises:
            RunFailed: the graph failed, or wrote another number of items. The pass is as it was: `halves` may go on.
        """
        plan = self._pipeline.stages[self.stage]
        began = time.perf_counter()
        outputs = self._run_stage(self.stage, {tensor: self._state[source] for tensor, source in plan.inputs})
        run_s = time.perf_counter() - began
        raw = None if plan.leave is None else outputs[plan.leave.output]
        if raw is not None and len(raw) != len(self.rows):
            raise RunFailed(f"stage {plan.id} wrote {len(raw)} items, not {len(self.rows)}")
        leaves = self._leaving(plan, raw)
        stepped = Stepped(self.stage, self.rows, leaves, raw, plan.exit_index, self._lengths, self._longest, run_s)
        for name, source in plan.writes:
            self._state[source] = outputs[name]
        self.stage += 1
        self._keep(~leaves, plan.carried)
        return stepped

    def drop(self, gone: Flags) -> None:
        """Take items out before the next stage. Args: gone: bool [n], in the order of `rows`."""
        if self.stage == 0:
            carried = tuple(Carried(source, True) for source in self._state)
        else:
            carried = self._pipeline.stages[self.stage - 1].carried
        self._keep(~gone, carried)

    def halves(self) -> tuple["Pass", "Pass"]:
        """Two passes that go on from here with half of the items each; this one is spent."""
        first = np.arange(len(self.rows)) < len(self.rows) // 2
        return self._only(first), self._only(~first)

    def _only(self, keep: Flags) -> "Pass":
        part = object.__new__(Pass)
        part._pipeline, part._run_stage, part._policy = self._pipeline, self._run_stage, self._policy
        part._state, part._lengths, part._longest = dict(self._state), self._lengths, self._longest
        part.rows, part.stage = self.rows, self.stage
        part.drop(~keep)
        return part

    def _leaving(self, plan: StagePlan, raw: Floats | None) -> Flags:
        n = len(self.rows)
        if plan.leave is None or plan.exit_index is None or raw is None:
            return np.zeros(n, dtype=np.bool_)
        if plan.exit_index == len(self._pipeline.exits) - 1:
            return np.ones(n, dtype=np.bool_)
        threshold = self._policy.at(plan.exit_index)
        if threshold is None:
            return np.zeros(n, dtype=np.bool_)
        sure = heads.certainty(raw, temperature=plan.leave.temperature, rule=self._policy.confidence)
        return np.asarray(sure >= threshold)

    def _keep(self, keep: Flags, carried: tuple[Carried, ...]) -> None:
        """Compact every carried array to the items kept and to their longest."""
        kept = np.flatnonzero(keep)
        everyone = len(kept) == len(keep)
        if not everyone:
            self.rows, self._lengths = self.rows[kept], self._lengths[kept]
        if self.done:
            self._state = {}
            return
        if not everyone:
            self._policy = self._policy.select(kept)
        self._longest = int(self._lengths.max())
        state = {}
        for c in carried:
            value = self._state[c.source]
            if c.has_tokens and value.shape[1] > self._longest:
                value = value[:, : self._longest]
            state[c.source] = value if everyone else value[kept]
        self._state = state
        self._zero_beyond([state[c.source] for c in carried if c.has_tokens])

    def _zero_beyond(self, values: Sequence[Array]) -> None:
        """Overwrite what stages wrote beyond each item's own length."""
        floats = [value for value in values if value.dtype == np.float32]
        if floats and int(self._lengths.min()) < self._longest:
            beyond = np.arange(self._longest) >= self._lengths[:, None]
            for value in floats:
                value[beyond] = 0.0

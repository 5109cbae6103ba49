"""A student's stages worked out: what each reads and writes, what later ones still need, where exits lie."""

from collections.abc import Sequence
from dataclasses import dataclass

from service.bundle.manifest import Exit, Manifest, Stage
from service.bundle.sources import SIDES, TOKEN_INPUTS, TOKEN_TYPES, side_of

ALL_STAGES = "all stages"
"""The id of a pipeline's stages run as one; no stage of a manifest can have it."""


@dataclass(frozen=True, slots=True)
class Carried:
    """A tensor that later stages read: its source, and whether its second dim is T."""

    source: str
    has_tokens: bool


@dataclass(frozen=True, slots=True)
class StateExit:
    """Where a text that was read apart ends: with a state that a later pipeline joins to another text's."""

    id: str
    stage: str
    output: str
    temperature: float = 1.0
    answer_temperature: float = 1.0


Leave = Exit | StateExit


@dataclass(frozen=True, slots=True)
class StagePlan:
    """One stage, worked out beforehand.

    Attributes:
        id: the manifest's stage id.
        inputs: (tensor name, source) pairs to feed.
        writes: (tensor name, source) of the outputs that later stages read.
        names: of those outputs...
        names_with_exit: ...and of the exit's as well.
        carried: everything that later stages read.
        exit_index: which exit lies here, or None.
        leave: that exit.
    """

    id: str
    inputs: tuple[tuple[str, str], ...]
    writes: tuple[tuple[str, str], ...]
    names: tuple[str, ...]
    names_with_exit: tuple[str, ...]
    carried: tuple[Carried, ...]
    exit_index: int | None
    leave: Leave | None


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Stages in order, of which the last one has an exit.

    Attributes:
        stages, exits: of it.
        pad_id: fills short rows of ids.
        joins: the output, `STAGE.OUTPUT`, of another pipeline that this one reads of two texts; None: it reads ids.
        reads_types: whether a stage reads token types.
    """

    stages: tuple[StagePlan, ...]
    exits: tuple[Leave, ...]
    pad_id: int = 0
    joins: str | None = None
    reads_types: bool = True


def pipeline_of(manifest: Manifest) -> Pipeline:
    """A manifest's pipeline; where texts are read apart, the stages that join them."""
    joins = None
    if manifest.apart:
        leave = _state_exit(manifest)
        joins = f"{leave.stage}.{leave.output}"
    return _pipeline(manifest, manifest.stages[manifest.apart :], manifest.exits, joins)


def apart_pipeline_of(manifest: Manifest) -> Pipeline:
    """The stages that read one text of a pair by itself; its only exit is what the others join."""
    return _pipeline(manifest, manifest.stages[: manifest.apart], (_state_exit(manifest),), None)


def unsplit_pipeline_of(manifest: Manifest) -> Pipeline:
    """All stages of a pipeline as one, which has the last exit alone."""
    leave, read = manifest.exits[-1], {source for stage in manifest.stages for source in stage.inputs.values()}
    stage = StagePlan(
        id=ALL_STAGES,
        inputs=tuple((source, source) for source in TOKEN_INPUTS if source in read),
        writes=(),
        names=(),
        names_with_exit=(leave.output,),
        carried=(),
        exit_index=len(manifest.exits) - 1,
        leave=leave,
    )
    return Pipeline((stage,), manifest.exits, manifest.tokenizer.pad_id, reads_types=TOKEN_TYPES in read)


def _state_exit(manifest: Manifest) -> StateExit:
    last = manifest.stages[manifest.apart - 1]
    read = {side_of(source)[1] for stage in manifest.stages[manifest.apart :] for source in stage.inputs.values()}
    return StateExit("state", last.id, next(name for name in last.outputs if f"{last.id}.{name}" in read))


def _pipeline(manifest: Manifest, stages: Sequence[Stage], exits: tuple[Leave, ...], joins: str | None) -> Pipeline:
    plans = tuple(_stage_plan(manifest, stages, exits, place) for place in range(len(stages)))
    reads_types = any(side_of(source)[1] == TOKEN_TYPES for stage in stages for source in stage.inputs.values())
    return Pipeline(plans, exits, manifest.tokenizer.pad_id, joins, reads_types)


def _stage_plan(manifest: Manifest, stages: Sequence[Stage], exits: tuple[Leave, ...], place: int) -> StagePlan:
    stage = stages[place]
    later = {source for following in stages[place + 1 :] for source in following.inputs.values()}
    written = manifest.stages[: manifest.stages.index(stage) + 1]
    own = [*TOKEN_INPUTS, *(f"{s.id}.{name}" for s in written for name in s.outputs)]
    sources = [*own, *(f"{side}:{source}" for side in SIDES for source in own)]
    here = [i for i, leave in enumerate(exits) if leave.stage == stage.id]
    writes = tuple((name, f"{stage.id}.{name}") for name in stage.outputs if f"{stage.id}.{name}" in later)
    names = tuple(name for name, _ in writes)
    left = {exits[i].output for i in here}
    return StagePlan(
        id=stage.id,
        inputs=tuple(stage.inputs.items()),
        writes=writes,
        names=names,
        names_with_exit=tuple(name for name in stage.outputs if name in left or name in names),
        carried=tuple(Carried(s, _has_tokens(manifest, s)) for s in sources if s in later),
        exit_index=here[0] if here else None,
        leave=exits[here[0]] if here else None,
    )


def _has_tokens(manifest: Manifest, source: str) -> bool:
    """Whether its second dim is the items' length, which for a pair that is joined is the second text's."""
    side, own = side_of(source)
    if side == SIDES[0]:
        return False
    if own in TOKEN_INPUTS:
        return True
    stage_id, _, output = own.partition(".")
    return manifest.stage(stage_id).outputs[output].dims[1:2] == ("T",)

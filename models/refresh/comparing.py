"""Many students of one task, made or found made, measured on the same dev rows in one run."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

from models.errors import DataInvalid, OfflineError
from models.evaluate.footprint import METHOD, memory_of, parameters_of, served_bytes
from models.evaluate.opening import open_bundle
from models.evaluate.quality import layers_of
from models.evaluate.rerank_speed import known_us
from models.evaluate.speed import (
    BATCH_ITEMS,
    REPEATS,
    SINGLE_ROWS,
    Contender,
    Timing,
    machine_name,
    measure,
    pinned,
    student_contenders,
)
from models.evaluate.standing import MEASURES, Standing
from models.evaluate.variants import Variant, require_backends
from models.recipe.parts import FIRST_BACKEND, Recipe
from models.refresh.cache import StepCache
from models.refresh.cards import Target, require_same, targets_of
from models.refresh.comparable import common, fits, one_task, takes
from models.refresh.drafted import Drafted
from models.refresh.grounds import Ground, Judge, ground_of
from models.refresh.progress import Reporter
from models.report.frontier import Comparison, Point
from service.bundle.load import Bundle, load_bundle
from service.errors import BundleError, ServiceError, SettingsInvalid
from service.runtime.student import Student

MOST_ROWS: Final = 1_000

_MENDABLE = (OfflineError, BundleError, SettingsInvalid, ServiceError)


@dataclass(frozen=True, slots=True)
class Costing:
    """How costs are taken.

    core: None: the last allowed. most_rows: about so many dev texts are run at batch 32; single_rows: at batch 1.
    repeats: the median counts.
    """

    backend: str = FIRST_BACKEND
    core: int | None = None
    most_rows: int = MOST_ROWS
    single_rows: int = SINGLE_ROWS
    repeats: int = REPEATS


@dataclass(frozen=True, slots=True)
class Field:
    """Who is compared.

    recipes: at least one, each with the name of its file, for people. students: further ones, as `NAME`,
    `NAME@VERSION` or `NAME@ALIAS` in `store`, or a bundle's folder. teacher: such a reference to the teacher as a
    bundle, whose costs are measured too. stored_only: the recipes say the dev rows and baselines alone; their students
    and teachers are not made, so nothing is beside a teacher's quality.
    """

    recipes: tuple[tuple[str, Recipe], ...]
    store: Path
    students: tuple[str, ...] = ()
    teacher: str | None = None
    stored_only: bool = False


@dataclass(frozen=True, slots=True)
class _Entrant:
    """A bundle to be measured, and what it reaches; a reference needs no standing."""

    name: str
    bundle: Bundle
    precision: str
    standings: tuple[Standing, ...]
    reference: bool = False

    @property
    def risks(self) -> tuple[float, ...]:
        return tuple(each.risk for each in self.standings if each.risk is not None)


@dataclass(frozen=True, slots=True)
class _Judged:
    """A teacher: its judge, and what is known of it."""

    judge: Judge
    recipes: tuple[str, ...]
    parameters: int
    weight_bytes: int


def carded(field: Field, references: Sequence[str]) -> tuple[Target, ...]:
    """The versions of the store among those compared whose cards are to get the comparison. Raises: `targets_of`."""
    made = () if field.stored_only else field.recipes
    recipes = dict(zip(unique_names(made), (recipe for _, recipe in made), strict=True))
    return targets_of(references, store=field.store, recipes=recipes, students=_opened(field)) if references else ()


@dataclass(frozen=True, slots=True)
class _Costs:
    """What was timed: timings by contender, mode and batch; `known_us` of rankers that keep passages, by name; how."""

    timings: Mapping[tuple[str, str, int], Timing]
    known_us: Mapping[str, float]
    how: str


def compare(
    field: Field, costing: Costing, cache: StepCache, reporter: Reporter, *, targets: Sequence[Target] = ()
) -> Comparison:
    """Make what is not made yet, and measure all of it.

    Args:
        targets: from `carded`; that their recipes' students are what was published is proven before costs are taken.
    Raises:
        OfflineError: a recipe or its data are wrong, or recipes do not stand on the same dev rows; a student or the
            teacher's bundle does not fit them. Nothing was made.
        StoreError, BundleError: a student or the teacher's bundle is not there, or broken. Nothing was made.
    """
    require_backends([costing.backend], where="--backend")
    if field.stored_only and not field.students:
        raise DataInvalid("--stored-only: there is nothing to compare; give --student")
    one_task(field.recipes)
    others = _opened(field)
    teacher = None if field.teacher is None else open_bundle(field.teacher, store=field.store)
    names = unique_names(field.recipes)
    grounds = {name: ground_of(recipe, cache, reporter) for name, (_, recipe) in zip(names, field.recipes, strict=True)}
    ground = common(grounds)
    for name, bundle in others.items():
        fits(f"student {name}", bundle.manifest, ground)
    if teacher is not None:
        takes(f"--teacher {field.teacher}", teacher.manifest, ground)
    return _Comparing(ground, costing, reporter, targets).run({} if field.stored_only else grounds, others, teacher)


def _opened(field: Field) -> dict[str, Bundle]:
    """The further students by NAME@VERSION; a bundle that lies elsewhere by its name and its folder's."""
    found: dict[str, Bundle] = {}
    for reference in dict.fromkeys(field.students):
        bundle = open_bundle(reference, store=field.store)
        name, folder = bundle.manifest.name, bundle.path.resolve().name
        shown = f"{name}@{folder}" if folder.isdecimal() else f"{name} in {folder}"
        found[shown if shown not in found else f"{shown} {len(found) + 1}"] = bundle
    return found


def unique_names(recipes: Sequence[tuple[str, Recipe]]) -> tuple[str, ...]:
    """What each is called: the recipe's name; with its file's where two share a name; then with a number."""
    names = [recipe.name for _, recipe in recipes]
    longer = [
        name if names.count(name) == 1 else f"{name} ({file})" for name, (file, _) in zip(names, recipes, strict=True)
    ]
    return tuple(
        name if longer.count(name) == 1 else f"{name} {longer[:at].count(name) + 1}" for at, name in enumerate(longer)
    )


class _Comparing:
    """One comparison at work. Owner: one thread, which calls `run` once."""

    def __init__(self, ground: Ground, costing: Costing, reporter: Reporter, targets: Sequence[Target]) -> None:
        self.ground = ground
        self.costing = costing
        self.reporter = reporter
        self.targets = targets
        self.judged: dict[str, _Judged] = {}

    def run(self, grounds: Mapping[str, Ground], others: Mapping[str, Bundle], teacher: Bundle | None) -> Comparison:
        """Make, judge, take the costs."""
        found = {name: self._made(name, each) for name, each in grounds.items()}
        entrants = [each for each in found.values() if isinstance(each, _Entrant)]
        failed = [each for each in found.values() if isinstance(each, Point)]
        require_same(self.targets, {each.name: each.bundle.manifest for each in entrants})
        entrants += [self._stored(name, bundle) for name, bundle in others.items()]
        if teacher is not None:
            precision = "fp32" if "fp32" in teacher.manifest.precisions else teacher.manifest.default_precision
            entrants.append(_Entrant("teacher", teacher, precision, (), reference=True))
        costs = self._timed(entrants) if entrants else _Costs({}, {}, "nothing was timed")
        points = [point for each in entrants for point in self._points(each, costs)]
        return Comparison(
            task=self.ground.task,
            measure=MEASURES[self.ground.task],
            split=f"{self.ground.rows:,} dev {self.ground.unit}",
            timed=costs.how,
            points=(
                *(point for point in points if not point.reference),
                *failed,
                *self._references([point for point in points if point.reference]),
            ),
            notes=self._notes(entrants, others),
        )

    def _made(self, name: str, ground: Ground) -> "_Entrant | Point":
        """The recipe's student, measured; or what to say where it could not be made."""
        self.reporter.say(f"compare: {name}")
        try:
            made = ground.draft()
            judge = self._judge_of(name, ground, made)
            return self._entrant(name, load_bundle(made.bundle), judge)
        except _MENDABLE as error:
            self.reporter.say(f"compare: {name}: not made: {error}")
            return Point(name, failed=" ".join(str(error).split()))

    def _stored(self, name: str, bundle: Bundle) -> _Entrant:
        self.reporter.say(f"compare: {name}")
        known = self.judged.get(bundle.manifest.provenance.teacher)
        return self._entrant(name, bundle, known.judge if known else self.ground.judge(None))

    def _entrant(self, name: str, bundle: Bundle, judge: Judge) -> _Entrant:
        precision = bundle.manifest.default_precision
        return _Entrant(name, bundle, precision, judge.students(self._load(bundle, precision)))

    def _load(self, bundle: Bundle, precision: str) -> Student:
        return Variant(self.costing.backend, precision).load(bundle)

    def _judge_of(self, name: str, ground: Ground, made: Drafted) -> Judge:
        """One a teacher, however many students it has."""
        known = self.judged.get(made.teacher_name)
        if known is None:
            tensors = list(made.teacher.encoder_state().values())
            known = _Judged(
                judge=ground.judge(made.teacher),
                recipes=(),
                parameters=sum(tensor.numel() for tensor in tensors),
                weight_bytes=sum(tensor.numel() * tensor.element_size() for tensor in tensors),
            )
        self.judged[made.teacher_name] = replace(known, recipes=(*known.recipes, name))
        return known.judge

    def _timed(self, entrants: Sequence[_Entrant]) -> _Costs:
        """Every entrant in every setting, interleaved on one core; and how it was done."""
        costing, texts = self.costing, self.ground.texts
        pairs = [text for text in texts if isinstance(text, tuple)]
        chosen = texts[:: max(1, len(texts) // costing.most_rows)]
        self.reporter.say(f"compare: timing {len(entrants)} bundles on {len(chosen):,} texts")
        with pinned(costing.core) as core:
            students = [self._load(each.bundle, each.precision) for each in entrants]
            contenders = [
                contender
                for each, student in zip(entrants, students, strict=True)
                for contender in _contenders(each, student)
            ]
            timed = partial(
                measure,
                contenders,
                chosen,
                # the references stand last: a teacher's bundle has the most tokens to lose
                order_by=students[-1].encoder,
                repeats=costing.repeats,
                single_rows=costing.single_rows,
                clock=time.process_time,
            )
            found = (*timed(modes=("ids",)), *timed(modes=("texts",), batch_sizes=(1,)))
            known = {
                each.name: known_us(student, pairs, most_pairs=costing.most_rows, repeats=costing.repeats)
                for each, student in zip(entrants, students, strict=True)
                if self.ground.task == "rank" and student.apart is not None
            }
        machine = machine_name(tuple(dict.fromkeys((FIRST_BACKEND, costing.backend))))
        where = "no core pinned" if core is None else f"core {core} pinned"
        repeats = f"median of {costing.repeats} interleaved repeats over {len(chosen):,} texts"
        how = f"{machine}; {where}, one thread, {repeats}"
        return _Costs({(each.contender, each.mode, each.batch_items): each for each in found}, known, how)

    def _points(self, each: _Entrant, costs: _Costs) -> list[Point]:
        self.reporter.say(f"compare: memory of {each.name}")
        manifest, layers = each.bundle.manifest, layers_of(each.bundle.manifest)
        memory = memory_of(each.bundle.path, self.ground.texts, backend=self.costing.backend, precision=each.precision)
        whole = Point(
            name=each.name,
            memory_bytes=memory.added_bytes,
            bundle_bytes=served_bytes(manifest),
            layers=layers[-1] if layers else None,
            parameters=parameters_of(each.bundle, each.precision),
            us_known=costs.known_us.get(each.name),
            reference=each.reference,
        )
        if each.reference:
            return [_with_times(whole, _key(each.name, None), costs.timings)]
        return [
            _with_times(_with_standing(whole, standing), _key(each.name, standing.risk), costs.timings)
            for standing in each.standings
        ]

    def _references(self, measured: Sequence[Point]) -> list[Point]:
        """The teachers, with their costs where one bundle stands for the only one, and the baselines."""
        points = []
        for known in self.judged.values():
            name = "teacher" if len(self.judged) == 1 else f"teacher of {', '.join(known.recipes)}"
            costs = measured[0] if len(self.judged) == 1 and measured else Point(name, reference=True)
            teacher = replace(costs, name=name, parameters=known.parameters)
            if not measured:
                teacher = replace(teacher, bundle_bytes=known.weight_bytes)
            if known.judge.teacher is not None:
                points.append(_with_standing(teacher, known.judge.teacher))
        if len(self.judged) != 1:
            points += measured
        baselines = self.ground.baselines().items()
        return [*points, *(_with_standing(Point(name, reference=True), standing) for name, standing in baselines)]

    def _notes(self, entrants: Sequence[_Entrant], others: Mapping[str, Bundle]) -> tuple[str, ...]:
        ground = self.ground
        notes = [
            f"Quality is measured on the recipes' dev split ({ground.rows:,} {ground.unit}), never on test: this table "
            "chooses, and test is opened once, for the version that is published. Intervals are 95%, bootstrapped over "
            "the dev rows.",
            "Costs are seconds of the processor's time, of all threads, not of the clock, so that other work on the "
            "machine counts little; ids are given but for the last of the three.",
            f"Memory: {METHOD}. Bundle: every file but the report card, all precisions; of a teacher without a bundle, "
            "its weights.",
        ]
        if ground.task == "rank":
            notes.append(
                "Costs are a pair's: query and passage. Known passages, of rankers that keep them: the query is read, "
                "and joined with what was kept of its candidates; the frontier counts every passage as new."
            )
        if any(each.risks for each in entrants):
            notes.append(
                "Temperatures and the rules of the operating points were chosen on these dev rows too (the risks were "
                "certified on others), so an operating point looks a little better here than it is."
            )
        lengths = {each.bundle.manifest.max_tokens for each in entrants}
        if len(lengths) > 1:
            notes.append(
                f"Students read up to {min(lengths)} to {max(lengths)} tokens: a longer text is not equal work."
            )
        notes += [
            f"{name}: its provenance does not name these dev rows: it may have learnt from them."
            for name, bundle in others.items()
            if ground.known_by not in {source.sha256 for source in bundle.manifest.provenance.data}
        ]
        return tuple(notes)


def _contenders(each: _Entrant, student: Student) -> list[Contender]:
    found = student_contenders(student, each.risks)
    return [replace(it, name=_key(each.name, risk)) for it, risk in zip(found, (*each.risks, None), strict=True)]


def _key(name: str, risk: float | None) -> str:
    return f"{name}, {'full depth' if risk is None else f'risk {risk:g}'}"


def _with_standing(point: Point, standing: Standing) -> Point:
    return replace(
        point,
        setting=standing.setting,
        quality=standing.quality,
        macro_f1=standing.macro_f1,
        retention=standing.retention,
    )


def _with_times(point: Point, key: str, timings: Mapping[tuple[str, str, int], Timing]) -> Point:
    return replace(
        point,
        us_per_text=1000 * timings[key, "ids", BATCH_ITEMS].ms_per_text,
        us_alone=1000 * timings[key, "ids", 1].ms_per_text,
        ms_whole=timings[key, "texts", 1].ms_per_text,
    )

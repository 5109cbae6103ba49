"""What the students of one comparison stand on: the dev rows of their recipes, and how each task is judged on them.

Never test: a comparison chooses, and test is for what was chosen.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from models.data.rows import text_of
from models.errors import DataInvalid
from models.evaluate.baseline import NAME as TFIDF
from models.evaluate.embedding import pair_texts
from models.evaluate.quality import EvaluationRows
from models.evaluate.rankers import TEACHER, bm25_order, given_order, student_scores, teacher_scores
from models.evaluate.ranking import Scored, compare_rankers
from models.evaluate.standing import (
    Standing,
    answers_standing,
    classify_standings,
    pairs_standing,
    rank_standing,
    vectors_standing,
)
from models.recipe.classify import classify_recipe
from models.recipe.embed import EmbedRecipe
from models.recipe.parts import Recipe
from models.recipe.rank import RankRecipe
from models.refresh import job
from models.refresh.baseline import baseline_answers
from models.refresh.cache import StepCache
from models.refresh.drafted import Drafted
from models.refresh.embed_job import embed_draft, start_embed
from models.refresh.embed_training import EmbedRun, unit_vectors
from models.refresh.progress import Reporter
from models.refresh.rank_job import rank_draft, start_rank
from models.refresh.rank_training import RankRun
from models.refresh.training import Run, teacher_labels
from models.teachers.teacher import Teacher
from service.bundle.manifest import Task
from service.runtime.encode import Text
from service.runtime.student import Student


@dataclass(frozen=True, slots=True)
class Judge:
    """Measures students on the dev rows beside one teacher, or beside none.

    teacher: what the teacher itself reaches. students: a student's settings, full depth first; retention is against
    this teacher.
    """

    teacher: Standing | None
    students: Callable[[Student], tuple[Standing, ...]]


@dataclass(frozen=True, slots=True)
class Ground:
    """One recipe, its data read, nothing made yet.

    digest: of the dev rows. known_by: the digest under which a provenance names them, or their file. rows: how many
    rows, pairs or queries (`unit`). texts: what is run when costs are taken. paired: whether each is two texts.
    draft: makes the student, or finds it made. judge: beside a teacher, or none. baselines: by name.
    """

    recipe: Recipe
    task: Task
    labels: tuple[str, ...]
    digest: str
    known_by: str | None
    rows: int
    unit: str
    texts: tuple[Text, ...]
    paired: bool
    draft: Callable[[], Drafted]
    judge: Callable[[Teacher | None], Judge]
    baselines: Callable[[], Mapping[str, Standing]]


def ground_of(recipe: Recipe, cache: StepCache, reporter: Reporter) -> Ground:
    """Read the recipe's data. Raises: OfflineError: recipe or data are wrong, or dev holds no rows."""
    if isinstance(recipe, EmbedRecipe):
        return _embed(start_embed(recipe, cache, reporter))
    if isinstance(recipe, RankRecipe):
        return _rank(start_rank(recipe, cache, reporter))
    return _classify(job.start(classify_recipe(recipe), cache, reporter))


def _classify(run: Run) -> Ground:
    splits, rows = run.splits, run.splits.dev
    texts = tuple(text_of(row) for row in rows)
    gold = tuple(str(row.label) for row in rows)

    bare = EvaluationRows(texts, gold)

    def judge(teacher: Teacher | None) -> Judge:
        if teacher is None:
            return Judge(None, lambda student: classify_standings(student, bare))
        answers = teacher_labels(run, teacher, rows)
        known = EvaluationRows(texts, gold, answers)
        return Judge(
            teacher=answers_standing(answers, bare, names=splits.labels),
            students=lambda student: classify_standings(student, known),
        )

    def baselines() -> Mapping[str, Standing]:
        answers = baseline_answers(run)["dev"]
        return {TFIDF: answers_standing(answers, bare, names=splits.labels)}

    return Ground(
        recipe=run.recipe,
        task="classify",
        labels=splits.labels,
        digest=splits.digests["dev"],
        known_by=splits.digests["dev"],
        rows=len(rows),
        unit="rows",
        texts=texts,
        paired=rows[0].text_pair is not None,
        draft=lambda: job.certified_draft(run),
        judge=judge,
        baselines=baselines,
    )


def _embed(run: EmbedRun) -> Ground:
    pairs, texts = run.splits.dev, pair_texts(run.splits.dev)

    def judge(teacher: Teacher | None) -> Judge:
        theirs = None if teacher is None else unit_vectors(teacher, texts)
        return Judge(
            teacher=None if theirs is None else vectors_standing(theirs, pairs),
            students=lambda student: (pairs_standing(student, pairs, teacher=theirs),),
        )

    return Ground(
        recipe=run.recipe,
        task="embed",
        labels=(),
        digest=run.splits.digests()["dev"],
        known_by=next((source.sha256 for source in run.splits.sources if source.role == "dev"), None),
        rows=len(pairs),
        unit="pairs",
        texts=tuple(texts),
        paired=False,
        draft=lambda: embed_draft(run),
        judge=judge,
        baselines=dict,
    )


def _rank(run: RankRun) -> Ground:
    rankings = run.splits.dev
    if not any(ranking.answered for ranking in rankings):
        raise DataInvalid(
            f"{run.recipe.name}: data.dev: no query has a relevant passage; there is nothing to compare on"
        )

    def judge(teacher: Teacher | None) -> Judge:
        other = given_order(rankings) if teacher is None else _scores(run, teacher)

        def students(student: Student) -> tuple[Standing, ...]:
            found = compare_rankers("dev", rankings, students=[student_scores(student, rankings)], teacher=other)
            return (rank_standing(found.students[0], against=None if teacher is None else TEACHER),)

        if teacher is None:
            return Judge(None, students)
        alone = compare_rankers("dev", rankings, students=(), teacher=other)
        return Judge(rank_standing(alone.teacher, against=None), students)

    def baselines() -> Mapping[str, Standing]:
        given, lexical = given_order(rankings), bm25_order(rankings)
        found = compare_rankers("dev", rankings, students=[lexical], teacher=given)
        return {each.ranker: rank_standing(each, against=None) for each in (found.teacher, *found.students)}

    return Ground(
        recipe=run.recipe,
        task="rank",
        labels=(),
        digest=run.splits.digests["dev"],
        known_by=run.splits.digests["dev"],
        rows=sum(ranking.answered for ranking in rankings),
        unit="queries",
        texts=tuple(pair for ranking in rankings for pair in ranking.pairs),
        paired=True,
        draft=lambda: rank_draft(run),
        judge=judge,
        baselines=baselines,
    )


def _scores(run: RankRun, teacher: Teacher) -> Scored:
    with run.reporter.step("teacher on dev") as progress:
        return teacher_scores(teacher, run.splits.dev, directory=run.labels, progress=progress)

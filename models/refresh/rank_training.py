"""The training steps of a rank refresh: teacher, lists, labels, student. Each is cached by what it depends on."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file

from models.data.dark_examples import DarkMaker, taken_by
from models.data.rank_lists import training_lists
from models.data.rank_sets import Ranking
from models.data.rankings import RankSplits, digest_of_rankings
from models.distill.bi_encoder import distil_vectors
from models.distill.rank import RankTransfer, distil_ranker
from models.distill.states import Apart, distil_states
from models.errors import TeacherInvalid
from models.evaluate.ranking import Scores
from models.recipe.bi_encoder import BiEncoderStudent
from models.recipe.rank import RankRecipe, RankShape, RankStudent, SplitRankerStudent
from models.refresh.arrays import save_array
from models.refresh.cache import StepCache
from models.refresh.progress import Reporter
from models.refresh.training import diverging
from models.students.bi_encoder import BiEncoder, BiEncoderConfig
from models.students.bi_start import new_bi_encoder
from models.students.cross_encoder import new_cross_encoder
from models.students.encoder import EncoderConfig, EncoderStudent
from models.students.split_ranker import SplitConfig, SplitRanker
from models.students.split_start import Sample, new_split_ranker, teacher_below
from models.students.student import Ranker
from models.students.vocabulary import Text, Trimmed, trim_tokenizer, untrimmed
from models.teachers.cross_encoder import GradedLists, cross_encoder, fine_tune_ranker
from models.teachers.labels import label
from models.teachers.pair_lists import PairLists, SplitLists, as_second, pair_lists, split_lists
from models.teachers.teacher import MeanPooled, Teacher, load_teacher
from models.teachers.tokens import Padded, Tokens, batches_in_order_of_length, tokenise

TEACHER_STEP, STUDENT_STEP = 1, 1
"""Raised when a step's code changes what it makes, so that folders made by the old code are not reused."""

_CHECKPOINT, _STATES_CHECKPOINT = "checkpoint.safetensors", "states.safetensors"
_PROBE_PAIRS = 16
_TRAINING_COST = 6.0  # measured for lists of paragraphs in batches of 8, and for pairs of sentences in batches of 32
_SAMPLE_TEXTS, _SAMPLE_BATCH = 160, 16


@dataclass(frozen=True, slots=True)
class RankRun:
    """What every step of one refresh shares."""

    recipe: RankRecipe
    splits: RankSplits
    cache: StepCache
    reporter: Reporter

    @property
    def labels(self) -> Path:
        """The folder of the teachers' cached scores."""
        return self.cache.root / "labels"


@dataclass(frozen=True, slots=True)
class TrainedRanker:
    """A trained student as it stands in its step's folder."""

    folder: Path
    student: Ranker
    trimmed: Trimmed


def first_teacher(recipe: RankRecipe) -> Teacher:
    """What the recipe's teacher is made of: the bare encoder, or the finished cross-encoder. Raises: TeacherInvalid."""
    if recipe.teacher.fine_tune is None:
        return cross_encoder(recipe.teacher.source, max_tokens=recipe.teacher.max_tokens)
    teacher = load_teacher(recipe.teacher.source, max_tokens=recipe.teacher.fine_tune.max_tokens)
    if not isinstance(teacher.network, MeanPooled):
        raise TeacherInvalid("teacher.fine_tune needs a bare encoder, not a sequence classifier")
    return teacher


def make_ranking_teacher(run: RankRun) -> Teacher:
    """The recipe's cross-encoder: as it is, or fine-tuned (a cached step). Raises: as `check_start` does."""
    recipe, splits = run.recipe, run.splits
    first, settings = first_teacher(recipe), recipe.teacher.fine_tune
    check_start(recipe, first)
    if settings is None:
        return first
    lists, dev = teacher_lists(run), _spread(splits.dev, settings.dev_queries)
    inputs = {
        "step": TEACHER_STEP,
        "source": first.digest(),
        "settings": settings.model_dump(mode="json"),
        "lists": digest_of_rankings(lists),
        "torch": str(torch.__version__),
    }

    def make(folder: Path) -> None:
        with run.reporter.step("teacher") as progress:
            tuned = fine_tune_ranker(
                recipe.teacher.source,
                graded(lists),
                settings,
                dev=graded(dev),
                checkpoint=folder / _CHECKPOINT,
                progress=progress,
            )
        tuned.save(folder / "teacher")
        (folder / _CHECKPOINT).unlink(missing_ok=True)

    return load_teacher(run.cache.run("rank-teacher", inputs, make) / "teacher")


def teacher_lists(run: RankRun) -> list[Ranking]:
    """The lists that the teacher is fine-tuned on; none where it is finished."""
    settings = run.recipe.teacher.fine_tune
    if settings is None:
        return []
    return training_lists(
        run.splits.train, settings.negatives, positives=settings.positives, unanswered=False, seed=settings.seed
    )


def student_lists(run: RankRun) -> list[Ranking]:
    """The lists that the student learns from."""
    settings = run.recipe.distil
    return training_lists(
        run.splits.train,
        settings.negatives,
        positives=settings.positives,
        unanswered=settings.unanswered,
        seed=settings.seed,
    )


def darkened(run: RankRun, lists: list[Ranking]) -> list[Ranking]:
    """The student's lists with their dark examples, where the recipe has any; only scores are learned from those."""
    settings = run.recipe.distil
    if settings.dark_examples is None:
        return lists
    maker = DarkMaker(settings.dark_examples, settings.negatives.hard, settings.seed, taken_by(run.splits))
    return [maker.darkened(each) for each in lists]


def graded(rankings: Sequence[Ranking]) -> GradedLists:
    """Rankings as pairs with grades."""
    return GradedLists(tuple(tuple(each.pairs) for each in rankings), tuple(each.grades for each in rankings))


def _spread(rankings: Sequence[Ranking], most: int) -> list[Ranking]:
    """At most `most` answered lists of several passages, evenly from first to last."""
    fit = [each for each in rankings if each.answered and len(each.passages) > 1]
    stride = max(1.0, len(fit) / most)
    return [fit[int(at * stride)] for at in range(min(most, len(fit)))]


def make_ranker(run: RankRun, teacher: Teacher) -> TrainedRanker:
    """The distilled student, in float32 (a cached step)."""
    recipe = run.recipe
    lists = student_lists(run)
    scored = darkened(run, lists)
    inputs = {
        "step": STUDENT_STEP,
        "teacher": teacher.digest(),
        "student": recipe.student.model_dump(mode="json"),
        "distil": recipe.distil.model_dump(mode="json"),
        "seed": recipe.seed,
        "lists": digest_of_rankings(scored),
        "torch": str(torch.__version__),
    }

    def make(folder: Path) -> None:
        pairs = [pair for each in lists for pair in each.pairs]
        with run.reporter.step("labels") as progress:
            asked = [pair for each in scored for pair in each.pairs]
            scores = label(teacher, asked, directory=run.labels, progress=progress)[:, 0]
        ordered, theirs = _best_first(scored, scores)
        trimmed = _trimmed(recipe.student, teacher, pairs)
        sample = _sample(lists, trimmed, max_tokens=recipe.student.max_tokens)
        # subtle: a sentence encoder's vectors can be compared; tuned to read pairs, it was trained for something else
        begins = first_teacher(recipe) if isinstance(recipe.student, BiEncoderStudent) else teacher
        student = _new_student(recipe, begins, trimmed, sample)
        _learn_states(run, student, teacher, trimmed, pairs, folder)
        tokens = _in_lists(recipe.student, trimmed, graded(ordered))
        with run.reporter.step("student") as progress, diverging():
            distil_ranker(
                student,
                RankTransfer(tokens, theirs, _dark(ordered)),
                recipe.distil,
                seed=recipe.seed,
                checkpoint=folder / _CHECKPOINT,
                progress=progress,
            )
        _save(folder, student, trimmed)
        for left in (_CHECKPOINT, _STATES_CHECKPOINT):
            (folder / left).unlink(missing_ok=True)

    return load_ranker(run.cache.run("ranker", inputs, make))


def _trimmed(settings: RankShape, teacher: Teacher, pairs: Sequence[tuple[str, str]]) -> Trimmed:
    """The student's vocabulary. Where texts are read apart, each counts once, however many lists it is in."""
    if settings.vocabulary == "full":
        return untrimmed(teacher.tokenizer_json)
    texts: Sequence[Text] = pairs
    if not isinstance(settings, RankStudent):
        texts = list(dict.fromkeys(text for pair in pairs for text in pair))
    return trim_tokenizer(teacher.tokenizer_json, texts, min_count=settings.vocabulary_min_count)


def check_start(recipe: RankRecipe, first: Teacher) -> None:
    """Make the student once, with next to no vocabulary, so that what does not fit is refused before hours go by.

    Args:
        first: the recipe's `first_teacher`.
    Raises: RecipeInvalid.
    """
    two = torch.arange(2)[None]
    seen = Sample(*((Padded(two, torch.ones_like(two), torch.full_like(two, side)),) for side in (0, 1)))
    _new_student(recipe, first, _trimmed(recipe.student, first, [("a", "a")]), seen)


def _new_student(recipe: RankRecipe, teacher: Teacher, trimmed: Trimmed, sample: Sample) -> Ranker:
    settings = recipe.student
    state, heads = teacher.encoder_state(), int(teacher.config.num_attention_heads)
    if isinstance(settings, BiEncoderStudent):
        return new_bi_encoder(
            settings, trimmed=trimmed, state=state, teacher_heads=heads, sample=sample, seed=recipe.seed
        )
    if isinstance(settings, SplitRankerStudent):
        return new_split_ranker(
            settings, trimmed=trimmed, state=state, teacher_heads=heads, sample=sample, seed=recipe.seed
        )
    return new_cross_encoder(settings, trimmed=trimmed, state=state, teacher_heads=heads, seed=recipe.seed)


def _learn_states(
    run: RankRun,
    student: Ranker,
    teacher: Teacher,
    trimmed: Trimmed,
    pairs: Sequence[tuple[str, str]],
    folder: Path,
) -> None:
    """Distil what a student gives of each text alone, on the texts of the lists, where the recipe says so."""
    settings, states = run.recipe.student, run.recipe.distil.states
    if states is None or (folder / _CHECKPOINT).exists():  # a run that was killed after it goes on there
        return
    sides = [list(dict.fromkeys(texts)) for texts in zip(*pairs, strict=True)]
    queries, passages = (tokenise(trimmed.tokenizer_json, texts, max_tokens=settings.max_tokens) for texts in sides)
    apart, left = Apart(queries, as_second(passages)), folder / _STATES_CHECKPOINT
    if isinstance(student, BiEncoder):
        with run.reporter.step("vectors") as progress, diverging():
            targets = first_teacher(run.recipe).embeddings(sides[0] + sides[1])
            distil_vectors(student, apart, targets, states, seed=run.recipe.seed, checkpoint=left, progress=progress)
        return
    assert isinstance(settings, SplitRankerStudent) and isinstance(student, SplitRanker), "the recipe was checked"
    heads = int(teacher.config.num_attention_heads)
    below = teacher_below(settings, trimmed=trimmed, state=teacher.encoder_state(), teacher_heads=heads)
    with run.reporter.step("states") as progress, diverging():
        distil_states(
            student,
            below,
            apart,
            states,
            seed=run.recipe.seed,
            checkpoint=left,
            progress=progress,
        )


def _in_lists(settings: RankShape, trimmed: Trimmed, data: GradedLists) -> PairLists | SplitLists:
    """The lists in the student's tokens, as it reads them."""
    read = pair_lists if isinstance(settings, RankStudent) else split_lists
    return read(trimmed.tokenizer_json, data.pairs, data.grades, max_tokens=settings.max_tokens)


def _sample(lists: Sequence[Ranking], trimmed: Trimmed, *, max_tokens: int) -> Sample:
    """Evenly spread queries and passages of the lists, in the student's ids."""
    chosen = lists[:: max(1, len(lists) // _SAMPLE_TEXTS)][:_SAMPLE_TEXTS]
    queries, passages = (
        tokenise(trimmed.tokenizer_json, texts, max_tokens=max_tokens)
        for texts in ([each.query for each in chosen], [each.passages[0] for each in chosen])
    )
    return Sample(_batches(queries), _batches(as_second(passages)))


def _batches(tokens: Tokens) -> tuple[Padded, ...]:
    return tuple(tokens.padded(rows) for rows in batches_in_order_of_length(tokens.lengths, batch_items=_SAMPLE_BATCH))


def _best_first(lists: Sequence[Ranking], scores: Scores) -> tuple[list[Ranking], Scores]:
    """The lists by grade, then by the teacher's score, falling, dark examples last; and the scores in that order."""
    ordered, theirs, begin = [], [], 0
    for each in lists:
        ours = scores[begin : begin + len(each.passages)]
        begin += len(each.passages)
        made = np.arange(len(ours)) >= len(ours) - each.dark
        order = np.lexsort((-ours, -np.asarray(each.grades), made)).tolist()
        passages, grades = (tuple(values[at] for at in order) for values in (each.passages, each.grades))
        ordered.append(replace(each, passages=passages, grades=grades))
        theirs.append(ours[order])
    return ordered, np.concatenate(theirs)


def _dark(lists: Sequence[Ranking]) -> npt.NDArray[np.bool_] | None:
    """bool [pairs]: which passages were made for training; None where no list has any."""
    if not any(each.dark for each in lists):
        return None
    sizes = [(len(each.passages) - each.dark, each.dark) for each in lists]
    return np.concatenate([np.repeat((False, True), size) for size in sizes])


def _save(folder: Path, student: Ranker, trimmed: Trimmed) -> None:
    state = {name: value.contiguous() for name, value in student.state_dict().items()}
    save_file(state, folder / "student.safetensors")
    (folder / "tokenizer.json").write_bytes(trimmed.tokenizer_json)
    save_array(folder / "kept_ids.npy", trimmed.kept_ids)
    (folder / "config.json").write_text(json.dumps(asdict(student.config)), encoding="utf-8")


def load_ranker(folder: Path) -> TrainedRanker:
    """The student that `make_ranker` left in its step's folder."""
    student = _of_shape(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    student.load_state_dict(load_file(folder / "student.safetensors"))
    trimmed = Trimmed((folder / "tokenizer.json").read_bytes(), np.load(folder / "kept_ids.npy"))
    return TrainedRanker(folder, student.eval(), trimmed)


def _of_shape(fields: Mapping[str, Any]) -> Ranker:
    if "lower" in fields:
        return SplitRanker(SplitConfig(**{**fields, "lower": _encoder_config(fields["lower"])}))
    if "encoder" in fields:
        return BiEncoder(BiEncoderConfig(**{**fields, "encoder": _encoder_config(fields["encoder"])}))
    return EncoderStudent(_encoder_config(fields))


def _encoder_config(fields: Mapping[str, Any]) -> EncoderConfig:
    return EncoderConfig(**{**fields, "exits": tuple(fields["exits"])})


def cost_lines(run: RankRun) -> tuple[str, ...]:
    """What training and labelling will cost on this machine: pairs, and minutes by the time of a few of them.

    Training on a pair is taken for six times the time of scoring it.
    """
    teacher, per_token = first_teacher(run.recipe), 0.0
    lines = []
    for name, lists, epochs in (
        ("teacher, training", teacher_lists(run), _epochs(run)),
        ("teacher, scores for the student", darkened(run, student_lists(run)), 1 / _TRAINING_COST),
    ):
        pairs = [pair for each in lists for pair in each.pairs]
        if not pairs:
            continue
        data = pair_lists(teacher.tokenizer_json, [pairs], [[0.0] * len(pairs)], max_tokens=teacher.max_tokens)
        tokens = int(data.tokens.lengths.sum())
        per_token = per_token or _seconds_a_token(teacher, pairs)
        minutes = _TRAINING_COST * epochs * tokens * per_token / 60
        made = sum(each.dark for each in lists)
        lines.append(
            f"{name}: {len(lists):,} lists, {len(pairs):,} pairs of {tokens / len(pairs):.0f} tokens"
            f"{f', {made:,} of them dark examples' if made else ''}"
            f"{f', {epochs:g} epochs' if epochs >= 1 else ''}: about {minutes:.0f} min here"
        )
    return tuple(lines)


def _epochs(run: RankRun) -> float:
    settings = run.recipe.teacher.fine_tune
    return 0.0 if settings is None else settings.epochs


def _seconds_a_token(teacher: Teacher, pairs: Sequence[tuple[str, str]]) -> float:
    """The time of scoring, by token, of some pairs spread over all; the second time, since the first one is slow."""
    chosen = list(pairs[:: max(1, len(pairs) // _PROBE_PAIRS)][:_PROBE_PAIRS])
    whole = pair_lists(teacher.tokenizer_json, [chosen], [[0.0] * len(chosen)], max_tokens=teacher.max_tokens)
    seconds = []
    for _ in range(2):
        begun = time.perf_counter()
        teacher.embeddings(chosen) if isinstance(teacher.network, MeanPooled) else teacher.logits(chosen)
        seconds.append(time.perf_counter() - begun)
    return seconds[-1] / int(whole.tokens.lengths.sum())

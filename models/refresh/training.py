"""The training steps of a refresh: teacher, transfer set, labels, student. Each is cached by what it depends on."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from models.data.augment import Augmenter
from models.data.cuts import Splits
from models.data.partners import partnered
from models.data.rows import Row, text_of
from models.distill.train import Inside, TransferSet, distil, inside_of, needs_inside
from models.errors import OfflineError, RecipeInvalid
from models.recipe.classify import ClassifyRecipe
from models.recipe.parts import digest_of
from models.recipe.student import CascadeSettings, EncoderSettings, NgramSettings, SiameseSettings
from models.recipe.student import Student as StudentSettings
from models.refresh.arrays import save_array
from models.refresh.cache import StepCache
from models.refresh.progress import Reporter
from models.students.build import new_student
from models.students.student import Student, load_student, save_student
from models.students.vocabulary import Trimmed, trim_tokenizer, untrimmed
from models.teachers.fine_tune import fine_tune, gold_of
from models.teachers.labels import label
from models.teachers.teacher import Matrix, Teacher, check_labels, load_teacher
from models.teachers.tokens import Text, tokenise

TEACHER_STEP, TRANSFER_STEP, STUDENT_STEP = 1, 1, 1
"""Raised when a step's code changes what it makes, so that folders made by the old code are not reused."""

CHECKPOINT = "checkpoint.safetensors"
"""What an unfinished training step continues from, in its folder."""


class TrainingDiverged(OfflineError):
    """The student's loss is not finite; a lower learning rate is the usual cure."""


@contextmanager
def diverging() -> Iterator[None]:
    """Turn a loss that is not finite into an error with one line."""
    try:
        yield
    except FloatingPointError as error:
        raise TrainingDiverged(f"training the student diverged: {error}") from error


@dataclass(frozen=True, slots=True)
class Run:
    """What every step of one refresh shares."""

    recipe: ClassifyRecipe
    splits: Splits
    cache: StepCache
    reporter: Reporter

    def data_key(self) -> dict[str, object]:
        """What tells these splits from any others: which rows went where, and the files' bytes."""
        return {"splits": self.splits.digests, "files": [source.sha256 for source in self.splits.sources]}

    def labels_of(self, teacher: Teacher, texts: Sequence[Text]) -> Matrix:
        """The teacher's raw logits, float32 [N, C], cached by content."""
        with self.reporter.step("labels") as progress:
            return label(teacher, texts, directory=self.cache.root / "labels", progress=progress)


@dataclass(frozen=True, slots=True)
class Trained:
    """A trained student as it stands in its step's folder."""

    folder: Path
    student: Student
    trimmed: Trimmed


def texts_of(rows: Sequence[Row]) -> list[Text]:
    """What the rows show a model: texts, or pairs of texts."""
    return [text_of(row) for row in rows]


def check_shape(recipe: ClassifyRecipe, splits: Splits) -> None:
    """Raises: RecipeInvalid: the rows are pairs, and the recipe's student is for single texts; or the other way
    round."""
    first, student = splits.train[0], recipe.student
    place, siamese = f"{first.file}:{first.line}", isinstance(student, SiameseSettings)
    if recipe.distil.augment.partners and not takes_pairs(splits):
        raise RecipeInvalid(f"{place}: text_pair: missing, and distil.augment.partners takes pairs of texts")
    if splits.unlabelled and takes_pairs(splits) and not recipe.distil.augment.partners:
        raise RecipeInvalid(f"{place}: text_pair: with pairs, data.unlabelled needs distil.augment.partners")
    if siamese and not takes_pairs(splits):
        raise RecipeInvalid(f"{place}: text_pair: missing, and student.architecture siamese takes pairs of texts")
    if siamese or not takes_pairs(splits):
        return
    where = f"{place}: text_pair"
    if not isinstance(student, EncoderSettings):
        raise RecipeInvalid(f"{where}: student.architecture {student.architecture} takes single texts")
    if student.local_features:
        raise RecipeInvalid(f"{where}: student.local_features is for single texts")


def check_start(recipe: ClassifyRecipe, *, labels: Sequence[str], pairs: bool) -> None:
    """Make the student once, with next to no vocabulary, so that what does not fit is refused before hours go by.

    Raises: RecipeInvalid: as `new_student` and `trim_tokenizer` do; TeacherInvalid: no teacher, or, where it is not
        tuned, one without these labels.
    """
    teacher = load_teacher(recipe.teacher.source, max_tokens=recipe.student.max_tokens)
    if recipe.teacher.fine_tune is None:
        check_labels(teacher, labels)
    trimmed = _vocabulary(recipe, teacher, ["a"])
    _new_student(recipe, teacher, trimmed, n_labels=len(labels), pairs=pairs)


def _new_student(recipe: ClassifyRecipe, teacher: Teacher, trimmed: Trimmed, *, n_labels: int, pairs: bool) -> Student:
    return new_student(
        recipe.student,
        n_labels=n_labels,
        trimmed=trimmed,
        state=teacher.encoder_state(),
        seed=recipe.seed,
        pairs=pairs,
        teacher_heads=int(teacher.config.num_attention_heads),
    )


def takes_pairs(splits: Splits) -> bool:
    """Whether the rows are pairs; they all are, or none is."""
    return splits.train[0].text_pair is not None


def make_teacher(run: Run) -> Teacher:
    """The recipe's teacher: as it is, or fine-tuned (a cached step). Raises: as `check_start` does."""
    recipe, splits = run.recipe, run.splits
    check_start(recipe, labels=splits.labels, pairs=takes_pairs(splits))
    settings = recipe.teacher.fine_tune
    if settings is None:
        return load_teacher(recipe.teacher.source, max_tokens=recipe.student.max_tokens)
    inputs = {
        "step": TEACHER_STEP,
        "source": load_teacher(recipe.teacher.source).digest(),
        "settings": settings.model_dump(mode="json"),
        "rows": run.data_key(),
        "torch": str(torch.__version__),
    }

    def make(folder: Path) -> None:
        with run.reporter.step("teacher") as progress:
            tuned = fine_tune(
                recipe.teacher.source,
                splits.train,
                splits.labels,
                settings,
                seed=settings.seed,
                dev=splits.dev,
                checkpoint=folder / CHECKPOINT,
                progress=progress,
            )
        tuned.teacher.save(folder / "teacher")
        (folder / "dev.json").write_text(json.dumps({"dev_accuracy": tuned.dev_accuracy}), encoding="utf-8")
        (folder / CHECKPOINT).unlink(missing_ok=True)

    return load_teacher(run.cache.run("teacher", inputs, make) / "teacher")


def make_transfer_texts(run: Run, teacher: Teacher, neighbours: Any) -> tuple[list[Text], npt.NDArray[np.int64]]:
    """What the student learns from, and the gold labels, -1 for none: training texts, their variants, unlabelled texts;
    of pairs, for the unlabelled texts themselves, the new pairs that are made with them.

    Args:
        neighbours: function of the teacher giving each word's stand-ins; called only when the step runs.
    """
    recipe, splits = run.recipe, run.splits
    settings = recipe.distil.augment
    train = texts_of(splits.train)
    inputs = {
        "step": TRANSFER_STEP,
        "teacher": teacher.digest(),
        "augment": settings.model_dump(mode="json"),
        "rows": run.data_key(),
    }

    def make(folder: Path) -> None:
        augmenter = Augmenter(neighbours(teacher), settings, settings.seed, forbidden=splits.held_out_keys())
        singles = [text for text in train if isinstance(text, str) and len(text.split()) >= settings.min_words]
        pairs = [text for text in train if not isinstance(text, str)]
        variants = [
            *augmenter.augment_all(singles, settings.rows),
            *augmenter.augment_pairs(pairs, settings.rows),
            *partnered(pairs, splits.unlabelled, settings.partners, forbidden=splits.held_out_keys()),
        ]
        (folder / "variants.json").write_text(json.dumps(variants), encoding="utf-8")

    folder = run.cache.run("transfer", inputs, make)
    made = json.loads((folder / "variants.json").read_text(encoding="utf-8"))
    variants: list[Text] = [variant if isinstance(variant, str) else (variant[0], variant[1]) for variant in made]
    texts = [*train, *variants, *(() if takes_pairs(splits) else splits.unlabelled)]
    gold = np.full(len(texts), -1, dtype=np.int64)
    gold[: len(train)] = gold_of(splits.train, splits.labels)
    return texts, gold


def make_student(run: Run, teacher: Teacher, texts: Sequence[Text], gold: npt.NDArray[np.int64]) -> Trained:
    """The distilled student, in float32 (a cached step)."""
    recipe = run.recipe
    inputs = {
        "step": STUDENT_STEP,
        "teacher": teacher.digest(),
        "student": recipe.student.model_dump(mode="json"),
        "distil": recipe.distil.model_dump(mode="json"),
        "seed": recipe.seed,
        "texts": digest_of(list(texts)),
        "rows": run.data_key(),
        "torch": str(torch.__version__),
    }

    def make(folder: Path) -> None:
        logits = run.labels_of(teacher, texts)
        trimmed = _vocabulary(recipe, teacher, texts)
        student = _new_student(recipe, teacher, trimmed, n_labels=len(run.splits.labels), pairs=takes_pairs(run.splits))
        tokens = tokenise(trimmed.tokenizer_json, texts, max_tokens=sequence_tokens(recipe.student))
        with run.reporter.step("student") as progress, diverging():
            distil(
                student,
                TransferSet(tokens, logits, gold),
                recipe.distil,
                seed=recipe.seed,
                inside=inside_for(recipe, teacher, trimmed),
                teacher_hidden=int(teacher.config.hidden_size),
                table_factor=_table_factor(recipe.student),
                checkpoint=folder / CHECKPOINT,
                progress=progress,
            )
        save_trained(folder, student, trimmed)
        (folder / CHECKPOINT).unlink(missing_ok=True)

    return load_trained(run.cache.run("student", inputs, make))


def sequence_tokens(settings: StudentSettings) -> int:
    """The longest sequence that a student is trained on; of two texts apart, it holds both at their longest.

    >>> sequence_tokens(SiameseSettings(architecture="siamese", max_tokens=16))
    31
    """
    return 2 * settings.max_tokens - 1 if isinstance(settings, SiameseSettings) else settings.max_tokens


def _vocabulary(recipe: ClassifyRecipe, teacher: Teacher, texts: Sequence[Text]) -> Trimmed:
    if recipe.student.vocabulary == "full":
        return untrimmed(teacher.tokenizer_json)
    return trim_tokenizer(teacher.tokenizer_json, texts, min_count=recipe.student.vocabulary_min_count)


def inside_for(recipe: ClassifyRecipe, teacher: Teacher, trimmed: Trimmed) -> Inside | None:
    """The teacher's states for the student's batches, where the recipe's objectives look at them."""
    return inside_of(teacher, trimmed.kept_ids) if needs_inside(recipe.distil.objectives) else None


def _table_factor(settings: StudentSettings) -> float:
    """On the learning rate of n-gram rows; other students have none."""
    if isinstance(settings, CascadeSettings):
        return settings.ngram.table_learning_rate_factor
    return settings.table_learning_rate_factor if isinstance(settings, NgramSettings) else 1.0


def save_trained(folder: Path, student: Student, trimmed: Trimmed) -> None:
    """Write a student and its tokenizer into its step's folder, for `load_trained`."""
    save_student(student, folder)
    (folder / "tokenizer.json").write_bytes(trimmed.tokenizer_json)
    save_array(folder / "kept_ids.npy", trimmed.kept_ids)


def load_trained(folder: Path) -> Trained:
    """The student that `save_trained` left in its step's folder."""
    trimmed = Trimmed((folder / "tokenizer.json").read_bytes(), np.load(folder / "kept_ids.npy"))
    return Trained(folder, load_student(folder), trimmed)


def teacher_labels(run: Run, teacher: Teacher, rows: Sequence[Row]) -> tuple[str, ...]:
    """The teacher's answers on rows, as label names, computed in float32: what it is compared and served by."""
    logits = teacher.logits([text_of(row) for row in rows], bf16=False)
    return tuple(run.splits.labels[index] for index in logits.argmax(axis=1))

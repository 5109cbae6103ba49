"""The training steps of an embed refresh: the teacher's vectors, the student. Each is cached by what it depends on."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file

from models.data.texts import EmbedSplits
from models.distill.embed import EmbedTransfer, distil_embedder, rotation
from models.errors import RecipeInvalid, TeacherInvalid
from models.recipe.embed import EmbedRecipe, StaticSettings
from models.recipe.parts import digest_of
from models.refresh.arrays import save_array
from models.refresh.cache import StepCache
from models.refresh.progress import Reporter
from models.refresh.training import diverging
from models.students.embedder import new_embedder
from models.students.encoder import EncoderConfig, EncoderStudent
from models.students.static import StaticConfig, StaticEmbedder
from models.students.static_start import check_static, new_static
from models.students.vocabulary import Trimmed, trim_tokenizer, untrimmed
from models.teachers.teacher import Matrix, Teacher, load_teacher
from models.teachers.tokens import Tokens, tokenise

# N texts, D dimensions

VECTORS_STEP, STUDENT_STEP = 1, 1
"""Raised when a step's code changes what it makes, so that folders made by the old code are not reused."""

_CHECKPOINT = "checkpoint.safetensors"
_CHUNK_TEXTS = 20_000


@dataclass(frozen=True, slots=True)
class EmbedRun:
    """What every step of one refresh shares."""

    recipe: EmbedRecipe
    splits: EmbedSplits
    cache: StepCache
    reporter: Reporter


@dataclass(frozen=True, slots=True)
class TrainedEmbedder:
    """A trained student as it stands in its step's folder; `turned` float32 [D, D] takes the teacher's space to its."""

    folder: Path
    student: EncoderStudent | StaticEmbedder
    trimmed: Trimmed
    turned: Matrix


def embed_teacher(recipe: EmbedRecipe) -> Teacher:
    """The recipe's teacher. Raises: TeacherInvalid."""
    return load_teacher(recipe.teacher.source, max_tokens=recipe.student.max_tokens)


def check_start(recipe: EmbedRecipe, teacher: Teacher) -> None:
    """Make the student once with two tokens, so that a shape that does not fit is refused before anything is made.

    Raises: RecipeInvalid: a prefix as long as the embedding, or as `new_embedder` and `new_static` do.
    """
    width = int(teacher.config.hidden_size)
    for prefix in recipe.distil.prefixes:
        if prefix.dimensions >= width:
            raise RecipeInvalid(f"distil.prefixes: {prefix.dimensions} is not below the embedding's {width} dimensions")
    if isinstance(recipe.student, StaticSettings):
        check_static(recipe.student, teacher)
        return
    two = Trimmed(teacher.tokenizer_json, np.arange(2))
    new_embedder(recipe.student, trimmed=two, teacher=teacher, turned=np.eye(width, dtype=np.float32), seed=recipe.seed)


def unit_vectors(teacher: Teacher, texts: Sequence[str]) -> Matrix:
    """The teacher's embeddings of `texts`, float32 [N, D], unit length.

    Raises: TeacherInvalid: one is not finite, or has no direction (the message holds the text's beginning).
    """
    vectors = teacher.embeddings(texts)
    with np.errstate(over="ignore", invalid="ignore"):
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    bad = np.flatnonzero(~((lengths > 0) & np.isfinite(lengths)))
    if len(bad):
        raise TeacherInvalid(f"the teacher's embedding is not finite, or zero, for the text {texts[bad[0]][:60]!r}")
    return np.asarray(vectors / lengths, np.float32)


def make_vectors(run: EmbedRun, teacher: Teacher) -> npt.NDArray[np.float16]:
    """The teacher's unit vectors of the training texts, float16 [N, D] (a cached step, read from its file as used)."""
    texts = run.splits.train
    inputs = {"step": VECTORS_STEP, "teacher": teacher.digest(), "texts": digest_of(list(texts))}

    def make(folder: Path) -> None:
        vectors = np.zeros((len(texts), int(teacher.config.hidden_size)), np.float16)
        with run.reporter.step("vectors") as progress:
            for begin in range(0, len(texts), _CHUNK_TEXTS):
                part = list(texts[begin : begin + _CHUNK_TEXTS])
                vectors[begin : begin + len(part)] = unit_vectors(teacher, part)
                progress(begin + len(part), len(texts), "")
        save_array(folder / "vectors.npy", vectors)

    return np.asarray(np.load(run.cache.run("vectors", inputs, make) / "vectors.npy", mmap_mode="r"))


def make_embedder(run: EmbedRun, teacher: Teacher) -> TrainedEmbedder:
    """The distilled student, in float32 (a cached step)."""
    recipe, texts = run.recipe, run.splits.train
    inputs = {
        "step": STUDENT_STEP,
        "teacher": teacher.digest(),
        "student": recipe.student.model_dump(mode="json"),
        "distil": recipe.distil.model_dump(mode="json"),
        "seed": recipe.seed,
        "texts": digest_of(list(texts)),
        "torch": str(torch.__version__),
    }

    def make(folder: Path) -> None:
        settings, distil = recipe.student, recipe.distil
        trimmed = untrimmed(teacher.tokenizer_json)
        if settings.vocabulary == "trimmed":
            trimmed = trim_tokenizer(teacher.tokenizer_json, texts, min_count=settings.vocabulary_min_count)
        targets = make_vectors(run, teacher)
        prefixes = [prefix.dimensions for prefix in distil.prefixes] if distil.rotate else []
        turned = rotation(targets, prefixes, seed=recipe.seed)
        tokens = tokenise(trimmed.tokenizer_json, texts, max_tokens=settings.max_tokens)
        student = _new(recipe, trimmed, teacher, turned, tokens)
        if not isinstance(settings, StaticSettings) or settings.distilled:
            with run.reporter.step("student") as progress, diverging():
                distil_embedder(
                    student,
                    EmbedTransfer(tokens, targets),
                    distil,
                    turned=turned,
                    seed=recipe.seed,
                    checkpoint=folder / _CHECKPOINT,
                    progress=progress,
                )
        _save(folder, TrainedEmbedder(folder, student, trimmed, turned))
        (folder / _CHECKPOINT).unlink(missing_ok=True)

    return load_embedder(run.cache.run("embedder", inputs, make))


def _new(
    recipe: EmbedRecipe, trimmed: Trimmed, teacher: Teacher, turned: Matrix, tokens: Tokens
) -> EncoderStudent | StaticEmbedder:
    settings = recipe.student
    if isinstance(settings, StaticSettings):
        counts = np.bincount(tokens.ids, minlength=len(trimmed.kept_ids))
        return new_static(
            settings, trimmed=trimmed, teacher=teacher, turned=turned, counts=counts, seed=recipe.seed
        ).eval()
    return new_embedder(settings, trimmed=trimmed, teacher=teacher, turned=turned, seed=recipe.seed)


def _save(folder: Path, trained: TrainedEmbedder) -> None:
    state = {name: value.contiguous() for name, value in trained.student.state_dict().items()}
    save_file(state, folder / "student.safetensors")
    (folder / "tokenizer.json").write_bytes(trained.trimmed.tokenizer_json)
    save_array(folder / "kept_ids.npy", trained.trimmed.kept_ids)
    save_array(folder / "turned.npy", trained.turned)
    shape = asdict(trained.student.config)
    if isinstance(trained.student, StaticEmbedder):
        shape["architecture"] = "static"
    (folder / "config.json").write_text(json.dumps(shape), encoding="utf-8")


def load_embedder(folder: Path) -> TrainedEmbedder:
    """The student that `make_embedder` left in its step's folder."""
    fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    student = _of_shape(fields)
    student.load_state_dict(load_file(folder / "student.safetensors"))
    trimmed = Trimmed((folder / "tokenizer.json").read_bytes(), np.load(folder / "kept_ids.npy"))
    return TrainedEmbedder(folder, student.eval(), trimmed, np.load(folder / "turned.npy"))


def _of_shape(fields: dict[str, Any]) -> EncoderStudent | StaticEmbedder:
    """A shape without an architecture is an encoder's."""
    if fields.pop("architecture", "encoder") == "static":
        return StaticEmbedder(StaticConfig(**fields))
    return EncoderStudent(EncoderConfig(**{**fields, "exits": tuple(fields["exits"])}))

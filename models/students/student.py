"""What a refresh needs of a student, whatever its architecture: exits, tables, and coming back from a file.

A new architecture is a module with `forward(input_ids, attention_mask) -> Outputs`, `stages()` and `depths()` in a
file of its own, and an entry in each function here.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import nn

from models.students.bi_encoder import BiEncoder
from models.students.bilstm import BilstmConfig, BilstmStudent
from models.students.cascade import CascadeConfig, CascadeStudent
from models.students.cnn import CnnConfig, CnnStudent
from models.students.encoder import EncoderConfig, EncoderStudent
from models.students.ngram import NgramConfig, NgramStudent
from models.students.siamese import SiameseConfig, SiameseStudent
from models.students.split_ranker import SplitRanker
from models.students.static import StaticEmbedder

Student = EncoderStudent | NgramStudent | CascadeStudent | BilstmStudent | CnnStudent | SiameseStudent
Ranker = EncoderStudent | SplitRanker | BiEncoder
"""What scores pairs: both texts as one sequence, or apart and then joined."""

_CONFIG, _WEIGHTS = "config.json", "student.safetensors"


@dataclass(frozen=True, slots=True)
class Table:
    """Parameters looked up by token. `sparse`: their gradients hold the rows of a batch alone."""

    parameters: tuple[nn.Parameter, ...]
    sparse: bool


def encoder_of(student: Student | Ranker | StaticEmbedder) -> EncoderStudent | None:
    """The transformer that reads ids in it, or None."""
    if isinstance(student, CascadeStudent | SiameseStudent | BiEncoder):
        return student.encoder
    if isinstance(student, SplitRanker):
        return student.lower
    return student if isinstance(student, EncoderStudent) else None


def tables_of(student: Student | Ranker | StaticEmbedder) -> tuple[Table, ...]:
    """Its tables, which train at rates of their own."""
    found: list[Table] = []
    if (encoder := encoder_of(student)) is not None:
        found.append(Table((*encoder.embeddings.tokens.parameters(), encoder.embeddings.positions), sparse=False))
    bag = student.ngram if isinstance(student, CascadeStudent) else student
    if isinstance(bag, NgramStudent):
        found.append(Table((bag.table,), sparse=True))
    if isinstance(student, BilstmStudent | CnnStudent | StaticEmbedder):
        found.append(Table(tuple(student.tokens.parameters()), sparse=False))
    return tuple(found)


def exit_name(layer: int, layers: int) -> str:
    """What an encoder's exit is called: `embeddings`, `layer-2`, and `full` for the last.

    >>> [exit_name(layer, 4) for layer in (0, 2, 4)]
    ['embeddings', 'layer-2', 'full']
    """
    if layer == layers:
        return "full"
    return "embeddings" if layer == 0 else f"layer-{layer}"


def exit_names(student: Student) -> tuple[str, ...]:
    """What its exits are called, in pipeline order."""
    encoder = encoder_of(student)
    if encoder is None or isinstance(student, SiameseStudent):
        return ("full",)
    config = encoder.config
    names = tuple(exit_name(layer, config.layers) for layer in config.exits)
    return names if student is encoder else ("ngram", *names)


def labels_of(student: Student) -> int:
    """C."""
    config = student.config
    return config.encoder.width if isinstance(config, CascadeConfig) else config.width


def save_student(student: Student, folder: Path) -> None:
    """Write weights and shape into a folder, for `load_student`."""
    tensors = {name: value.contiguous() for name, value in student.state_dict().items()}
    save_file(tensors, folder / _WEIGHTS)
    shape = {"architecture": _NAMES[type(student)], **asdict(student.config)}
    (folder / _CONFIG).write_text(json.dumps(shape), encoding="utf-8")


def load_student(folder: Path) -> Student:
    """The student that `save_student` wrote, in eval mode.

    A shape without an architecture is an encoder's; its width may stand there as `n_labels`. A training step's folder
    with such a shape has the key that it would have today.
    """
    shape = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
    if "n_labels" in shape:
        shape["width"] = shape.pop("n_labels")
    student = _of_shape(shape.pop("architecture", "encoder"), shape)
    student.load_state_dict(load_file(folder / _WEIGHTS))
    student.eval()
    return student


_NAMES: Mapping[type[nn.Module], str] = {
    EncoderStudent: "encoder",
    NgramStudent: "ngram",
    CascadeStudent: "cascade",
    BilstmStudent: "bilstm",
    CnnStudent: "cnn",
    SiameseStudent: "siamese",
}


def _of_shape(architecture: str, shape: Mapping[str, Any]) -> Student:
    if architecture == "ngram":
        return NgramStudent(NgramConfig(**_tuples(shape)))
    if architecture == "cascade":
        parts = NgramConfig(**_tuples(shape["ngram"])), EncoderConfig(**_tuples(shape["encoder"]))
        return CascadeStudent(CascadeConfig(*parts))
    if architecture == "siamese":
        inner = EncoderConfig(**_tuples(shape["encoder"]))
        return SiameseStudent(SiameseConfig(**{**shape, "encoder": inner}))
    if architecture == "bilstm":
        return BilstmStudent(BilstmConfig(**shape))
    if architecture == "cnn":
        return CnnStudent(CnnConfig(**_tuples(shape)))
    return EncoderStudent(EncoderConfig(**_tuples(shape)))


def _tuples(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}

"""The teacher's logits, cached by content: a text is labelled once, whatever recipe or run asks for it.

The cache is `DIRECTORY/<teacher digest>/NNNNNN.npz`, append-only shards of keys (sha256 of the text) and logits,
each written aside and renamed: a run killed half way loses the shard it was making and nothing else.
"""

import hashlib
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from models.errors import TeacherInvalid
from models.teachers.fit import Progress
from models.teachers.teacher import Matrix, Teacher
from models.teachers.tokens import Text

# N texts, C labels

_SHARD_ITEMS = 20_000


def label(teacher: Teacher, texts: Sequence[Text], *, directory: Path, progress: Progress | None = None) -> Matrix:
    """The teacher's raw logits of `texts`, taken from the cache or computed and put there.

    Args:
        teacher: one with a head.
        texts: N texts or pairs; repeats are labelled once.
        directory: the cache of all teachers.
        progress: told (texts labelled, texts missing from the cache, "").
    Returns: float32 [N, C].
    Raises: TeacherInvalid: no head, or a logit that is not finite.
    """
    folder = directory / teacher.digest()
    folder.mkdir(parents=True, exist_ok=True)
    keys = [key_of(text) for text in texts]
    known = _read(folder, n_labels=len(teacher.labels))
    missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
    todo = list(missing.items())
    for begin in range(0, len(todo), _SHARD_ITEMS):
        part = todo[begin : begin + _SHARD_ITEMS]
        logits = teacher.logits([text for _, text in part])
        _write(folder, [key for key, _ in part], logits)
        known |= {key: row for (key, _), row in zip(part, logits, strict=True)}
        if progress is not None:
            progress(begin + len(part), len(todo), "")
    if not keys:
        return np.zeros((0, len(teacher.labels)), np.float32)
    return np.stack([known[key] for key in keys])


def key_of(text: Text) -> bytes:
    """sha256 (32 bytes) of a text or of a pair; a pair is never like a text."""
    return hashlib.sha256(json.dumps(text).encode()).digest()


def _read(folder: Path, *, n_labels: int) -> dict[bytes, Matrix]:
    known: dict[bytes, Matrix] = {}
    for path in sorted(folder.glob("*.npz")):
        try:
            with path.open("rb") as opened, np.load(opened, allow_pickle=False) as shard:
                keys, logits = shard["keys"], shard["logits"]
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise TeacherInvalid(
                f"label cache: {path.name} of teacher {folder.name[:12]} is damaged; remove it"
            ) from error
        if logits.shape != (len(keys), n_labels):
            raise TeacherInvalid(f"label cache: {path.name} of teacher {folder.name[:12]} has another number of labels")
        known |= {key.tobytes(): row for key, row in zip(keys, logits, strict=True)}
    return known


def _write(folder: Path, keys: Sequence[bytes], logits: Matrix) -> None:
    number = 1 + max((int(path.stem) for path in folder.glob("*.npz")), default=-1)
    aside = folder / f"{number:06d}.partial"
    with aside.open("wb") as opened:
        np.savez(opened, keys=np.frombuffer(b"".join(keys), np.uint8).reshape(-1, 32), logits=logits)
    aside.replace(folder / f"{number:06d}.npz")

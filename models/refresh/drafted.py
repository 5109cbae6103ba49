"""A student that was made and neither judged nor published, with the teacher it was made from: what can be compared."""

from dataclasses import dataclass
from pathlib import Path

from models.teachers.teacher import Teacher


@dataclass(frozen=True, slots=True)
class Drafted:
    """A bundle in the runs folder, with its certificates where it has exits; `teacher_name` as a provenance has it."""

    bundle: Path
    teacher: Teacher
    teacher_name: str

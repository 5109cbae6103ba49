"""How the parts of a student are trained: tables, matrices and the rest at rates and decays of their own."""

from collections.abc import Sequence

from torch import nn

from models.students.static import StaticEmbedder
from models.students.student import Ranker, Student, tables_of
from models.teachers.fit import Group


def groups_of(
    student: Student | Ranker | StaticEmbedder,
    *,
    learning_rate: float,
    embedding_factor: float,
    weight_decay: float,
    sparse_factor: float = 1.0,
    more: Sequence[nn.Parameter] = (),
) -> tuple[Group, ...]:
    """Tables at rates of their own and without decay; matrices with weight decay; the rest without.

    Args:
        embedding_factor, sparse_factor: of tables with dense and with sparse gradients, over `learning_rate`.
        more: parameters that are trained beside the student's, as a loss may have.
    """
    tables = tables_of(student)
    factors = (sparse_factor if table.sparse else embedding_factor for table in tables)
    known = {id(parameter) for table in tables for parameter in table.parameters}
    others = [parameter for parameter in (*student.parameters(), *more) if id(parameter) not in known]
    return (
        *(Group(t.parameters, learning_rate * f, 0.0, t.sparse) for t, f in zip(tables, factors, strict=True)),
        Group(tuple(p for p in others if p.ndim == 2), learning_rate, weight_decay),
        Group(tuple(p for p in others if p.ndim != 2), learning_rate, 0.0),
    )

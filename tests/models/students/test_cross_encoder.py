"""The cross-encoder student: token types matter, padding does not, layers come from the teacher, the graph agrees."""

from pathlib import Path

import numpy as np
import pytest
import torch

from models.errors import RecipeInvalid
from models.export.stages import export_stages
from models.recipe.rank import RankStudent
from models.students.cross_encoder import new_cross_encoder, score_pairs
from models.students.encoder import EncoderStudent
from models.students.vocabulary import untrimmed
from models.teachers.teacher import Teacher, load_teacher
from models.teachers.tokens import Padded

SETTINGS = RankStudent(
    layers=2, hidden=16, heads=2, feed_forward=32, teacher_layers=(0, 1), max_tokens=16, head_width=8
)


@pytest.fixture(scope="module")
def teacher(encoder_directory: Path) -> Teacher:
    return load_teacher(encoder_directory)


def new(teacher: Teacher, **changes) -> EncoderStudent:
    settings = RankStudent.model_validate({**SETTINGS.model_dump(), **changes})
    return new_cross_encoder(
        settings,
        trimmed=untrimmed(teacher.tokenizer_json),
        state=teacher.encoder_state(),
        teacher_heads=2,
        seed=0,
    ).eval()


def inputs(batch: int = 3, tokens: int = 9) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 60, (batch, tokens), generator=draw)
    return ids, torch.ones_like(ids), (torch.arange(tokens) > 3).long().expand(batch, -1)


def test_with_all_of_the_teacher_it_computes_the_teachers_states(teacher: Teacher) -> None:
    student = new(teacher)
    ids, mask, types = inputs()
    seen: list[torch.Tensor] = []
    student.exit_head(0).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        student(ids, mask, types)
        wanted = teacher.network.encoder(input_ids=ids, attention_mask=mask, token_type_ids=types).last_hidden_state
    torch.testing.assert_close(seen[0].reshape(wanted.shape), wanted, atol=1e-5, rtol=1e-5)


def test_token_types_change_the_score_and_padding_does_not(teacher: Teacher) -> None:
    student = new(teacher)
    ids, mask, types = inputs()
    padded = [torch.nn.functional.pad(each, (0, 4)) for each in (ids, mask, types)]
    with torch.no_grad():
        score = score_pairs(student, Padded(ids, mask, types))
        torch.testing.assert_close(score_pairs(student, Padded(*padded)), score, atol=1e-6, rtol=1e-5)
        assert (score_pairs(student, Padded(ids, mask, torch.zeros_like(types))) - score).abs().min() > 1e-5
    assert score.shape == (3,)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"initialise": "random", "embeddings": "teacher-pca", "hidden": 8, "layers": 1, "activation": "relu"},
        {"initialise": "random", "embeddings": "random", "token_width": 4},
    ],
)
def test_the_graph_computes_what_torch_computes(teacher: Teacher, tmp_path: Path, changes: dict) -> None:
    student = new(teacher, **changes)
    (exported,) = export_stages(student.stages(), tmp_path)
    assert set(exported.stage.inputs) == {"input_ids", "attention_mask", "token_type_ids"}
    assert exported.stage.outputs["score"].dims == ("B",)
    assert exported.parity < 1e-4


def test_the_same_seed_makes_the_same_student(teacher: Teacher) -> None:
    first, second = (new(teacher, initialise="random", embeddings="random").state_dict() for _ in range(2))
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_heads_of_another_number_are_refused(teacher: Teacher) -> None:
    with pytest.raises(RecipeInvalid, match=r"student\.heads: 4, the teacher's layers have 2"):
        new(teacher, heads=4)

"""A student as a recipe describes it."""

import numpy as np
import pytest
import torch

from models.recipe.student import EncoderSettings
from models.students.build import new_student
from models.students.vocabulary import Trimmed

TRIMMED = Trimmed(b"{}", np.arange(12))
STATE = {
    "embeddings.word_embeddings.weight": torch.randn(30, 16, generator=torch.Generator().manual_seed(0)),
    "embeddings.position_embeddings.weight": torch.randn(16, 16, generator=torch.Generator().manual_seed(1)),
    "embeddings.LayerNorm.weight": torch.ones(16),
    "embeddings.LayerNorm.bias": torch.zeros(16),
}


def settings(**more) -> EncoderSettings:
    return EncoderSettings(layers=2, hidden=8, heads=2, feed_forward=16, exits=(0, 2), max_tokens=8, **more)


def test_the_shape_is_the_recipes():
    student = new_student(settings(local_features=6, token_width=4), n_labels=3, trimmed=TRIMMED, state=STATE, seed=0)
    assert student.embeddings.tokens.weight.shape == (12, 4)
    assert [stage.output_names[-1] for stage in student.stages()] == ["logits", "logits"]
    assert student(torch.zeros(1, 4, dtype=torch.int64), torch.ones(1, 4, dtype=torch.int64)).exits[0].shape == (1, 3)


@pytest.mark.parametrize("embeddings", ["teacher-pca", "random"])
def test_a_student_is_a_function_of_its_seed(embeddings):
    made = [
        new_student(settings(embeddings=embeddings), n_labels=3, trimmed=TRIMMED, state=STATE, seed=seed).state_dict()
        for seed in (0, 0, 1)
    ]
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])
    assert not torch.equal(made[0]["layers.0.up.weight"], made[2]["layers.0.up.weight"])
    same_tables = torch.equal(made[0]["embeddings.tokens.weight"], made[2]["embeddings.tokens.weight"])
    assert same_tables == (embeddings == "teacher-pca")

"""A split ranker's states learn to tell what the teacher's lower layers give."""

from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from models.distill.states import Apart, distil_states
from models.recipe.rank import RankRecipe, SplitRankerStudent, StatesDistil
from models.students.encoder import EncoderStudent
from models.students.split_ranker import SplitRanker
from models.students.split_start import Sample, new_split_ranker, teacher_below
from models.students.vocabulary import untrimmed
from models.teachers.pair_lists import as_second
from models.teachers.teacher import load_teacher
from models.teachers.tokens import tokenise

SETTINGS = SplitRankerStudent(
    architecture="split-ranker",
    layers=1,
    hidden=16,
    heads=1,
    feed_forward=8,
    state_width=12,
    joined_layers=1,
    joined_heads=2,
    joined_feed_forward=16,
    teacher_layers=(0,),
    joined_teacher_layers=(1,),
    max_tokens=16,
    head_width=8,
)
QUERIES = ["where is my card", "is it late", "good film", "why was it lost"]
PASSAGES = ["my card was sent late", "the film was good", "it is lost again", "wait", "money failed and was stolen"]


@pytest.fixture
def sides(encoder_directory: Path) -> tuple[SplitRanker, EncoderStudent, Apart]:
    teacher = load_teacher(encoder_directory)
    trimmed, state = untrimmed(teacher.tokenizer_json), teacher.encoder_state()
    queries = tokenise(trimmed.tokenizer_json, QUERIES, max_tokens=16)
    passages = as_second(tokenise(trimmed.tokenizer_json, PASSAGES, max_tokens=16))
    sample = Sample([queries.padded(np.arange(4))], [passages.padded(np.arange(5))])
    student = new_split_ranker(SETTINGS, trimmed=trimmed, state=state, teacher_heads=2, sample=sample, seed=0)
    return student, teacher_below(SETTINGS, trimmed=trimmed, state=state, teacher_heads=2), Apart(queries, passages)


@torch.no_grad()
def error(student: SplitRanker, teacher: EncoderStudent, texts: Apart) -> float:
    """Of all tokens of all texts."""
    found = []
    for tokens, expansion in ((texts.queries, student.query_expansion), (texts.passages, student.passage_expansion)):
        batch = tokens.padded(np.arange(len(tokens)))
        wanted = teacher(batch.input_ids, batch.attention_mask, batch.token_type_ids).hidden[-1]
        found.append((expansion(student.states(batch)) - wanted).square().mean(-1)[batch.attention_mask > 0])
    return float(torch.cat(found).mean())


def test_both_sides_come_nearer_and_the_rest_stays(sides: tuple[SplitRanker, EncoderStudent, Apart]) -> None:
    student, teacher, texts = sides
    before, told = error(student, teacher, texts), []
    joined = {name: value.clone() for name, value in student.joined.state_dict().items()}
    head = {name: value.clone() for name, value in student.head.state_dict().items()}
    settings = StatesDistil(epochs=60, batch_texts=3, learning_rate=0.02)
    distil_states(student, teacher, texts, settings, seed=0, progress=lambda done, *_: told.append(done))
    assert error(student, teacher, texts) < 0.85 * before
    assert told[-1] == 180
    assert not student.training
    for now, then in ((student.joined.state_dict(), joined), (student.head.state_dict(), head)):
        assert all(torch.equal(now[name], value) for name, value in then.items())


def test_a_batch_of_one_side_alone_is_fine(sides: tuple[SplitRanker, EncoderStudent, Apart]) -> None:
    student, teacher, texts = sides
    distil_states(student, teacher, texts, StatesDistil(epochs=1, batch_texts=1), seed=0)
    assert np.isfinite(error(student, teacher, texts))


def test_texts_are_counted_queries_first(sides: tuple[SplitRanker, EncoderStudent, Apart]) -> None:
    texts = sides[2]
    assert texts.lengths.tolist() == [*texts.queries.lengths.tolist(), *texts.passages.lengths.tolist()]


@pytest.mark.parametrize("student", [{}, {**SETTINGS.model_dump(), "initialise": "random", "heads": 2}])
def test_only_students_of_texts_apart_and_the_teachers_layers_have_states_to_learn(student: dict) -> None:
    recipe = {
        "schema": 1,
        "name": "toy",
        "task": "rank",
        "data": {"sets": [{"name": "s", "train": "t.jsonl", "tests": {"s": "x.jsonl"}}], "gate": {"cut": 0.1}},
        "student": student,
        "distil": {"objectives": [{"listwise_kl": {}}], "states": {}},
    }
    with pytest.raises(ValidationError, match=r"distil\.states is for split rankers and bi-encoders"):
        RankRecipe.model_validate(recipe)

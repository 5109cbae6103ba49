"""Loading teachers from each kind of source, and what they answer."""

import numpy as np
import pytest
import torch
from torch import nn

from models.errors import TeacherInvalid
from models.teachers.teacher import MeanPooled, Teacher, check_labels, load_teacher, neighbours
from models.teachers.tokens import tokenise

TEXTS = ["where is my card", "card lost", "", "a late refund again and again"]


def test_a_bare_encoder_has_no_labels_and_refuses_to_classify(encoder_directory):
    teacher = load_teacher(encoder_directory)
    assert teacher.labels == ()
    with pytest.raises(TeacherInvalid, match="no classification head"):
        teacher.logits(TEXTS)


def test_a_sequence_classifier_is_used_as_it_is(classifier_directory):
    teacher = load_teacher(classifier_directory)
    assert teacher.labels == ("negative", "positive")
    assert teacher.logits(TEXTS).shape == (4, 2)
    with pytest.raises(TeacherInvalid, match="no pooled embedding"):
        teacher.embeddings(TEXTS)
    assert "embeddings.word_embeddings.weight" in teacher.encoder_state()


def test_embeddings_are_the_mean_of_the_token_states(encoder_directory):
    teacher = load_teacher(encoder_directory)
    batch = tokenise(teacher.tokenizer_json, TEXTS[:1], max_tokens=64).padded([0])
    with torch.no_grad():
        states = teacher.network.encoder(input_ids=batch.input_ids).last_hidden_state[0]
    alone = teacher.embeddings(TEXTS[:1])[0]
    np.testing.assert_allclose(alone, states.mean(0).numpy(), atol=0.03)


def test_logits_do_not_depend_on_the_company(classifier_directory):
    teacher = load_teacher(classifier_directory)
    together = teacher.logits(TEXTS)
    alone = np.concatenate([teacher.logits([text]) for text in TEXTS])
    np.testing.assert_allclose(together, alone, atol=0.02)


def test_a_saved_teacher_loads_again_as_the_same(encoder_directory, tmp_path):
    bare = load_teacher(encoder_directory)
    teacher = Teacher(
        MeanPooled(bare.network.encoder, nn.Linear(16, 3)), bare.tokenizer_json, ("a", "b", "c"), max_tokens=12
    )
    teacher.save(tmp_path / "saved")
    again = load_teacher(tmp_path / "saved")
    assert again.labels == ("a", "b", "c")
    assert again.max_tokens == 12
    assert again.digest() == teacher.digest()
    np.testing.assert_array_equal(again.logits(TEXTS), teacher.logits(TEXTS))
    assert sorted(path.suffix for path in (tmp_path / "saved").iterdir()) == [".json"] * 3 + [".safetensors"] * 2


def test_another_head_is_another_digest(encoder_directory):
    bare = load_teacher(encoder_directory)
    digests = {
        Teacher(MeanPooled(bare.network.encoder, nn.Linear(16, 2)), bare.tokenizer_json, labels, max_tokens=12).digest()
        for labels in [("a", "b"), ("b", "a")]
    }
    assert len(digests) == 2


@pytest.mark.parametrize(
    "files", [{}, {"config.json": "{}"}, {"config.json": '{"model_type": "bert"}'}, {"teacher.json": "{}"}]
)
def test_a_directory_that_is_no_teacher_is_refused_by_name(tmp_path, files):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(TeacherInvalid, match="does not load"):
        load_teacher(tmp_path)


def test_a_place_that_does_not_exist_is_refused(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(TeacherInvalid, match=r"nowhere/at/all' does not load"):
        load_teacher("./nowhere/at/all")


def test_a_logit_that_is_not_finite_names_the_text(classifier_directory):
    teacher = load_teacher(classifier_directory)
    with torch.no_grad():
        vocabulary = teacher.network.encoder.embeddings.word_embeddings.weight
        vocabulary[tokenise(teacher.tokenizer_json, ["lost"], max_tokens=8).ids[1]] = float("nan")
    with pytest.raises(TeacherInvalid, match="text 1: 'card lost'"):
        teacher.logits(TEXTS)


def test_other_labels_are_refused(classifier_directory):
    teacher = load_teacher(classifier_directory)
    check_labels(teacher, ["negative", "positive"])
    with pytest.raises(TeacherInvalid, match="the teacher has 2 labels"):
        check_labels(teacher, ["negative", "neutral", "positive"])


def test_states_are_those_of_each_layer_with_attention_rows_of_one(encoder_directory):
    teacher = load_teacher(encoder_directory)
    batch = tokenise(teacher.tokenizer_json, TEXTS, max_tokens=64).padded([0, 1])
    states = teacher.states(batch)
    assert [tuple(hidden.shape) for hidden in states.hidden] == [(2, 6, 16)] * 3
    assert [tuple(attention.shape) for attention in states.attention] == [(2, 2, 6, 6)] * 2
    torch.testing.assert_close(states.attention[0].sum(-1), torch.ones(2, 2, 6), atol=0.02, rtol=0)


def test_neighbours_are_whole_words_and_never_the_word_itself(encoder_directory):
    found = neighbours(load_teacher(encoder_directory), at_most=3)
    assert "card" in found
    assert "a" not in found
    for word, others in found.items():
        assert word not in others
        assert len(others) == 3
        assert all(other in found for other in others)

"""The label cache: a text is labelled once, a killed run loses one shard at most, damage is named."""

import numpy as np
import pytest

from models.errors import TeacherInvalid
from models.teachers import labels
from models.teachers.labels import key_of, label
from models.teachers.teacher import load_teacher

TEXTS = ["where is my card", "card lost", "where is my card", "the refund"]


@pytest.fixture
def teacher(classifier_directory):
    return load_teacher(classifier_directory)


def test_labels_are_the_teachers_logits_in_the_texts_order(teacher, tmp_path):
    np.testing.assert_allclose(label(teacher, TEXTS, directory=tmp_path), teacher.logits(TEXTS), atol=0.02)


def test_what_is_cached_is_not_labelled_again(teacher, tmp_path, monkeypatch):
    first = label(teacher, TEXTS, directory=tmp_path)
    asked = []
    monkeypatch.setattr(
        teacher, "logits", lambda texts: asked.append(list(texts)) or np.zeros((len(texts), 2), np.float32)
    )
    again = label(teacher, ["the refund", "a film", "card lost"], directory=tmp_path)
    assert asked == [["a film"]]
    np.testing.assert_array_equal(again[[0, 2]], first[[3, 1]])


def test_a_killed_run_keeps_the_shards_it_wrote(teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(labels, "_SHARD_ITEMS", 2)

    def kill(done, total, note):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        label(teacher, TEXTS, directory=tmp_path, progress=kill)
    (tmp_path / teacher.digest() / "000001.partial").write_bytes(b"half a shard")
    told = []
    label(teacher, TEXTS, directory=tmp_path, progress=lambda *seen: told.append(seen))
    assert told == [(1, 1, "")]


def test_another_teacher_has_another_cache(teacher, encoder_directory, classifier_directory, tmp_path):
    label(teacher, TEXTS, directory=tmp_path)
    other = load_teacher(classifier_directory, max_tokens=4)
    label(other, TEXTS, directory=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_damaged_shard_is_named(teacher, tmp_path):
    label(teacher, TEXTS, directory=tmp_path)
    shard = next(tmp_path.rglob("*.npz"))
    shard.write_bytes(shard.read_bytes()[:50])
    with pytest.raises(TeacherInvalid, match=r"000000\.npz"):
        label(teacher, TEXTS, directory=tmp_path)


def test_a_shard_of_another_width_is_named(teacher, tmp_path):
    folder = tmp_path / teacher.digest()
    folder.mkdir()
    np.savez(folder / "000000.npz", keys=np.zeros((1, 32), np.uint8), logits=np.zeros((1, 3), np.float32))
    with pytest.raises(TeacherInvalid, match="another number of labels"):
        label(teacher, TEXTS, directory=tmp_path)


def test_no_texts(teacher, tmp_path):
    assert label(teacher, [], directory=tmp_path).shape == (0, 2)


def test_a_pair_is_not_a_text():
    assert key_of(("a", "b")) != key_of("ab") != key_of('["a", "b"]')

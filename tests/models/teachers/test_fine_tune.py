"""Fine-tuning learns a small task, continues where it was killed, and leaves unused embeddings alone."""

import numpy as np
import pytest

from models.data.rows import Row, text_of
from models.errors import TeacherInvalid
from models.recipe.parts import FineTune
from models.teachers.fine_tune import fine_tune, gold_of
from models.teachers.fit import accuracy
from models.teachers.teacher import load_teacher
from models.teachers.tokens import tokenise

LABELS = ("lost_card", "refund", "transfer")
SETTINGS = FineTune(epochs=25, learning_rate=3e-3, batch_items=6, max_tokens=16)


@pytest.mark.parametrize("head", ["random", "centroids", "logistic"])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_it_learns_and_reports_every_epoch(encoder_directory, rows, head):
    settings = SETTINGS.model_copy(update={"head": head, "average": "ema"})
    result = fine_tune(encoder_directory, rows, LABELS, settings, seed=0, dev=rows)
    assert len(result.dev_accuracy) == 25
    assert result.dev_accuracy[-1] == 1.0
    logits = result.teacher.logits([text_of(row) for row in rows])
    assert accuracy(logits, gold_of(rows, LABELS)) == 1.0


def test_two_labels_have_two_logits(encoder_directory, rows):
    two = [row for row in rows if row.label != "transfer"]
    settings = SETTINGS.model_copy(update={"head": "logistic"})
    result = fine_tune(encoder_directory, two, LABELS[:2], settings, seed=0)
    assert result.dev_accuracy == ()
    assert accuracy(result.teacher.logits([row.text for row in two]), gold_of(two, LABELS)) == 1.0


def test_embeddings_of_tokens_that_do_not_occur_are_as_before(encoder_directory, rows):
    settings = SETTINGS.model_copy(update={"epochs": 1})
    before = load_teacher(encoder_directory).encoder_state()["embeddings.word_embeddings.weight"]
    tuned = fine_tune(encoder_directory, rows, LABELS, settings, seed=0).teacher
    after = tuned.encoder_state()["embeddings.word_embeddings.weight"]
    used = np.unique(tokenise(tuned.tokenizer_json, [row.text for row in rows], max_tokens=16).ids)
    unused = np.setdiff1d(np.arange(len(before)), used)
    assert (before[unused] == after[unused]).all()
    assert (before[used] != after[used]).any()


def test_a_killed_run_continues_to_the_same_teacher(encoder_directory, rows, tmp_path):
    def kill(done, total, note):
        if done >= 1_000:
            raise KeyboardInterrupt

    settings = SETTINGS.model_copy(update={"epochs": 350})
    whole = fine_tune(encoder_directory, rows, LABELS, settings, seed=0).teacher.digest()
    with pytest.raises(KeyboardInterrupt):
        fine_tune(encoder_directory, rows, LABELS, settings, seed=0, checkpoint=tmp_path / "c", progress=kill)
    again = fine_tune(encoder_directory, rows, LABELS, settings, seed=0, checkpoint=tmp_path / "c")
    assert again.teacher.digest() == whole


def test_a_sequence_classifier_is_refused(classifier_directory, rows):
    with pytest.raises(TeacherInvalid, match="bare encoder"):
        fine_tune(classifier_directory, rows, LABELS, SETTINGS, seed=0)


def test_a_diverging_run_is_refused(encoder_directory, rows):
    settings = SETTINGS.model_copy(update={"learning_rate": 1e30})
    with pytest.raises(TeacherInvalid, match="diverged"):
        fine_tune(encoder_directory, rows, LABELS, settings, seed=0)


def test_pairs_and_missing_labels():
    assert text_of(Row("a", text_pair="b")) == ("a", "b")
    assert gold_of([Row("a"), Row("b", "refund")], LABELS).tolist() == [-1, 1]

"""What a bundle says about how it was made."""

import re

from models.export.golden_texts import GOLDEN_TEXTS
from models.export.import_model import spread
from models.export.provenance import make_provenance


def test_time_libraries_and_machine_are_filled_in():
    made = make_provenance("test", teacher="someone", notes=["a note"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", made.created)
    assert {"python", "torch", "onnxruntime", "tokenizers"} <= set(made.libraries)
    assert made.machine
    assert (made.teacher, made.notes) == ("someone", ("a note",))


def test_the_golden_texts_are_distinct_and_of_every_kind():
    assert len(set(GOLDEN_TEXTS)) == len(GOLDEN_TEXTS)
    assert "" in GOLDEN_TEXTS
    assert any(not text.isascii() for text in GOLDEN_TEXTS)
    assert max(map(len, GOLDEN_TEXTS)) > 300


def test_rows_are_taken_evenly_from_first_to_last():
    texts = [str(i) for i in range(10)]
    assert spread(texts, 4) == ("0", "2", "5", "7")
    assert spread(texts, 20) == tuple(texts)

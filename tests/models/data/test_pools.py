"""Pools of unlabelled texts: whole files, or some sources of one, each with its licence."""

import json
from pathlib import Path
from typing import Any

import pytest

from models.data.cuts import Splits, prepare
from models.errors import DataInvalid
from models.recipe.classify import ClassifyRecipe

POOL = [("goals and matches", "sport"), ("shares and bonds", "money"), ("bats and balls", "sport")]


def prepared(folder: Path, *pools: Any) -> Splits:
    """The splits of a toy recipe with these pools."""
    rows = [{"text": f"row {at} of {folder.name}", "label": "yes" if at % 2 else "no"} for at in range(400)]
    (folder / "train.jsonl").write_text("\n".join(json.dumps(row) for row in rows[:300]))
    (folder / "test.jsonl").write_text("\n".join(json.dumps(row) for row in rows[300:]))
    texts = [json.dumps({"text": text, "source": source}) for text, source in POOL]
    (folder / "pool.jsonl").write_text("\n".join(texts))
    cut = {"cut": 0.1}
    files = {"train": str(folder / "train.jsonl"), "test": str(folder / "test.jsonl")}
    data = {**files, "dev": cut, "calibration": cut, "gate": cut, "unlabelled": list(pools), "licence": "made here"}
    distil = {"objectives": [{"soft_labels": {}}]}
    document = {"schema": 1, "name": "toy", "task": "classify", "data": data, "distil": distil}
    return prepare(ClassifyRecipe.model_validate(document))


def test_a_file_alone_is_taken_whole_and_its_licence_is_not_known(tmp_path: Path):
    splits = prepared(tmp_path, str(tmp_path / "pool.jsonl"))
    assert splits.unlabelled == tuple(text for text, _ in POOL)
    assert [(source.rows, source.licence) for source in splits.sources][2:] == [(3, "not stated")]


def test_sources_pick_rows_and_the_pools_licence_is_its_own(tmp_path: Path):
    pool = {"file": str(tmp_path / "pool.jsonl"), "sources": ["sport"], "licence": "research"}
    splits = prepared(tmp_path, pool)
    assert splits.unlabelled == ("goals and matches", "bats and balls")
    assert [(source.rows, source.licence) for source in splits.sources][1:] == [(100, "made here"), (2, "research")]


def test_a_source_that_no_row_has_is_refused(tmp_path: Path):
    with pytest.raises(DataInvalid, match=r"pool\.jsonl: no row has a 'source' of film"):
        prepared(tmp_path, {"file": str(tmp_path / "pool.jsonl"), "sources": ["film"]})

"""Dark examples and self-paced weights in a recipe: off by default, digests as before, and what is refused."""

from pathlib import Path
from typing import Any

import pytest

from models.errors import RecipeInvalid
from models.recipe.dark_examples import DarkExamples, SelfPaced
from models.recipe.parts import digest_of
from models.recipe.rank import RankDistil, RankRecipe
from models.recipe.read import recipe_of

PLAIN = {"objectives": [{"listwise_kl": {}}]}


def recipe(folder: Path, **distil: Any) -> RankRecipe:
    for name in ("train.jsonl", "test.jsonl"):
        (folder / name).write_text("")
    sets = [{"name": "one", "train": str(folder / "train.jsonl"), "tests": {"one": str(folder / "test.jsonl")}}]
    data = {"sets": sets, "gate": {"cut": 0.1}}
    whole = {"schema": 1, "name": "toy", "task": "rank", "data": data, "distil": {**PLAIN, **distil}}
    found = recipe_of(whole, where="R")
    assert isinstance(found, RankRecipe)
    return found


def test_a_recipe_without_them_keeps_its_digest(tmp_path: Path) -> None:
    plain = recipe(tmp_path)
    assert (plain.distil.dark_examples, plain.distil.self_paced) == (None, None)
    # subtle: as it was before there were these keys; another number makes every cached ranker anew
    assert digest_of(RankDistil(**PLAIN).model_dump(mode="json")) == BEFORE
    assert recipe(tmp_path, dark_examples=None, self_paced=None).digest() == plain.digest()


BEFORE = "93f785b752388c4cffde2ac06ad1f43802273bab3a5eba913d37ae348f332746"


def test_each_key_changes_the_digest(tmp_path: Path) -> None:
    changes: list[dict[str, Any]] = [{}, {"dark_examples": {}}, {"self_paced": {}}, {"self_paced": {"end": 1}}]
    assert len({recipe(tmp_path, **each).digest() for each in changes}) == len(changes)


def test_their_defaults(tmp_path: Path) -> None:
    found = recipe(tmp_path, dark_examples={}, self_paced={}).distil
    assert found.dark_examples == DarkExamples(of_list=2, mix=0.5, mask=0.3, mask_shared=0.6)
    assert found.self_paced == SelfPaced(start=0.5, end=0.5)
    assert recipe(tmp_path, dark_examples={"mix": 1, "mask": 0, "mask_shared": 0}).distil.dark_examples is not None


@pytest.mark.parametrize(
    ("distil", "said"),
    [
        ({"dark_examples": {"of_list": 0}}, "distil.dark_examples.of_list: Input should be greater than or equal to 1"),
        ({"dark_examples": {"mix": 1.1}}, "distil.dark_examples.mix: Input should be less than or equal to 1"),
        ({"dark_examples": {"mask": 1}}, "distil.dark_examples.mask: Input should be less than 1"),
        ({"dark_examples": {"mask": 0, "mask_shared": 0}}, "distil.dark_examples: mask and mask_shared are both 0"),
        ({"dark_examples": {"drop": 0.1}}, "distil.dark_examples.drop: unknown key"),
        ({"dark_examples": True}, "distil.dark_examples: must be a mapping"),
        ({"self_paced": {"start": 1}}, "distil.self_paced.start: Input should be less than 1"),
        ({"self_paced": {"end": 0}}, "distil.self_paced.end: Input should be greater than 0"),
        ({"self_paced": True}, "distil.self_paced: must be a mapping"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path: Path, distil: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeInvalid) as caught:
        recipe(tmp_path, **distil)
    assert str(caught.value).startswith("R: ")
    assert said in str(caught.value)

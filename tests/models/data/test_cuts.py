"""The cuts: a permanent rule, nothing in two splits, every loss counted, every bad input refused in one line."""

import json
import os
import random
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from models.data.cuts import Splits, prepare, split_sources
from models.data.parts import PartIndex
from models.data.rows import group_key, words
from models.errors import DataInvalid, DataLeak, OfflineError, RecipeInvalid
from models.recipe.classify import ClassifyRecipe

CUTS: dict[str, Any] = {"dev": {"cut": 0.1}, "calibration": {"cut": 0.2}, "gate": {"cut": 0.1}}
Texts = Iterable[tuple[str, str]]


def texts(count: int, *, seed: int = 0, prefix: str = "row") -> list[tuple[str, str]]:
    """Distinct texts of two labels."""
    draw = random.Random(seed)
    return [(f"{prefix} {i} {draw.choice('abcdef')}", "yes" if i % 3 else "no") for i in range(count)]


def write(path: Path, rows: Texts) -> str:
    path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows))
    return str(path)


def recipe_of(folder: Path, train: Texts, test: Texts | None = None, **data: Any) -> ClassifyRecipe:
    """A recipe over files written into `folder`; `data` overrides keys of its data part, `dev` also by rows."""
    if isinstance(data.get("dev"), list):
        data["dev"] = write(folder / "dev.jsonl", data["dev"])
    files = {
        "train": write(folder / "train.jsonl", train),
        "test": write(folder / "test.jsonl", texts(30, prefix="test") if test is None else test),
    }
    return recipe_from({**files, **CUTS, **data})


def recipe_from(data: dict[str, Any], **fields: Any) -> ClassifyRecipe:
    distil = {"objectives": [{"soft_labels": {}}]}
    document = {"schema": 1, "name": "toy", "task": "classify", "data": data, "distil": distil}
    return ClassifyRecipe.model_validate(document | fields)


def refused(recipe: ClassifyRecipe, error: type[OfflineError]) -> str:
    with pytest.raises(error) as caught:
        prepare(recipe)
    message = str(caught.value)
    assert "\n" not in message
    assert caught.value.exit_status == 2
    return message.replace(str(Path(recipe.data.train).parent) + "/", "")


def of(splits: Splits, name: str) -> list[str]:
    return [row.text for row in getattr(splits, name)]


def all_of(splits: Splits) -> dict[str, list[str]]:
    return {name: of(splits, name) for name in ("train", "dev", "calibration", "gate", "test")}


def test_shares_come_out_as_asked(tmp_path: Path) -> None:
    splits = prepare(recipe_of(tmp_path, texts(4000)))
    sizes = {name: len(rows) / 4000 for name, rows in all_of(splits).items()}
    # four standard deviations of a share of 4,000
    assert sizes["gate"] == pytest.approx(0.1, abs=0.02)
    assert sizes["dev"] == pytest.approx(0.1, abs=0.02)
    assert sizes["calibration"] == pytest.approx(0.2, abs=0.026)


def test_every_row_is_in_one_split_in_file_order(tmp_path: Path) -> None:
    rows = texts(400)
    splits = all_of(prepare(recipe_of(tmp_path, rows)))
    order = [text for text, _ in rows]
    cut = [splits[name] for name in ("train", "dev", "calibration", "gate")]
    assert sorted(text for part in cut for text in part) == sorted(order)
    assert all(part == sorted(part, key=order.index) for part in cut)


def test_a_row_stays_where_it_is_whatever_the_seed_the_order_and_the_other_rows(tmp_path: Path) -> None:
    rows = texts(300)
    first = prepare(recipe_of(tmp_path, rows))
    files = json.loads(recipe_of(tmp_path, [*reversed(rows), *texts(300, prefix="new")]).model_dump_json())["data"]
    second = prepare(recipe_from(files, seed=7))
    for name in ("train", "dev", "calibration", "gate"):
        assert set(of(first, name)) == {text for text in of(second, name) if not text.startswith("new")}


def test_rows_of_the_same_words_go_together_and_the_longest_stays(tmp_path: Path) -> None:
    rows = [(form, label) for text, label in texts(200) for form in (text, f"{text} !", text.upper())]
    splits = prepare(recipe_of(tmp_path, rows))
    assert all(text.endswith(" !") for name in ("dev", "calibration", "gate") for text in of(splits, name))
    assert len(splits.train) % 3 == 0
    held_out = len(splits.dev) + len(splits.calibration) + len(splits.gate)
    assert f"{2 * held_out:,} repeated rows dropped from the cut splits" in splits.notes


def test_rows_of_the_test_file_leave_train_and_are_counted(tmp_path: Path) -> None:
    rows = texts(300)
    # one row of the test file is in train as it stands, one but for its punctuation
    test = [*texts(198, prefix="test"), rows[5], (rows[7][0] + "?", "yes")]
    splits = prepare(recipe_of(tmp_path, [*rows, rows[5]], test))
    assert splits.notes[0] == ("2 of the 200 test rows occur in the training file (1.00%); 3 rows taken out of train")
    cut = {text for name in ("train", "dev", "calibration", "gate") for text in of(splits, name)}
    assert not {rows[5][0], rows[7][0]} & cut
    assert len(splits.test) == 200


def test_rows_of_the_dev_file_leave_train_and_are_counted(tmp_path: Path) -> None:
    rows = texts(300)
    splits = prepare(recipe_of(tmp_path, rows, dev=[*texts(149, prefix="dev"), rows[0]]))
    assert len(splits.dev) == 150
    assert rows[0][0] not in {text for name in ("train", "calibration", "gate") for text in of(splits, name)}
    assert splits.notes[0].startswith("1 of the 150 dev rows occur in the training file (0.67%)")


def test_dev_and_test_rows_in_common_are_counted(tmp_path: Path) -> None:
    test = texts(200, prefix="test")
    splits = prepare(recipe_of(tmp_path, texts(300), test, dev=[*texts(149, prefix="dev"), test[3]]))
    assert splits.notes == ("1 of the 150 dev rows occur in the test file; left in both",)


@pytest.mark.parametrize("role", ["dev", "test"])
def test_more_overlap_than_allowed_is_a_leak(tmp_path: Path, role: str) -> None:
    rows = texts(300)
    held = [*texts(97, prefix="held"), *rows[10:13]]
    recipe = recipe_of(tmp_path, rows, **({"test": held} if role == "test" else {"dev": held}))
    assert refused(recipe, DataLeak) == (
        f"data.{role}: 3 of its 100 rows (3.00%) occur in train, more than the allowed 1.00%: "
        f"{role}.jsonl:98 = train.jsonl:11; {role}.jsonl:99 = train.jsonl:12"
    )


def test_the_allowed_overlap_is_the_recipes(tmp_path: Path) -> None:
    rows = texts(300)
    held = [*texts(97, prefix="held"), *rows[10:13]]
    assert prepare(recipe_of(tmp_path, rows, held, allowed_overlap=0.03)).notes[0].startswith("3 of the 100 test rows")
    assert "more than the allowed 0.00%" in refused(
        recipe_of(tmp_path, rows, [*texts(99), rows[0]], allowed_overlap=0), DataLeak
    )


def test_a_file_in_two_roles_is_refused(tmp_path: Path) -> None:
    rows = texts(100)
    recipe = recipe_of(tmp_path, rows)
    train, test = recipe.data.train, recipe.data.test
    same = recipe.data.model_dump() | {"test": train}
    message = f"data.test: {tmp_path.name}/train.jsonl is the train file too; each role needs its own rows"
    assert refused(recipe_from(same), RecipeInvalid) == message
    copied = recipe.data.model_dump() | {"test": write(tmp_path / "copy.jsonl", rows)}
    assert "the train file too" in refused(recipe_from(copied), RecipeInvalid)
    assert "the test file too" in refused(recipe_from(recipe.data.model_dump() | {"dev": test}), RecipeInvalid)


def test_a_link_to_the_training_file_is_the_training_file(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, texts(100))
    (tmp_path / "link.jsonl").symlink_to(recipe.data.train)
    linked = recipe.data.model_dump() | {"test": str(tmp_path / "link.jsonl")}
    assert "the train file too" in refused(recipe_from(linked), RecipeInvalid)


def test_a_text_of_several_labels_keeps_the_most_frequent(tmp_path: Path) -> None:
    rows = texts(200)
    conflicts = [("same words", "yes"), ("Same  words", "no"), ("same words", "no"), ("a tie", "yes"), ("a tie", "no")]
    splits = prepare(recipe_of(tmp_path, [*rows, *conflicts]))
    found = [row for name in ("train", "dev", "calibration", "gate") for row in getattr(splits, name)]
    assert {row.label for row in found if words(row.text) == "same words"} == {"no"}
    assert "a tie" not in {row.text for row in found}
    assert "2 training texts have several labels; 3 rows dropped" in splits.notes


def phrases(count: int) -> list[tuple[str, str]]:
    """Sentences of six words of their own and two shared ones, each with its phrases, in any order."""
    rows: list[tuple[str, str]] = []
    for i in range(count):
        tokens = ["the", "film", *(f"w{i}x{j}" for j in range(6)), "."]
        label = "yes" if i % 2 else "no"
        rows += [(" ".join(tokens[a:b]), label) for a, b in ((0, 9), (0, 8), (0, 2), (2, 5), (3, 4), (5, 9))]
    random.Random(0).shuffle(rows)
    return list({text: (text, label) for text, label in rows}.values())


def test_parts_only_whole_sentences_are_held_out_and_their_parts_are_dropped(tmp_path: Path) -> None:
    splits = prepare(recipe_of(tmp_path, phrases(200), parts="substrings"))
    held_out = [text for name in ("dev", "calibration", "gate") for text in of(splits, name)]
    assert held_out
    assert all(text.startswith("the film ") and text.endswith(" .") for text in held_out)
    index = PartIndex(of(splits, "train"))
    assert not any(index.parts_of(text) for text in held_out)
    assert "the film" not in of(splits, "train")
    assert len(splits.train) == 5 * (200 - len(held_out))  # a sentence, once without its stop, and three phrases
    assert "200 whole texts of at least 3 words; only they may be held out" in splits.notes
    assert f"{3 * len(held_out) + 1:,} rows dropped from train as parts of held-out texts" in splits.notes


def test_parts_short_whole_texts_stay_in_train(tmp_path: Path) -> None:
    short = [(f"s{i} !", "yes" if i % 2 else "no") for i in range(100)]
    splits = prepare(recipe_of(tmp_path, [*phrases(100), *short], parts="substrings"))
    assert {text for text, _ in short} <= set(of(splits, "train"))


def test_without_parts_phrases_are_rows_like_any_other(tmp_path: Path) -> None:
    rows = phrases(200)
    splits = prepare(recipe_of(tmp_path, rows))
    assert {"w3x1", "w4x1"} <= {text for part in all_of(splits).values() for text in part}
    assert any(len(text.split()) < 3 for text in of(splits, "calibration"))


def test_unlabelled_texts_come_once_and_never_held_out_or_known(tmp_path: Path) -> None:
    rows, test = texts(200), texts(30, prefix="test")
    pool = [("fresh one", ""), (test[0][0] + " !", ""), *[(text, "") for text, _ in rows], ("Fresh  one.", "")]
    path = tmp_path / "pool.jsonl"
    path.write_text("".join(json.dumps({"text": text, "source": "web"}) + "\n" for text, _ in pool))
    splits = prepare(recipe_of(tmp_path, rows, test, unlabelled=[str(path)]))
    assert splits.unlabelled == ("fresh one",)
    held_out = 1 + len(splits.dev) + len(splits.calibration) + len(splits.gate)
    assert splits.notes[-1] == (
        f"unlabelled: 203 texts, 1 kept; {held_out} dropped as held out, the others as repeats or training texts"
    )
    assert [source.role for source in splits.sources] == ["train", "test", "unlabelled"]


def test_parts_unlabelled_parts_and_wholes_of_held_out_texts_are_dropped(tmp_path: Path) -> None:
    rows = phrases(100)
    held = prepare(recipe_of(tmp_path, rows, parts="substrings")).calibration[0].text
    part, whole = " ".join(held.split()[3:5]), f"so they said : {held}"
    path = tmp_path / "pool.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in (part, "kept text", whole)))
    assert prepare(recipe_of(tmp_path, rows, parts="substrings", unlabelled=[str(path)])).unlabelled == ("kept text",)
    assert prepare(recipe_of(tmp_path, rows, unlabelled=[str(path)])).unlabelled == (part, "kept text", whole)


def test_labels_are_those_of_train_sorted(tmp_path: Path) -> None:
    assert prepare(recipe_of(tmp_path, texts(100))).labels == ("no", "yes")


def test_one_label_only_is_refused(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, [(text, "yes") for text, _ in texts(100)], [("a b c", "yes")])
    assert refused(recipe, DataInvalid) == "train.jsonl: only one label, 'yes'; a classifier needs at least two"


def test_a_class_that_the_cuts_emptied_is_refused(tmp_path: Path) -> None:
    rows = texts(300)
    held_out = prepare(recipe_of(tmp_path, rows)).gate[0].text
    rows = [(text, "rare" if text == held_out else label) for text, label in rows]
    assert refused(recipe_of(tmp_path, rows), DataInvalid) == (
        "train.jsonl: label 'rare' has 0 rows in train after the cuts; each needs at least 2"
    )


def test_a_class_of_one_row_is_refused(tmp_path: Path) -> None:
    rows = texts(300)
    kept = prepare(recipe_of(tmp_path, rows)).train[0].text
    rows = [(text, "rare" if text == kept else label) for text, label in rows]
    assert "label 'rare' has 1 rows in train after the cuts" in refused(recipe_of(tmp_path, rows), DataInvalid)


@pytest.mark.parametrize("role", ["dev", "test"])
def test_a_label_that_train_has_not_is_refused(tmp_path: Path, role: str) -> None:
    held = [*texts(3, prefix="held"), ("something new", "maybe")]
    recipe = recipe_of(tmp_path, texts(100), **({"test": held} if role == "test" else {"dev": held}))
    message = refused(recipe, DataInvalid)
    assert message == f"{role}.jsonl:4: field 'label': 'maybe' does not occur in train"


@pytest.mark.parametrize("split", ["dev", "calibration", "gate"])
def test_a_cut_without_rows_is_refused(tmp_path: Path, split: str) -> None:
    recipe = recipe_of(tmp_path, texts(100), **{split: {"cut": 1e-9}})
    message = refused(recipe, DataInvalid)
    assert message == f"train.jsonl: data.{split}: the cut holds no rows; the file is too small for its share"


def test_a_bad_line_of_any_file_is_named(tmp_path: Path) -> None:
    for name in ("train", "test", "dev"):
        recipe = recipe_of(tmp_path, texts(100), dev=texts(30, prefix="dev"))
        path = tmp_path / f"{name}.jsonl"
        path.write_text(path.read_text() + '{"text": "no label"}\n')
        lines = len(path.read_text().splitlines())
        assert refused(recipe, DataInvalid) == f"{name}.jsonl:{lines}: field 'label': missing"


def test_pairs_and_single_texts_do_not_mix(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, texts(100))
    Path(recipe.data.test).write_text('{"text": "a", "text_pair": "b", "label": "yes"}\n')
    expected = "test.jsonl: field 'text_pair': test and train must both have it or neither"
    assert refused(recipe, DataInvalid) == expected


def pairs(path: Path, count: int, prefix: str) -> str:
    rows = ({"text": f"{prefix} {i}", "text_pair": "b", "label": "yes" if i % 2 else "no"} for i in range(count))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_pairs_are_cut_by_both_texts_and_have_no_parts(tmp_path: Path) -> None:
    files = {"train": pairs(tmp_path / "train.jsonl", 200, "a"), "test": pairs(tmp_path / "test.jsonl", 20, "t")}
    splits = prepare(recipe_from({**files, **CUTS}))
    assert len(splits.train) + len(splits.dev) + len(splits.calibration) + len(splits.gate) == 200
    message = "data.parts: substrings is for single texts, and the rows of train are pairs"
    assert refused(recipe_from({**files, **CUTS, "parts": "substrings"}), RecipeInvalid) == message


def test_a_pool_beside_pairs_keeps_no_text_of_a_held_out_pair(tmp_path: Path) -> None:
    files = {"train": pairs(tmp_path / "train.jsonl", 200, "a"), "test": pairs(tmp_path / "test.jsonl", 20, "t")}
    held = prepare(recipe_from({**files, **CUTS})).calibration[0].text
    known = prepare(recipe_from({**files, **CUTS})).train[0].text
    pool = tmp_path / "pool.jsonl"
    # the second text of every pair is "b"
    pool.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("new", "t 3!", held, known, "b", "New")))
    splits = prepare(recipe_from({**files, **CUTS, "unlabelled": [str(pool)]}))
    assert splits.unlabelled == ("new",)


@pytest.mark.parametrize("task", ["embed", "rank"])
def test_other_tasks_are_not_cut(tmp_path: Path, task: str) -> None:
    recipe = recipe_of(tmp_path, texts(100)).model_copy(update={"task": task})
    assert refused(recipe, RecipeInvalid) == f"task: only classify data are cut into splits, not {task}"


def test_sources_name_files_without_saying_where_they_lie(tmp_path: Path) -> None:
    (tmp_path / "toy").mkdir()
    splits = prepare(recipe_of(tmp_path / "toy", texts(100), licence="CC BY 4.0"))
    assert [(s.role, s.name, s.rows, s.licence) for s in splits.sources] == [
        ("train", "toy/train.jsonl", 100, "CC BY 4.0"),
        ("test", "toy/test.jsonl", 30, "CC BY 4.0"),
    ]
    assert str(tmp_path) not in "".join(splits.notes)


def test_digests_follow_texts_and_labels_and_not_their_order(tmp_path: Path) -> None:
    rows = texts(200)
    first = prepare(recipe_of(tmp_path, rows))
    assert set(first.digests) == {"train", "dev", "calibration", "gate", "test", "unlabelled"}
    assert prepare(recipe_of(tmp_path, rows[::-1])).digests == first.digests
    trained = first.train[0].text
    relabelled = [(text, "yes" if label == "no" and text == trained else label) for text, label in rows]
    changed = prepare(recipe_of(tmp_path, relabelled)).digests
    assert changed["train"] != first.digests["train"]
    assert changed["gate"] == first.digests["gate"]


def test_held_out_keys_are_those_of_all_splits_but_train(tmp_path: Path) -> None:
    splits = prepare(recipe_of(tmp_path, texts(100)))
    keys = splits.held_out_keys()
    held = [*splits.dev, *splits.calibration, *splits.gate, *splits.test]
    assert keys == {group_key(row) for row in held}
    assert not keys & {group_key(row) for row in splits.train}


def test_the_rows_of_each_split_are_recorded_by_their_digest(tmp_path: Path) -> None:
    splits = prepare(recipe_of(tmp_path, texts(200), dev=texts(20, prefix="dev")))
    found = {source.role: source for source in split_sources(splits)}
    assert list(found) == ["dev rows", "calibration rows", "gate rows"]
    assert [source.sha256 for source in found.values()] == [
        splits.digests[name] for name in ("dev", "calibration", "gate")
    ]
    assert found["calibration rows"].rows == len(splits.calibration)
    assert found["calibration rows"].name.endswith("/train.jsonl")
    assert found["dev rows"].name.endswith("/dev.jsonl")
    cut = prepare(recipe_of(tmp_path, texts(200)))
    assert split_sources(cut)[0].name.endswith("/train.jsonl")


def real(name: str, **data: Any) -> Splits:
    root = os.environ.get("UNDERSTUDY_DATA")
    if not root:
        pytest.skip("UNDERSTUDY_DATA is not set")
    folder = Path(root) / "classify" / name
    return prepare(
        recipe_from(
            {
                key: str(folder / value) if isinstance(value, str) and value.endswith(("l", "z")) else value
                for key, value in data.items()
            }
        )
    )


@pytest.mark.data
def test_banking77_as_published() -> None:
    splits = real("banking77", train="train.jsonl", test="test.jsonl", **CUTS)
    assert splits.notes[0].startswith("25 of the 3,080 test rows occur in the training file (0.81%)")
    assert len(splits.labels) == 77
    assert len(splits.test) == 3080
    assert {row.label for row in splits.calibration} == set(splits.labels)


@pytest.mark.data
def test_sst2_is_calibrated_on_sentences_like_those_of_its_test_file() -> None:
    cuts = {"dev": "dev.jsonl", "calibration": {"cut": 0.2}, "gate": {"cut": 0.05}, "parts": "substrings"}
    splits = real("sst2", train="train.jsonl.gz", test="test.jsonl", **cuts)
    assert splits.notes[0].startswith("6 of the 1,821 test rows occur in the training file")
    assert splits.notes[1].startswith("2 of the 872 dev rows occur in the training file")
    assert len(splits.calibration) >= 1200
    assert len(splits.train) >= 45_000
    index = PartIndex(row.text for row in splits.train)
    assert not any(index.parts_of(row.text) for row in (*splits.calibration, *splits.gate))
    means = [sum(len(row.text.split()) for row in rows) / len(rows) for rows in (splits.calibration, splits.test)]
    assert means[0] == pytest.approx(means[1], abs=1.5)


def grouped(path: Path, groups: int, prefix: str) -> str:
    """Pairs of which five in a row share their first text."""
    rows = (
        {"text": f"{prefix} {i // 5}", "text_pair": f"other {i}", "label": "yes" if i % 2 else "no"}
        for i in range(5 * groups)
    )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_pairs_of_one_first_text_may_be_kept_together(tmp_path: Path) -> None:
    files = {"train": grouped(tmp_path / "train.jsonl", 100, "a"), "test": grouped(tmp_path / "test.jsonl", 9, "t")}
    together = prepare(recipe_from({**files, **CUTS, "parts": "first-text"}))
    apart = prepare(recipe_from({**files, **CUTS}))
    seen = {split: set(of(together, split)) for split in ("train", "dev", "calibration", "gate")}
    assert sum(map(len, seen.values())) == len(set.union(*seen.values())) == 100
    assert set(of(apart, "train")) & set(of(apart, "calibration"))


def test_first_texts_are_those_of_pairs(tmp_path: Path) -> None:
    message = "data.parts: first-text is for pairs, and the rows of train are single texts"
    assert refused(recipe_of(tmp_path, texts(100), parts="first-text"), RecipeInvalid) == message


def several(folder: Path, train: list[dict[str, Any]], **data: Any) -> ClassifyRecipe:
    """A recipe whose training rows lie in several files."""
    test = write(folder / "test.jsonl", texts(30, prefix="test"))
    return recipe_from({"train": train, "test": test, **CUTS, **data})


def test_a_role_may_have_several_files_with_labels_of_their_own(tmp_path: Path) -> None:
    renamed = [(text, {"yes": "ja", "no": "nein"}[label]) for text, label in texts(60, prefix="more")]
    second = {"file": write(tmp_path / "more.jsonl", renamed), "labels": {"ja": "yes", "nein": "no"}, "licence": "CC0"}
    first = {"file": write(tmp_path / "first.jsonl", texts(100))}
    recipe = several(tmp_path, [first, second], licence="MIT")
    splits = prepare(recipe)
    assert splits.labels == ("no", "yes")
    cut = [row for name in ("train", "dev", "calibration", "gate") for row in getattr(splits, name)]
    assert Counter(Path(row.file).name for row in cut) == {"first.jsonl": 100, "more.jsonl": 60}
    assert [(s.role, s.rows, s.licence) for s in splits.sources] == [
        ("train 1", 100, "MIT"),
        ("train 2", 60, "CC0"),
        ("test", 30, "MIT"),
    ]
    assert set(recipe.files()) == {"train.0.file", "train.1.file", "test"}


def test_rows_cut_from_several_files_name_them_all(tmp_path: Path) -> None:
    files = [{"file": write(tmp_path / f"{name}.jsonl", texts(80, prefix=name))} for name in ("a", "b")]
    splits = prepare(several(tmp_path, [files[0], files[1] | {"licence": "CC0"}], licence="MIT"))
    named = {source.role: (source.name.split(" + "), source.licence) for source in split_sources(splits)}
    both = [f"{tmp_path.name}/a.jsonl", f"{tmp_path.name}/b.jsonl"]
    assert named == dict.fromkeys(("dev rows", "calibration rows", "gate rows"), (both, "those of its files"))
    dev = [{"file": write(tmp_path / f"{name}.jsonl", texts(9, prefix=name))} for name in ("c", "d")]
    found, *cut = split_sources(prepare(several(tmp_path, files, dev=dev, licence="MIT")))
    assert (found.role, found.rows, found.licence) == ("dev rows", 18, "MIT")
    assert found.name == f"{tmp_path.name}/c.jsonl + {tmp_path.name}/d.jsonl"
    assert {source.name for source in cut} == {" + ".join(both)}


def test_a_label_that_no_row_has_is_not_renamed(tmp_path: Path) -> None:
    file = {"file": write(tmp_path / "first.jsonl", texts(100)), "labels": {"maybe": "yes"}}
    with pytest.raises(DataInvalid, match="labels: 'maybe' is to be renamed, and no row has it"):
        prepare(several(tmp_path, [file]))


def test_one_file_is_not_read_twice(tmp_path: Path) -> None:
    file = {"file": write(tmp_path / "first.jsonl", texts(100))}
    with pytest.raises(RecipeInvalid, match="is the train 1 file too"):
        prepare(several(tmp_path, [file, file]))

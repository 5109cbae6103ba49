"""docs/recipe.md is the reference of the recipe: every key is in it, with type and default, and its examples hold."""

import ast
import inspect
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
import pytest
import yaml
from pydantic import BaseModel, BeforeValidator
from pydantic.fields import FieldInfo

from models.data.corpus import read_corpus, read_qrels, read_queries
from models.data.cuts import prepare
from models.data.rankings import prepare_rankings
from models.data.read import read_rankings, read_rows, read_scored_pairs, read_texts
from models.data.texts import prepare_texts
from models.recipe.parts import Part, Recipe
from models.recipe.read import _KINDS, _yaml, recipe_of

DOCUMENT = Path(__file__).parents[2] / "docs" / "recipe.md"
TEXT = DOCUMENT.read_text(encoding="utf-8")
TABLES = dict(re.findall(r"<!-- keys: (\w+) -->\n\n?((?:\|.*\n)+)", TEXT))
EXAMPLES = re.findall(r"```yaml\n(.*?)```", TEXT, flags=re.DOTALL)
NAMES = {str: "text", int: "integer", float: "number", bool: "true or false"}
MARKS: dict[type, tuple[str, str]] = {
    annotated_types.Ge: ("≥", "ge"),
    annotated_types.Gt: (">", "gt"),
    annotated_types.Le: ("≤", "le"),
    annotated_types.Lt: ("<", "lt"),
}


def inside(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models that an annotation names, at whatever depth."""
    for inner in get_args(annotation):
        yield from inside(inner)
    if isinstance(annotation, type) and issubclass(annotation, Part):
        yield annotation


def models() -> dict[str, type[BaseModel]]:
    """Every model of every kind of recipe by its name, the parents that give keys to several among them."""
    found: dict[str, type[BaseModel]] = {}
    waiting: list[type[BaseModel]] = [Recipe, *_KINDS.values()]
    while waiting:
        model = waiting.pop()
        if model.__name__ not in found:
            found[model.__name__] = model
            waiting += [parent for parent in model.__mro__ if isinstance(parent, type) and issubclass(parent, Part)]
            waiting += [each for field in model.model_fields.values() for each in inside(field.annotation)]
    return {name: model for name, model in found.items() if keys(model)}


def keys(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """The keys that a model has of its own or says anew; the others stand with its parent."""
    own = inspect.get_annotations(model)
    return {field.alias or name: field for name, field in model.model_fields.items() if name in own}


def kind(annotation: Any, metadata: tuple[Any, ...] | list[Any] = ()) -> str:
    """What a value must be, as the page says it: `integer ≥ 1`."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        base, *more = arguments
        return kind(base, [each for one in more for each in (one.metadata if isinstance(one, FieldInfo) else [one])])
    if any(isinstance(one, BeforeValidator) for one in metadata):
        return f"text or {kind(annotation)}"
    limits = " and ".join(
        f"{sign} {_number(getattr(one, name))}"
        for one in metadata
        if type(one) in MARKS
        for sign, name in [MARKS[type(one)]]
    )
    return f"{_bare(annotation, origin, arguments, metadata)} {limits}".strip()


def _bare(annotation: Any, origin: Any, arguments: tuple[Any, ...], metadata: Any) -> str:
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (Union, UnionType):
        kinds = dict.fromkeys(kind(one) for one in arguments if one is not NoneType)
        return " or ".join(sorted(kinds, key=lambda one: one.startswith("list")))
    if origin is tuple:
        some = any(isinstance(one, annotated_types.MinLen) for one in metadata)
        return f"list{' (≥ 1)' if some else ''} of {kind(arguments[0])}"
    if annotation is str and any((getattr(one, "pattern", None) or "").startswith("^[a-z0-9]") for one in metadata):
        return "name"
    return NAMES.get(annotation, "mapping")


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def default(field: FieldInfo) -> str:
    """What holds where a key is left out, as the page says it."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    written = yaml.safe_dump(_plain(value), default_flow_style=True, width=1000, sort_keys=False)
    return f"`{written.removesuffix('...' + chr(10)).strip()}`"


def _plain(value: Any) -> Any:
    """What a default would be written as."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    return [_plain(each) for each in value] if isinstance(value, tuple) else value


def rows(model: str) -> dict[str, list[str]]:
    """The cells of a model's table after the first, by the key in the first."""
    lines = [line for line in TABLES[model].splitlines() if line.startswith("| `")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return {row[0].strip("` "): row[1:] for row in cells}


@pytest.mark.parametrize("name", models())
def test_every_key_has_a_row_and_every_row_is_a_key(name: str) -> None:
    assert list(rows(name)) == list(keys(models()[name]))


@pytest.mark.parametrize("name", models())
def test_a_row_says_type_and_default(name: str) -> None:
    said = {key: cells[:2] for key, cells in rows(name).items()}
    assert said == {
        key: [kind(field.annotation, field.metadata), default(field)] for key, field in keys(models()[name]).items()
    }
    assert all(len(cells) == 3 and cells[2] for cells in rows(name).values())


def test_every_table_is_of_a_model() -> None:
    assert set(TABLES) == set(models())


WORDS = ["card", "refund", "transfer", "limit", "rate", "branch", "pin", "cash", "loan", "fee", "app", "token"]
LABELS = ["duplicate", "not_duplicate", "paraphrase", "not_paraphrase"]


def text(at: int) -> str:
    """A text of its own for each number."""
    return f"{WORDS[at % 12]} {WORDS[at // 12 % 12]} number {at}"


def lines(file: str) -> Iterator[dict[str, Any]]:
    """Rows that every task takes: distinct in every file, in every form there is."""
    begin = sum(file.encode()) * 10_000
    for at in range(begin, begin + 600):
        passages = [{"text": f"{text(at)} passage {n}", "label": int(n == at % 3)} for n in range(3)]
        label = LABELS[at % 2 + 2 * ("other" in file or "dev" in file)] if "pairs" in file else str(at % 2)
        row = {"text": text(at), "label": label, "score": at % 5, "source": "news", "id": str(at)}
        yield (
            row
            | {"query": text(at), "passages": passages}
            | ({"text_pair": f"{text(at)} too"} if "pairs" in file else {})
        )


def made(document: Any, folder: Path) -> Any:
    """The document with toy files where it names any."""
    if isinstance(document, dict):
        return {key: made(value, folder) for key, value in document.items()}
    if isinstance(document, list):
        return [made(value, folder) for value in document]
    if isinstance(document, str) and document.startswith("${DATA}/"):
        path = folder / document.removeprefix("${DATA}/")
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".tsv":
            asked = sum(str(path.relative_to(folder)).replace("qrels", "queries").replace(".tsv", ".jsonl").encode())
            at = [*range(asked * 10_000, asked * 10_000 + 600)]
            document_ids = [*range(sum(b"wiki/corpus.jsonl") * 10_000, sum(b"wiki/corpus.jsonl") * 10_000 + 600)]
            path.write_text("".join(f"{q}\t{d}\t1\n" for q, d in zip(at, document_ids, strict=True)))
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in lines(str(path.relative_to(folder)))))
    return document


def whole(example: str) -> dict[str, Any]:
    """An example as a recipe: a fragment is laid over the minimal recipe of the task that its first line names."""
    document: dict[str, Any] = _yaml(example)
    if "schema" in document:
        return document
    task = re.match(r"# of a recipe for (\w+)", example)
    assert task is not None, example
    base = next(each for each in map(whole, filter(lambda one: "schema:" in one, EXAMPLES)) if each["task"] == task[1])
    return {**base, **document, "data": {**base["data"], **document.get("data", {})}}


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_example_is_a_recipe_whose_data_are_cut(
    example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATA", str(tmp_path))
    document = whole(example)
    made(document["data"], tmp_path)
    recipe = recipe_of(document, where="the example")
    cut: dict[str, Callable[[Any], Any]] = {"classify": prepare, "embed": prepare_texts, "rank": prepare_rankings}
    assert cut[recipe.task](recipe).train


def test_there_is_a_minimal_example_for_every_task() -> None:
    assert [whole(each)["task"] for each in EXAMPLES if "schema:" in each] == list(_KINDS)


READERS: dict[str, Callable[[Path], Any]] = {
    "classify": lambda path: read_rows(path, task="classify", labels="required"),
    "classify-pairs": lambda path: read_rows(path, task="classify", labels="required"),
    "texts": read_texts,
    "scored": read_scored_pairs,
    "list": read_rankings,
    "corpus": read_corpus,
    "queries": read_queries,
    "qrels": lambda path: read_qrels(path, queries={"q1"}, corpus={"d1", "d2"}),
}


def test_the_rows_shown_are_read(tmp_path: Path) -> None:
    shown = re.findall(r"<!-- rows: ([\w-]+) -->\n```\w+\n(.*?)```", TEXT, flags=re.DOTALL)
    assert {name for name, _ in shown} == set(READERS)
    for name, content in shown:
        path = tmp_path / f"{name}.jsonl"
        path.write_text(content, encoding="utf-8")
        assert READERS[name](path)


def test_every_message_shown_is_one_the_code_says() -> None:
    offline = (DOCUMENT.parents[1] / "models").rglob("*.py")
    nodes = (node for path in offline for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    said = "\n".join(node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str))
    table = TEXT.partition("## What is refused")[2]
    messages = [found for line in table.splitlines() if line.startswith("| `") for found in _messages(line)]
    assert len(messages) >= 30
    parts = [part.strip(" :'") for each in messages for part in re.split(r"…|\b[A-Z]{3,}\b|\$\{NAME\}", each)]
    assert [part for part in parts if part not in said] == []


def _messages(line: str) -> list[str]:
    return re.findall(r"`([^`]+)`", line.split(" | ")[0])


def test_every_link_inside_the_page_leads_somewhere() -> None:
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", TEXT, flags=re.DOTALL), flags=re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert set(re.findall(r"\]\(#([\w-]+)\)", TEXT)) <= anchors
    assert all((DOCUMENT.parent / file).is_file() for file in re.findall(r"\]\((\w[\w/.-]*\.md)\)", TEXT))

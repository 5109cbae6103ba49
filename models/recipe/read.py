"""Reading recipes: YAML, `${NAME}` from the environment, overrides; every problem in one line."""

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from models.errors import RecipeInvalid
from models.recipe.classify import ClassifyRecipe
from models.recipe.embed import EmbedRecipe
from models.recipe.parts import Recipe
from models.recipe.rank import RankRecipe

_KINDS: Mapping[str, type[Recipe]] = {"classify": ClassifyRecipe, "embed": EmbedRecipe, "rank": RankRecipe}


def read_recipe(path: Path, *, overrides: tuple[str, ...] = ()) -> Recipe:
    """Read and check a recipe file.

    Args:
        path: a YAML file.
        overrides: `a.b=value` strings, value as YAML; an entry of a list goes by its number from 0.
    Raises:
        RecipeInvalid: not readable, not YAML, an unknown key, a wrong value, an unset `${NAME}`, a missing data file.
    """
    document = _document(path)
    for override in overrides:
        _override(document, override)
    return recipe_of(document, where=str(path))


def recipe_of(document: dict[str, Any], *, where: str) -> Recipe:
    """Check a recipe that is there as a mapping, as in `Recipe.written`.

    Args:
        where: names it in errors.
    Raises:
        RecipeInvalid: as `read_recipe` does.
    """
    _plain(document, where)
    kind = _KINDS.get(str(document.get("task")))
    if kind is None:
        raise RecipeInvalid(f"{where}: task: must be one of {', '.join(_KINDS)}")
    try:
        recipe = kind.model_validate(_expanded(document, where))
    except ValidationError as error:
        raise RecipeInvalid(f"{where}: {_first_problem(error)}") from error
    _files_exist(recipe, where)
    return recipe.written_as(document)


class _Loader(yaml.SafeLoader):
    """Safe YAML in which a key that stands twice in one mapping is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} occurs twice", node.start_mark)
        return super().construct_mapping(node, deep=deep)


def _document(path: Path) -> dict[str, Any]:
    try:
        document = _yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeInvalid(f"{path}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RecipeInvalid(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(document, dict):
        raise RecipeInvalid(f"{path}: a recipe is a mapping")
    return document


def _yaml(text: str) -> Any:
    """YAML in which `${NAME}` may stand bare inside `{...}`, where YAML itself would take its braces for a mapping."""
    guarded = re.sub(r"\$\{(\w+)\}", "\ue000\\1\ue001", text)
    return _each_string(yaml.load(guarded, Loader=_Loader), _unguarded)


def _unguarded(text: str) -> str:
    return re.sub("\ue000(\\w+)\ue001", r"${\1}", text)


def _each_string(value: Any, change: Callable[[str], str]) -> Any:
    """`value` with `change` applied to every string in it that is not a key."""
    if isinstance(value, dict):
        return {key: _each_string(inner, change) for key, inner in value.items()}
    if isinstance(value, list):
        return [_each_string(inner, change) for inner in value]
    return change(value) if isinstance(value, str) else value


def _override(document: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    *parents, last = key.split(".")
    target: Any = document
    for part in parents:
        target = _inside(target, part)
    try:
        new = _yaml(value)
        if not equals or not last:
            raise ValueError("no key, or no value")
        if isinstance(target, list):
            target[int(last)] = new
        else:
            target[last] = new
    except (yaml.YAMLError, ValueError, TypeError, IndexError) as error:
        raise RecipeInvalid(f"--set {override}: must be KEY.KEY=VALUE with a VALUE in YAML") from error


def _inside(target: Any, part: str) -> Any:
    if isinstance(target, dict):
        if not isinstance(target.get(part), dict | list):
            target[part] = {}
        return target[part]
    if isinstance(target, list) and part.isdecimal() and int(part) < len(target):
        return target[int(part)]
    return None


def _plain(document: dict[str, Any], where: str) -> None:
    try:
        json.dumps(document, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        says = f"holds a value that is no plain text, number, list or mapping: {error}"
        raise RecipeInvalid(f"{where}: {says}") from error
    for key in _keys_no_text(document):
        raise RecipeInvalid(f"{where}: key {json.dumps(key)}: keys are text; put it in quotes")


def _keys_no_text(value: Any) -> Iterator[Any]:
    """The keys that YAML takes for numbers, truth values, dates or nothing."""
    if isinstance(value, dict):
        yield from (key for key in value if not isinstance(key, str))
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _keys_no_text(inner)


def _expanded(document: dict[str, Any], where: str) -> Any:
    def variable(found: re.Match[str]) -> str:
        if found[1] not in os.environ:
            raise RecipeInvalid(f"{where}: ${{{found[1]}}} is not set in the environment")
        return os.environ[found[1]]

    return _each_string(document, lambda text: re.sub(r"\$\{(\w+)\}", variable, text))


def _first_problem(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if not str(part).startswith("<")) or "recipe"
    plain = {
        "extra_forbidden": "unknown key",
        "missing": "missing",
        "model_type": "must be a mapping",
        "tuple_type": "must be a list",
        "too_short": "must not be empty",
        "string_type": "must be text",
    }
    return f"{where}: {plain.get(first['type'], first['msg'].removeprefix('Value error, '))}"


def _files_exist(recipe: Recipe, where: str) -> None:
    for key, file in recipe.files().items():
        if not Path(file).is_file():
            raise RecipeInvalid(f"{where}: data.{key}: no such file: {file}")

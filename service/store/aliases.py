"""aliases.json: the names by which a student's versions are asked for, and what each points at."""

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from service.bundle.manifest import NAME
from service.bundle.strict_json import read_object, validated
from service.errors import AliasInvalid

ALIASES = "aliases.json"
DEFAULT_ALIAS = "production"
MAX_ALIASES_BYTES = 2**20
MAX_PREVIOUS = 16


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class AliasEntry(_Part):
    """What an alias points at.

    Attributes:
        version: it.
        weight: the share of the student's unaliased traffic it may take, or None.
        previous: the versions before, the last one first, for rolling back.
    """

    version: Annotated[int, Field(ge=1)]
    weight: Annotated[float, Field(ge=0, le=1)] | None = None
    previous: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(max_length=MAX_PREVIOUS)] = ()

    def moved(self, version: int) -> "AliasEntry":
        """The same alias at another version; the one it leaves becomes the first of `previous`.

        >>> AliasEntry(version=2, previous=(1,)).moved(3).previous
        (2, 1)
        """
        if version == self.version:
            return self
        previous = tuple(one for one in (self.version, *self.previous) if one != version)
        return self.model_copy(update={"version": version, "previous": previous[:MAX_PREVIOUS]})


class AliasFile(_Part):
    """A student's aliases. `rules` is kept as it is found."""

    schema_version: Annotated[Literal[1], Field(alias="schema")] = 1
    aliases: dict[str, AliasEntry] = {}
    rules: dict[str, Any] = {}
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    @field_validator("aliases")
    @classmethod
    def _are_named_well(cls, aliases: dict[str, AliasEntry]) -> dict[str, AliasEntry]:
        for alias in aliases:
            if not is_alias_name(alias):
                raise ValueError(_rule(alias))
        return aliases

    def pointed(self, alias: str, version: int, *, weight: float | None) -> "AliasFile":
        """These aliases with `alias` at `version`; a `weight` of None keeps the weight that the alias has."""
        entry = self.aliases.get(alias, AliasEntry(version=version)).moved(version)
        return self.changed(alias, entry if weight is None else entry.model_copy(update={"weight": weight}))

    def changed(self, alias: str, entry: AliasEntry) -> "AliasFile":
        """These aliases with another entry for `alias`."""
        return self.model_copy(update={"aliases": {**self.aliases, alias: entry}})


def is_alias_name(alias: str) -> bool:
    """Whether a string may be an alias: a name as students have them, and not a number.

    >>> [is_alias_name(alias) for alias in ("canary", "3", "Canary", "")]
    [True, False, False, False]
    """
    return NAME.fullmatch(alias) is not None and not alias.isdigit()


def check_alias_name(alias: str) -> None:
    """Raises: AliasInvalid: the string may not be an alias."""
    if not is_alias_name(alias):
        raise AliasInvalid(_rule(alias))


def parse_aliases(raw: bytes, *, student: str) -> AliasFile:
    """Read the bytes of an aliases.json. Raises: AliasInvalid: it breaks its schema; the message names the student."""
    try:
        return validated(AliasFile, read_object(raw))
    except ValueError as error:
        raise AliasInvalid(f"{student}/{ALIASES}: {error}") from error


def dump_aliases(aliases: AliasFile) -> bytes:
    """The file's bytes: indented UTF-8 JSON with a final newline; what has its default is left out of entries."""
    entries = {alias: entry.model_dump(exclude_defaults=True) for alias, entry in sorted(aliases.aliases.items())}
    document = {"schema": aliases.schema_version, "aliases": entries, "rules": aliases.rules}
    return (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode()


def _rule(alias: str) -> str:
    return f"{alias!r} cannot be an alias: lower-case letters, digits, - and _, at most 64, and not a number"

"""The file of API keys: who may call, and how much. It holds the keys' digests, never the keys.

{"schema": 1, "keys": [{"name": "web", "sha256": "…64 hex digits…", "items_per_minute": 60000}]}
"""

import hashlib
import json
import logging
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from service.api.logs import log_event
from service.bundle.manifest import NAME
from service.bundle.strict_json import read_object, validated
from service.errors import SettingsInvalid

MAX_FILE_BYTES = 1 << 22
MAX_KEYS = 10_000
# a changed file is noticed by the first request after so long
LOOK_EVERY_S = 1.0
KEY_BYTES = 24
KEY_PREFIX = "us-"
_Signature = tuple[int, int, int]
_PerMinute = Annotated[float, Field(ge=1, le=1e15)]


class KeyEntry(BaseModel):
    """One key and what it may do. A limit that is None is none.

    Attributes:
        name: of its holder, for logs, metrics and `/admin/status`.
        sha256: hex digest of the key's UTF-8 bytes.
        items_per_minute: texts, pairs or passages.
        compute_per_minute: full-depth tokens: tokens times the depth that was run.
        max_request_compute: the same, of one request.
        full_depth: whether a request may ask for full depth where the student offers less.
        models: names of the students it may ask for.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    items_per_minute: _PerMinute | None = None
    compute_per_minute: _PerMinute | None = None
    max_request_compute: _PerMinute | None = None
    full_depth: bool = True
    models: tuple[str, ...] | None = None
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("models")
    @classmethod
    def _are_names(cls, models: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for name in models or ():
            if not NAME.fullmatch(name):
                raise ValueError(f"{name!r} is not a student's name (aliases and versions do not belong here)")
        return models


class _KeyDocument(BaseModel):
    schema_version: Annotated[Literal[1], Field(alias="schema")]
    keys: Annotated[tuple[KeyEntry, ...], Field(max_length=MAX_KEYS)]
    model_config = ConfigDict(extra="forbid", frozen=True)


def read_keys(path: Path) -> tuple[KeyEntry, ...]:
    """The keys in a file. Raises: SettingsInvalid: one line that names the file, the entry and the field."""
    try:
        with path.open("rb") as opened:
            raw = opened.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise SettingsInvalid(f"{path}: cannot be read: {error.strerror}") from error
    if len(raw) > MAX_FILE_BYTES:
        raise SettingsInvalid(f"{path}: over {MAX_FILE_BYTES} bytes")
    try:
        keys = validated(_KeyDocument, read_object(raw)).keys
        _check_unique(keys)
    except ValueError as error:
        raise SettingsInvalid(f"{path}: {error}") from error
    return keys


def _check_unique(keys: tuple[KeyEntry, ...]) -> None:
    names: dict[str, int] = {}
    digests: dict[str, int] = {}
    for place, key in enumerate(keys):
        for field, value, seen in (("name", key.name, names), ("sha256", key.sha256, digests)):
            first = seen.setdefault(value, place)
            if first != place:
                raise ValueError(f"/keys/{place}/{field}: the same as of /keys/{first}")


class KeyFile:
    """The keys in effect, following their file. Owner: event loop.

    Invariant: `keys` is always a whole file that was in order; a broken new one changes nothing and is logged once.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float]) -> None:
        """Read the file. Raises: SettingsInvalid: it is broken."""
        self.path = path
        self._clock = clock
        # subtle: before reading, so that a change between the two is seen at the next look
        self._signature = _signature(path)
        self.keys = read_keys(path)
        self._looked = clock()

    def changed(self) -> bool:
        """Look at the file, at most every `LOOK_EVERY_S`. Returns: whether `keys` was replaced."""
        now = self._clock()
        if now - self._looked < LOOK_EVERY_S:
            return False
        self._looked = now
        signature = _signature(self.path)
        if signature == self._signature:
            return False
        self._signature = signature
        try:
            self.keys = read_keys(self.path)
        except SettingsInvalid as error:
            log_event(logging.ERROR, "keys_refused", detail=str(error), kept=len(self.keys))
            return False
        log_event(logging.INFO, "keys_read", path=str(self.path), keys=len(self.keys))
        return True


def _signature(path: Path) -> _Signature | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def digest_of(key: str) -> str:
    """The sha256 of a key, as the file holds it."""
    return hashlib.sha256(key.encode()).hexdigest()


def new_key() -> str:
    """A fresh random key: 192 bits, safe in a URL and in a shell."""
    return KEY_PREFIX + secrets.token_urlsafe(KEY_BYTES)


def new_entry(name: str) -> tuple[str, str]:
    """A fresh key, and the JSON of its entry for the file. Raises: SettingsInvalid: the name may not be one."""
    key = new_key()
    document = {"name": name, "sha256": digest_of(key)}
    try:
        validated(KeyEntry, document)
    except ValueError as error:
        raise SettingsInvalid(f"{name!r} cannot be a key's name: {error}") from error
    return key, json.dumps(document)

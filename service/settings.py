"""The service's settings: every knob, its unit, its bounds and its help, checked here, once.

Each field may be given as an environment variable `UNDERSTUDY_<FIELD>`, or as an option of `understudy serve`,
which wins. `docs/settings.md` is generated from this module.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from service.errors import SettingsInvalid

PREFIX = "UNDERSTUDY_"
MIN_KEY_CHARACTERS = 16
NOT_SETTINGS = frozenset({"UNDERSTUDY_DATA"})


def cpu_quota(*, root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float:
    """Cores this process may use: the smallest of its cgroup's CPU quotas and its affinity mask.

    Args:
        root: where the cgroup file systems are mounted (version 2, or version 1 with `cpu` or `cpu,cpuacct`).
        own: the file that names this process's cgroups.
    Returns: cores, > 0, may be a fraction.
    """
    cores = [float(len(os.sched_getaffinity(0)))] if hasattr(os, "sched_getaffinity") else [float(os.cpu_count() or 1)]
    for line in _text(own).splitlines():
        _, _, tail = line.partition(":")
        controllers, _, path = tail.partition(":")
        if controllers == "":
            cores += [c for folder in _upwards(root, path) if (c := _share(_text(folder / "cpu.max").split()))]
        elif "cpu" in controllers.split(","):
            for mount in ("cpu", "cpu,cpuacct"):
                cores += [c for folder in _upwards(root / mount, path) if (c := _share(_quota_v1(folder)))]
    return min(cores)


def memory_quota(*, root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int | None:
    """Bytes this process may use: the smallest of its cgroup's memory limits; None where there is none.

    Args:
        root, own: as for `cpu_quota`; version 2, or version 1 with `memory`.
    """
    limits: list[int] = []
    for line in _text(own).splitlines():
        _, _, tail = line.partition(":")
        controllers, _, path = tail.partition(":")
        if controllers == "":
            limits += [int(text) for folder in _upwards(root, path) if (text := _limit(folder / "memory.max"))]
        elif "memory" in controllers.split(","):
            folders = _upwards(root / "memory", path)
            limits += [int(text) for folder in folders if (text := _limit(folder / "memory.limit_in_bytes"))]
    # subtle: version 1 writes "no limit" as the largest number of whole pages
    return min((limit for limit in limits if limit < 1 << 60), default=None)


def _limit(file: Path) -> str:
    text = _text(file).strip()
    return text if text.isdecimal() else ""


def _upwards(mount: Path, path: str) -> list[Path]:
    # subtle: inside a container the path may be the host's and not exist below the mount; its root then holds the quota
    inner = mount / path.strip("/")
    return [inner, *(parent for parent in inner.parents if parent.is_relative_to(mount))]


def _quota_v1(folder: Path) -> list[str]:
    return _text(folder / "cpu.cfs_quota_us").split() + _text(folder / "cpu.cfs_period_us").split()


def _share(quota_and_period: list[str]) -> float | None:
    """Cores of a quota, or None where there is none ("max", -1, or no such file)."""
    try:
        quota, period = (int(number) for number in quota_and_period)
    except ValueError:
        return None
    return quota / period if quota > 0 and period > 0 else None


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""


def _slots_for(data: Mapping[str, Any]) -> int:
    return max(1, int(cpu_quota()) // int(data.get("threads_per_slot", 1)))


class Settings(BaseSettings):
    """What `understudy serve` runs with. Frozen; two may live in one process."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, frozen=True, extra="forbid", allow_inf_nan=False, str_max_length=4096
    )

    store: Annotated[Path, Field(description="The store's directory: students, versions and aliases.")] = Path(
        "models/store"
    )
    host: Annotated[str, Field(description="Address to listen on; 0.0.0.0 for every interface.")] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535, description="TCP port to listen on; 0 takes a free one.")] = 8000
    backend: Annotated[
        Literal["auto", "onnxruntime", "openvino", "cuda"],
        Field(
            description="What runs the graphs. `auto` starts with `onnxruntime`, measures what else is installed and "
            "takes the fastest for each student; one asked for by name and not usable is an error."
        ),
    ] = "auto"
    precision: Annotated[
        str | None,
        Field(
            pattern=r"^[a-z0-9]{1,16}$",
            description="Graphs to run (`int8`, `fp32`); unset: each student's own default. A student without it is "
            "refused.",
        ),
    ] = None
    threads_per_slot: Annotated[int, Field(ge=1, le=256, description="Threads (cores) that one graph run may use.")] = 1
    slots: Annotated[
        int,
        Field(
            ge=1,
            le=256,
            default_factory=_slots_for,
            description="Graph runs at one time, each on its own thread.",
            json_schema_extra={"default_words": "the CPU quota (cgroup, affinity) ÷ `threads_per_slot`"},
        ),
    ]
    cache_dir: Annotated[
        Path | None,
        Field(
            description="Where `auto` keeps what it measured.",
            json_schema_extra={"default_words": "`understudy` in `$XDG_CACHE_HOME` or `~/.cache`"},
        ),
    ] = None
    memory_limit_mb: Annotated[
        int | None,
        Field(
            ge=16,
            le=1 << 24,
            description="Megabytes that the loaded students may take together; one that would go beyond is refused, "
            "those in service stay.",
            json_schema_extra={"default_words": "what the container's memory limit leaves beside the service"},
        ),
    ] = None
    token_budget: Annotated[
        int, Field(ge=8, le=1 << 20, description="Padded tokens in one batch, at most. Bounds a run's memory and time.")
    ] = 8192
    batch_ms: Annotated[
        float,
        Field(
            gt=0,
            le=60_000,
            description="Predicted milliseconds of one graph run, at most (a single item may take more).",
        ),
    ] = 20.0
    window_ms: Annotated[
        float,
        Field(ge=0, le=1000, description="Milliseconds that a free slot waits for a batch to fill; 0: it never waits."),
    ] = 0.0
    rebatch: Annotated[
        bool,
        Field(
            description="Whether survivors of a stage may be run together with survivors of other batches, where the "
            "cost model says that it pays."
        ),
    ] = True
    passage_cache_mb: Annotated[
        int, Field(ge=0, le=1 << 20, description="Megabytes of what rank keeps of passages; 0 keeps none.")
    ] = 64
    max_queue_items: Annotated[
        int,
        Field(
            ge=1, le=1 << 20, description="Items of one student waiting, at most; what comes on top is answered 429."
        ),
    ] = 8192
    max_items: Annotated[int, Field(ge=1, le=1 << 20, description="Items in one request, at most (else 413).")] = 4096
    max_body_bytes: Annotated[
        int, Field(ge=1024, le=1 << 30, description="Bytes of a request's body, at most (else 413).")
    ] = 8 << 20
    max_request_tokens: Annotated[
        int, Field(ge=8, le=1 << 30, description="Tokens in one request, at most (else 413).")
    ] = 1 << 20
    header_timeout_s: Annotated[
        float, Field(gt=0, le=3600, description="Seconds a client may take to send a request's headers.")
    ] = 10.0
    body_timeout_s: Annotated[
        float, Field(gt=0, le=3600, description="Seconds a client may take to send a request's body (else 408).")
    ] = 30.0
    api_keys: Annotated[
        Path | None,
        Field(description="File of the API keys and their limits (docs/keys.md); unset: no key is asked for."),
    ] = None
    admin_key: Annotated[
        SecretStr | None,
        Field(min_length=MIN_KEY_CHARACTERS, description="Key of `/admin`; unset: `/admin` is off."),
    ] = None
    cors_origins: Annotated[
        tuple[str, ...],
        NoDecode,
        Field(
            description="Origins (comma-separated, `*` for any) whose pages may call the service from a browser.",
            json_schema_extra={"default_words": "none"},
        ),
    ] = ()
    root_dialect: Annotated[
        Literal["native", "tei"],
        Field(description="Whose API `/classify`, `/rank`, `/embed` … without a prefix speak."),
    ] = "native"
    default_deadline_ms: Annotated[
        float | None,
        Field(
            gt=0, le=3_600_000, description="Deadline of requests that name none; unset: they wait as long as needed."
        ),
    ] = None
    default_truncate: Annotated[
        Literal["error", "end", "start"],
        Field(description="What is done with a text beyond the student's limit when the request does not say."),
    ] = "end"
    drain_timeout_s: Annotated[
        float,
        Field(ge=0, le=3600, description="Seconds that requests under way are given to finish when the service stops."),
    ] = 20.0
    drain_delay_s: Annotated[
        float,
        Field(
            ge=0,
            le=3600,
            description="Seconds between saying not ready and refusing requests when the service stops, for balancers "
            "to notice.",
        ),
    ] = 0.0
    required: Annotated[
        tuple[str, ...] | None,
        NoDecode,
        Field(
            description="Students (comma-separated) that must be served before `/health/ready` says so.",
            json_schema_extra={"default_words": "every student with a `production` alias at start"},
        ),
    ] = None
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        Field(description="Least severity that is logged; `debug` adds a line for every request (never its text)."),
    ] = "info"
    log_format: Annotated[Literal["json", "text"], Field(description="Log lines as JSON objects or as plain text.")] = (
        "text"
    )

    @field_validator("required", "cors_origins", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(name.strip() for name in value.split(",") if name.strip()) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if self.max_items > self.max_queue_items:
            raise ValueError(
                f"max_items ({self.max_items}) is above max_queue_items ({self.max_queue_items}): "
                "such a request could never be admitted"
            )
        return self


def load_settings(**options: Any) -> Settings:
    """Settings from the environment, with the given options on top (None: not given).

    Raises: SettingsInvalid: one line that names each wrong setting, its variable and what is wrong.
    """
    try:
        return Settings(**{name: value for name, value in options.items() if value is not None})
    except ValidationError as error:
        raise SettingsInvalid("; ".join(_told(problem) for problem in error.errors())) from error


def shown(settings: Settings) -> dict[str, Any]:
    """The settings in effect as JSON values; a secret is only `set`, or null."""
    document: dict[str, Any] = settings.model_dump(mode="json")
    secrets = [name for name in document if isinstance(getattr(settings, name), SecretStr)]
    return document | dict.fromkeys(secrets, "set")


def _told(problem: Any) -> str:
    message = str(problem["msg"]).removeprefix("Value error, ")
    if not problem["loc"]:
        return message
    name = str(problem["loc"][0])
    field = Settings.model_fields.get(name)
    if field is not None and field.annotation == SecretStr | None:
        return f"{name} ({PREFIX}{name.upper()}): must be a text of at least {MIN_KEY_CHARACTERS} characters"
    return f"{name} ({PREFIX}{name.upper()}) = {problem['input']!r}: {message}"


def unknown_variables(environ: Mapping[str, str]) -> list[str]:
    """Variables that look like settings and are none: most likely typing errors.

    >>> unknown_variables({"UNDERSTUDY_SLOT": "2", "UNDERSTUDY_SLOTS": "2", "UNDERSTUDY_DATA": "/data", "HOME": "/"})
    ['UNDERSTUDY_SLOT']
    """
    known = {PREFIX + name.upper() for name in Settings.model_fields} | NOT_SETTINGS
    return sorted(name for name in environ if name.startswith(PREFIX) and name.upper() not in known)


def settings_table() -> str:
    """The Markdown table of every setting, as `docs/settings.md` shows it."""
    lines = ["| setting | variable | type and bounds | default | what it does |", "|---|---|---|---|---|"]
    properties = Settings.model_json_schema()["properties"]
    for name, schema in properties.items():
        default = schema.get("default_words") or _default_of(schema.get("default"))
        cells = (f"`{name}`", f"`{PREFIX}{name.upper()}`", _kind(schema), default, schema["description"])
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _default_of(value: object) -> str:
    return "unset" if value is None else f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _kind(schema: Mapping[str, Any]) -> str:
    one = next((kind for kind in schema.get("anyOf", ()) if kind.get("type") != "null"), schema)
    if "enum" in one:
        return " ∣ ".join(f"`{value}`" for value in one["enum"])
    kind = {
        "boolean": "`true` ∣ `false`",
        "integer": "integer",
        "number": "number",
        "array": "names",
        "string": one.get("format", "text"),
    }[one["type"]]
    low = one.get("minimum", one.get("exclusiveMinimum"))
    if low is None:
        return str(kind)
    return f"{kind}, {'>' if 'exclusiveMinimum' in one else '≥'} {low} and ≤ {one['maximum']}"

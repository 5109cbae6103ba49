"""A scenario: what is sent where, how, for how long, and what must hold. One frozen model, read from YAML.

Unknown keys are errors. `${NAME}` in a header is the environment's. Paths are relative to the scenario's file.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from loadtest.errors import ScenarioInvalid

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
Rate = Annotated[float, Field(gt=0, le=1e6)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]
Share = Annotated[float, Field(ge=0, le=1)]
Milliseconds = Annotated[float, Field(gt=0, le=3_600_000)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Poisson(_Part):
    """Independent clients: exponential gaps."""

    rate_per_s: Rate


class Constant(_Part):
    """Equal gaps."""

    rate_per_s: Rate


class Bursts(_Part):
    """Poisson at `rate_per_s` for `on_s` seconds, at `idle_rate_per_s` for `off_s`, and so on."""

    rate_per_s: Rate
    on_s: Seconds
    off_s: Seconds
    idle_rate_per_s: Annotated[float, Field(ge=0, le=1e6)] = 0.0


class Trace(_Part):
    """A recording: JSONL of `at_s`, `text`, `kind`?; its texts are sent, one a request."""

    file: Path
    speed: Annotated[float, Field(gt=0, le=1e4)] = 1.0


class Closed(_Part):
    """So many clients in turn: finds a peak; its latencies say nothing about those of an offered load."""

    connections: Annotated[int, Field(ge=1, le=65_536)]


class Arrivals(_Part):
    """When requests leave: exactly one of these."""

    poisson: Poisson | None = None
    constant: Constant | None = None
    bursts: Bursts | None = None
    trace: Trace | None = None
    closed: Closed | None = None

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"exactly one of {', '.join(type(self).model_fields)} is needed, not {len(given)}")
        return self

    def at_rate(self, rate_per_s: float) -> "Arrivals":
        """The same kind of arrivals at another rate. Raises: ScenarioInvalid: they have no rate."""
        for name in ("poisson", "constant", "bursts"):
            one = getattr(self, name)
            if one is not None:
                return Arrivals.model_validate({name: one.model_dump() | {"rate_per_s": rate_per_s}})
        raise ScenarioInvalid("sweep and search need arrivals with a rate: poisson, constant or bursts")

    @property
    def rate_per_s(self) -> float | None:
        """The rate, where there is one."""
        one = self.poisson or self.constant or self.bursts
        return None if one is None else one.rate_per_s


class Goodput(_Part):
    """Answers within a bound: at least this share of all requests, or so many a second, or both."""

    within_ms: Milliseconds
    share: Share | None = None
    per_s: Rate | None = None

    @model_validator(mode="after")
    def _asks(self) -> Self:
        if self.share is None and self.per_s is None:
            raise ValueError("share or per_s is needed")
        return self


class Sla(_Part):
    """What must hold. Percentiles are of answered requests, lost ones counting as infinitely slow."""

    p50_ms: Milliseconds | None = None
    p90_ms: Milliseconds | None = None
    p99_ms: Milliseconds | None = None
    p999_ms: Milliseconds | None = None
    shed_p99_ms: Milliseconds | None = None
    error_rate: Share | None = None
    failure_rate: Share | None = None
    min_rate_per_s: Rate | None = None
    goodput: Goodput | None = None
    min_accuracy: Share | None = None


class Kind(_Part):
    """One kind of request of the mixture.

    Attributes:
        weight: its share of the requests, relative to the others'.
        task: gives path and body of the native API; `path` and `field` say otherwise for other surfaces.
        texts: JSONL or text file. inputs_per_request: texts in a request; one alone is sent as a string.
        queries: rank's queries; its `texts` are the passages.
        body: more fields (`model`, `exit`, `top_k` …).
        sla: what must hold for this kind alone.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
    weight: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    task: Literal["classify", "rank", "embed"]
    texts: Path
    queries: Path | None = None
    inputs_per_request: Annotated[int, Field(ge=1, le=65_536)] = 1
    body: dict[str, Any] = {}
    path: Annotated[str, Field(pattern=r"^/[\x21-\x7e]*$")] | None = None
    field: str | None = None
    priority: Literal["high", "normal", "low"] | None = None
    deadline_ms: Milliseconds | None = None
    sla: Sla | None = None

    @model_validator(mode="after")
    def _has_queries(self) -> Self:
        if (self.task == "rank") != (self.queries is not None):
            raise ValueError("queries: needed for rank, and for rank only")
        return self


class Sweep(_Part):
    """The scenario at one rate after the other."""

    rates_per_s: Annotated[tuple[Rate, ...], Field(min_length=1, max_length=100)]


class Search(_Part):
    """The highest rate that keeps the SLA, by bisection; a rate holds when most of `repeats` runs do."""

    low_per_s: Rate
    high_per_s: Rate
    precision: Annotated[float, Field(gt=0, lt=1)] = 0.05
    repeats: Annotated[int, Field(ge=1, le=99)] = 3

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        if self.high_per_s <= self.low_per_s:
            raise ValueError("high_per_s must be above low_per_s")
        return self


class Scenario(_Part):
    """A load test."""

    schema_: Annotated[Literal[1], Field(alias="schema")]
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
    target: str = "http://127.0.0.1:8000"
    headers: dict[str, str] = {}
    duration_s: Seconds
    warm_up_s: Annotated[float, Field(ge=0, le=3600)] = 2.0
    seed: Annotated[int, Field(ge=0)] = 0
    arrivals: Arrivals
    mixture: Annotated[tuple[Kind, ...], Field(min_length=1, max_length=64)]
    sla: Sla = Sla()
    max_connections: Annotated[int, Field(ge=1, le=65_536)] = 1024
    timeout_s: Seconds = 10.0
    max_lag_ms: Milliseconds = 5.0
    sweep: Sweep | None = None
    search: Search | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        names = [kind.name for kind in self.mixture]
        if len(set(names)) != len(names):
            raise ValueError("mixture: two kinds have one name")
        if self.sweep is not None and self.search is not None:
            raise ValueError("sweep and search: only one of them")
        if (self.sweep or self.search) is not None and self.arrivals.rate_per_s is None:
            raise ValueError("sweep and search need arrivals with a rate: poisson, constant or bursts")
        return self


def read_scenario(path: Path, *, overrides: tuple[str, ...] = ()) -> Scenario:
    """Read and check a scenario.

    Args:
        path: the YAML file; relative paths in it are relative to its folder.
        overrides: `KEY.KEY=VALUE` each, the value read as YAML; lists by index.
    Raises: ScenarioInvalid: names file and key.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ScenarioInvalid(f"{path}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ScenarioInvalid(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(document, dict):
        raise ScenarioInvalid(f"{path}: must be a mapping of keys")
    for override in overrides:
        _override(document, override)
    try:
        scenario = Scenario.model_validate(document)
    except ValidationError as error:
        raise ScenarioInvalid(f"{path}: " + "; ".join(_told(problem) for problem in error.errors())) from error
    return _with_paths(scenario, path.parent)


def _told(problem: Any) -> str:
    where = ".".join(str(part) for part in problem["loc"])
    message = str(problem["msg"]).removeprefix("Value error, ")
    return f"{where}: {message}" if where else message


def _override(document: Any, override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise ScenarioInvalid(f"--set {override}: must be KEY.KEY=VALUE")
    *parents, last = key.split(".")
    try:
        for parent in parents:
            document = document[int(parent)] if isinstance(document, list) else document.setdefault(parent, {})
        document[int(last) if isinstance(document, list) else last] = yaml.safe_load(value)
    except (TypeError, ValueError, IndexError, AttributeError, yaml.YAMLError) as error:
        raise ScenarioInvalid(f"--set {override}: there is no such key") from error


def _with_paths(scenario: Scenario, folder: Path) -> Scenario:
    """Relative paths made relative to the folder."""
    mixture = tuple(
        kind.model_copy(
            update={"texts": folder / kind.texts, "queries": None if kind.queries is None else folder / kind.queries}
        )
        for kind in scenario.mixture
    )
    arrivals = scenario.arrivals
    if arrivals.trace is not None:
        trace = arrivals.trace.model_copy(update={"file": folder / arrivals.trace.file})
        arrivals = arrivals.model_copy(update={"trace": trace})
    return scenario.model_copy(update={"mixture": mixture, "arrivals": arrivals})


def expand(headers: Mapping[str, str], environ: Mapping[str, str]) -> dict[str, str]:
    """Headers with `${NAME}` replaced by the environment's. Raises: ScenarioInvalid: a variable is not set.

    >>> expand({"authorization": "Bearer ${KEY}"}, {"KEY": "k1"})
    {'authorization': 'Bearer k1'}
    """

    def value_of(match: re.Match[str]) -> str:
        if match[1] not in environ:
            raise ScenarioInvalid(f"headers: the environment variable {match[1]} is not set")
        return environ[match[1]]

    return {name: _VARIABLE.sub(value_of, value) for name, value in headers.items()}

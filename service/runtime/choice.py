"""`auto`: which backend and precision a student is served with, by measuring what is at hand.

A text's expected cost is that of its stages under the student's default exits, each weighted with the share of texts
that reach it. Another combination than the default one is taken only where it is clearly cheaper and its answers are
as good.
"""

import hashlib
import importlib.metadata
import json
import os
import platform
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, Protocol

import numpy as np

from service.bundle.manifest import Manifest, dump_manifest
from service.runtime import heads
from service.runtime.cost import StageCost
from service.runtime.encode import Encoded, Ids
from service.runtime.heads import ExitPolicy
from service.runtime.session import EXACT

SCHEMA: Final = 1
# what the challenger must save of the default's cost before it is taken
MARGIN: Final = 0.1
# how much of a quality metric a precision may lose against the default one
QUALITY_LOSS: Final = 0.002
# the load that a text's cost is taken for: some alone, some in batches, all of everyday length
_ITEMS: Final = (1, 4, 16)
_TOKENS: Final = 16
_ROUNDS: Final = 7
_MIXED_ITEMS: Final = (1, 1, 2, 3, 5, 8, 13)
_MIXED_TOKENS: Final = 48
_DISTRIBUTIONS: Final = {"cuda": "onnxruntime-gpu"}


@dataclass(frozen=True, slots=True)
class Candidate:
    """A backend and a precision."""

    backend: str
    precision: str

    def __str__(self) -> str:
        return f"{self.precision} on {self.backend}"


@dataclass(frozen=True, slots=True)
class Weighed:
    """A candidate and the seconds of a text with it, or why it is out of the question."""

    candidate: Candidate
    seconds: float | None
    why_not: str = ""


@dataclass(frozen=True, slots=True)
class Choice:
    """What a student is served with, why, and what was weighed."""

    candidate: Candidate
    why: str
    weighed: tuple[Weighed, ...] = ()

    def document(self) -> dict[str, Any]:
        """As `/v1/models` shows it."""
        return {"why": self.why, "candidates": [_shown(each) for each in self.weighed]}


def _shown(weighed: Weighed) -> dict[str, Any]:
    ms = None if weighed.seconds is None else round(weighed.seconds * 1e3, 4)
    return {**asdict(weighed.candidate), "ms_per_text": ms, "why_not": weighed.why_not or None}


def candidates(manifest: Manifest, *, backends: Iterable[str], precision: str | None) -> tuple[Weighed, ...]:
    """Every combination, the default one first; those whose answers may be worse are ruled out at once.

    Args:
        manifest: the student's.
        backends: those usable here, the default one first.
        precision: the only one that the settings allow; None: the manifest's choice.
    """
    default = precision or manifest.default_precision
    others = [] if precision else sorted(set(manifest.precisions) - {default})
    combinations = [Candidate(backend, each) for backend in backends for each in (default, *others)]
    return tuple(Weighed(each, None, _worse(manifest, each.precision, default)) for each in combinations)


def _worse(manifest: Manifest, precision: str, default: str) -> str:
    """Why a precision's answers may be worse than the default one's; empty: they are not."""
    if precision == default:
        return ""
    ours, theirs = _quality(manifest, precision), _quality(manifest, default)
    if not ours:
        return "" if precision == EXACT else "its quality is not recorded"
    for metric, value in theirs.items():
        if metric in ours and ours[metric] < value - QUALITY_LOSS:
            return f"its {metric} is {ours[metric]:.4f}, the default precision's {value:.4f}"
    return ""


def _quality(manifest: Manifest, precision: str) -> dict[str, float]:
    """What the manifest says of a precision at full depth; empty where it says nothing."""
    rows = manifest.quality.by_precision.get(precision, ()) if manifest.quality else ()
    return next((dict(row.metrics) for row in rows if row.risk is None), {})


def reach(manifest: Manifest, candidate: Candidate) -> tuple[float, ...]:
    """The share of texts that get to each stage under the default exits, from the certificate's rows.

    Without a certificate for the combination the exits are off, and every text goes through every stage.
    """
    certificate = manifest.certificate(backend=candidate.backend, precision=candidate.precision)
    policy = heads.policy_for(manifest, backend=candidate.backend, precision=candidate.precision, exit="default")
    point = next((p for p in certificate.points if p.risk == policy.risk_applied), None) if certificate else None
    if point is None:
        return (1.0,) * len(manifest.stages)
    left, shares = 0.0, []
    leaving = {leave.stage: share for leave, share in zip(manifest.exits, point.exit_shares, strict=True)}
    for stage in manifest.stages:
        shares.append(max(0.0, 1.0 - left))
        left += leaving.get(stage.id, 0.0)
    return tuple(shares)


def text_s(costs: Sequence[StageCost], reached: Sequence[float]) -> float:
    """Expected seconds of a text: the mean over texts that come alone, by four and by sixteen.

    Args:
        costs: one for each stage.
        reached: the share of texts that get to each stage.
    """
    return sum(_batch_s(costs, reached, items) / items for items in _ITEMS) / len(_ITEMS)


def _batch_s(costs: Sequence[StageCost], reached: Sequence[float], items: int) -> float:
    total = 0.0
    for cost, share in zip(costs, reached, strict=True):
        expected = items * share
        whole = max(1, round(expected))
        # a stage that is rarely reached costs its single run as rarely
        total += cost.seconds(whole, _TOKENS) * expected / whole
    return total


def decide(weighed: Sequence[Weighed]) -> Choice:
    """The cheapest candidate, or the default one where that is not clearly cheaper.

    Args:
        weighed: the default candidate first, measured; of the others those in question are measured too.
    """
    default, *others = weighed
    assert default.seconds is not None, "the default candidate serves already"
    best, cost = default, default.seconds
    for other in others:
        if other.seconds is not None and other.seconds < cost:
            best, cost = other, other.seconds
    saved = 1 - cost / default.seconds
    if best is default:
        why = "the default; nothing else is faster" if others else "the default; nothing else is at hand"
    elif saved < MARGIN:
        why = f"the default; {best.candidate} would save {saved:.0%}, less than {MARGIN:.0%}"
        best = default
    else:
        why = f"saves {saved:.0%} of a text's time against {default.candidate}"
    return Choice(best.candidate, why, tuple(weighed))


class Contender(Protocol):
    """What `runoff` needs of a student."""

    def run(self, batch: Sequence[Encoded], policies: ExitPolicy, /) -> object:
        """Answer a batch."""
        ...

    def policy(self, exit: Literal["default"] = "default", /) -> ExitPolicy:
        """Its exits by default."""
        ...

    def of_ids(self, ids: Ids, /) -> Encoded:
        """An item of these ids."""
        ...


def runoff(
    default: Contender,
    challenger: Contender,
    *,
    ids: Sequence[int],
    max_tokens: int,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """The share of the default's time that a challenger saves where both run the same batches in turn.

    Costs measured one after the other are only as good as the machine was quiet, and say nothing of shapes that are
    seen for the first time, which some backends plan anew: here every round has shapes of its own.

    Args:
        default, challenger: loaded, one thread at a time.
        ids: a text's, from which the batches' texts are made.
        max_tokens: the longest.
        clock: monotonic seconds.
    Returns: the median over the rounds; negative where the challenger is slower.
    Raises: RunFailed: a graph failed.
    """
    random = np.random.default_rng(0)
    sides = [(side, side.policy("default")) for side in (default, challenger)]
    saved = []
    for number in range(1 + _ROUNDS):
        batches = [_mixed(random, ids, items, max_tokens) for items in _MIXED_ITEMS]
        taken = []
        for side, policy in sides if number % 2 else reversed(sides):
            began = clock()
            for batch in batches:
                side.run([side.of_ids(ids) for ids in batch], policy)
            taken.append(max(clock() - began, 1e-9))
        ours, theirs = taken if number % 2 else reversed(taken)
        saved.append(1 - theirs / ours)
    return float(np.median(saved[1:]))


def _mixed(random: np.random.Generator, ids: Sequence[int], items: int, max_tokens: int) -> list[Ids]:
    lengths = random.integers(min(4, max_tokens), min(_MIXED_TOKENS, max_tokens), size=items, endpoint=True)
    return [np.resize(np.array(ids, dtype=np.int64), int(length)) for length in lengths]


def after_runoff(choice: Choice, default: Candidate, saved: float) -> Choice:
    """The choice, or the default one where the challenger saved too little when both ran in turn.

    >>> both = Candidate("onnxruntime", "int8"), Candidate("openvino", "int8")
    >>> after_runoff(Choice(both[1], "saves 30%"), both[0], saved=0.02).candidate.backend
    'onnxruntime'
    """
    told = f"{choice.candidate} saves {saved:.0%} on mixed batches run in turn"
    if saved < MARGIN:
        return replace(choice, candidate=default, why=f"the default; {told}, less than {MARGIN:.0%}")
    return replace(choice, why=f"{told} with {default}")


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Everything that a choice depends on; it holds as long as none of it changes."""

    bundle: str
    backends: tuple[tuple[str, str], ...]
    processor: str
    threads: int
    slots: int
    precision: str | None

    @property
    def digest(self) -> str:
        """Names the choice's file."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


def surroundings(
    manifest: Manifest, *, backends: Iterable[str], threads: int, slots: int, precision: str | None
) -> Surroundings:
    """What a choice for a student would depend on here and now."""
    versions = tuple((name, _version(name)) for name in backends)
    bundle = hashlib.sha256(dump_manifest(manifest)).hexdigest()
    return Surroundings(bundle, versions, processor(), threads, slots, precision)


def _version(backend: str) -> str:
    try:
        return importlib.metadata.version(_DISTRIBUTIONS.get(backend, backend))
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's model and a digest of what it can do; the architecture where the system does not say more."""
    try:
        text = cpuinfo.read_text(encoding="utf-8")
    except OSError:
        text = ""
    lines: list[tuple[str, str]] = re.findall(r"^(model name|flags|Features)\s*: (.*)$", text, flags=re.MULTILINE)
    found = dict(lines)
    flags = " ".join(sorted(found.get("flags", found.get("Features", "")).split()))
    model = found.get("model name", platform.machine())
    return f"{model} {hashlib.sha256(flags.encode()).hexdigest()[:16]}"


def default_cache_dir(environ: dict[str, str] | None = None) -> Path:
    """`understudy` in the user's cache directory. Raises: RuntimeError: there is no home directory."""
    base = (os.environ if environ is None else environ).get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "understudy"


def remembered(folder: Path, here: Surroundings) -> Choice | None:
    """The choice made earlier in the same surroundings, or None.

    Raises: ValueError: there is a file, but it cannot be used; says why.
    """
    file = _file(folder, here)
    try:
        raw = file.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ValueError(f"{file}: cannot be read: {error.strerror}") from error
    try:
        document = json.loads(raw)
        if document["schema"] != SCHEMA or document["surroundings"] != json.loads(json.dumps(asdict(here))):
            raise ValueError("it was made elsewhere")
        return _choice(document)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file}: not a choice of ours: {type(error).__name__}: {error}") from error


def _choice(document: dict[str, Any]) -> Choice:
    weighed = tuple(_weighed(each) for each in document["weighed"])
    found = Candidate(**{name: str(value) for name, value in document["candidate"].items()})
    if found not in {each.candidate for each in weighed}:
        raise ValueError(f"{found} was never weighed")
    return Choice(found, str(document["why"]), weighed)


def _weighed(document: dict[str, Any]) -> Weighed:
    seconds = document["seconds"]
    candidate = Candidate(**{name: str(value) for name, value in document["candidate"].items()})
    return Weighed(candidate, None if seconds is None else float(seconds), str(document["why_not"]))


def remember(folder: Path, here: Surroundings, choice: Choice) -> None:
    """Keep a choice for the next start; a reader finds the whole file or none.

    Raises: OSError: it cannot be written.
    """
    document = {"schema": SCHEMA, "surroundings": asdict(here), **asdict(choice)}
    file = _file(folder, here)
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, aside = tempfile.mkstemp(dir=file.parent, prefix=".", suffix=".json")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as opened:
            json.dump(document, opened, indent=1)
        Path(aside).replace(file)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise


def _file(folder: Path, here: Surroundings) -> Path:
    return folder / "choices" / f"{here.digest}.json"

"""What is served of each student, and which version a request's `model` means."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from service.api.loading import Fingerprint, Served
from service.api.problems import wrong_field
from service.bundle.manifest import Task
from service.errors import NotReady, ServiceError, UnknownModel
from service.store.aliases import DEFAULT_ALIAS


@dataclass(frozen=True, slots=True)
class Refusal:
    """A version (or, with version None, an alias file) that is not served, and why."""

    version: int | None
    error: str
    detail: str
    seen: Fingerprint | None = None


@dataclass(frozen=True, slots=True)
class Family:
    """One student, as a snapshot that is replaced whole.

    Attributes:
        name: the student's.
        aliases: what each alias answers with.
        pointed: the version each alias points at in the store; another one answers where that was refused.
        refused: the versions that were refused.
    """

    name: str
    aliases: Mapping[str, Served] = field(default_factory=dict)
    pointed: Mapping[str, int] = field(default_factory=dict)
    refused: tuple[Refusal, ...] = ()

    @property
    def versions(self) -> dict[int, Served]:
        """The versions in service, rising."""
        return {served.version: served for served in sorted(self.aliases.values(), key=lambda served: served.version)}

    @property
    def production(self) -> Served | None:
        """What the bare name means."""
        return self.aliases.get(DEFAULT_ALIAS)


def only(families: Mapping[str, Family], task: Task, *, ready: bool) -> Served:
    """The one production version that serves a task.

    Args:
        families: what is served.
        task: what is asked for.
        ready: whether everything required has been loaded.
    Raises:
        InvalidInput: there are several; UnknownModel: there is none; NotReady: there may be one soon.
    """
    productions = [one.production for one in families.values() if one.production is not None]
    fitting = [served for served in productions if served.manifest.task == task]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        names = ", ".join(served.name for served in fitting)
        raise wrong_field("/model", f"is required: more than one student serves {task}: {names}")
    if not ready:
        raise NotReady(f"no student for {task} is loaded yet")
    raise UnknownModel(f"no student here serves {task}")


def named(families: Mapping[str, Family], reference: str, *, looked: bool) -> Served:
    """The version that `name`, `name@alias` or `name@version` means.

    Args:
        families: what is served.
        reference: as the request writes it.
        looked: whether whatever the store holds has been loaded or refused.
    Raises:
        UnknownModel: nothing is served by that name, alias or version.
        NotReady: the student is in the store but has not been loaded, or was refused.
    """
    name, at, wanted = reference.partition("@")
    family = families.get(name)
    if family is None:
        if not looked:
            raise NotReady("the students are being loaded")
        raise UnknownModel(f"no student is named {name!r}")
    if wanted.isdecimal():
        found = family.versions.get(int(wanted)) if len(wanted) < 10 else None
    else:
        found = family.aliases.get(wanted if at else DEFAULT_ALIAS)
    if found is not None:
        return found
    if not looked:
        raise NotReady(f"student {name!r} is being loaded")
    raise _absent(family, wanted if at else DEFAULT_ALIAS)


def tasks_of(served: Served) -> tuple[Task, ...]:
    """What a student may be asked for by name."""
    return ("embed", "rank") if served.manifest.task == "embed" else (served.manifest.task,)


def _absent(family: Family, wanted: str) -> ServiceError:
    """Why a version or an alias of a known student does not answer."""
    version = str(family.pointed.get(wanted, wanted))
    for refusal in family.refused:
        if refusal.version is None or str(refusal.version) == version:
            return NotReady(f"student {family.name!r} was refused: {refusal.error}; the service's log says why")
    if wanted.isdecimal():
        return UnknownModel(f"version {wanted} of {family.name!r} is not served: no alias points at it")
    return UnknownModel(f"student {family.name!r} has no alias {wanted!r}")

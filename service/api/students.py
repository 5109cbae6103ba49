"""The served set: which versions of which students answer, following the store's aliases while the service runs.

Every version that an alias points at is served. A new one is loaded and proved aside, one after another, before any
alias moves to it; one that is refused is logged and counted, and its alias goes on answering with the version it had.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import ParamSpec, TypeVar

from service.api.loading import Fingerprint, Served, fingerprint
from service.api.logs import log_event, log_failure
from service.api.problems import wrong_field
from service.bundle.manifest import Task
from service.errors import BundleError, NotReady, ServiceError, SettingsInvalid, StoreError, UnknownModel
from service.metrics import Metrics
from service.store.aliases import DEFAULT_ALIAS
from service.store.store import Store
from service.store.watch import changes

P = ParamSpec("P")
R = TypeVar("R")
Load = Callable[[str, int], Served]
# a look at the store that nothing asked for: a file system may not tell of changes, nor a store that was put in place
# of another
POLL_S = 10.0
_NAMED_ERRORS = (BundleError, StoreError, SettingsInvalid)


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


class Students:
    """The families in service.

    Owner: event loop; only loading runs elsewhere, in one thread.
    Invariant: a family is replaced whole, so a request finds the old version or the new one, proved; requests under
    way keep the version they found.
    """

    def __init__(
        self,
        store: Store,
        *,
        load: Load,
        metrics: Metrics,
        required: tuple[str, ...] | None = None,
        poll_s: float = POLL_S,
    ) -> None:
        """Serve nothing yet.

        Args:
            store: what to follow.
            load: loads and proves a version; runs in a thread; raises BundleError, StoreError or SettingsInvalid.
            metrics: told what is served and what was refused.
            required: students to wait for; None: those that have a production alias at the first look.
            poll_s: seconds after which `follow` looks again, even if nothing tells of a change.
        """
        self.families: dict[str, Family] = {}
        self._store = store
        self._load = load
        self._metrics = metrics
        self._choose_required = required is None
        self._awaited = set(required or ())
        self._looked = False
        self._poll_s = poll_s
        self._unreadable = ""
        self._changed = asyncio.Event()
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="load")

    def __repr__(self) -> str:
        return f"Students(served={self.served()}, waiting_for={self.waiting_for()})"

    def served(self) -> dict[str, list[int]]:
        """The versions in service, by student."""
        return {name: list(family.versions) for name, family in self.families.items() if family.aliases}

    def waiting_for(self) -> dict[str, str]:
        """Each required student that has not been in service yet, and why; empty once all have."""
        return {name: self._why_not(self.families.get(name, Family(name))) for name in sorted(self._awaited)}

    @property
    def ready(self) -> bool:
        """Whether the first look is over, every required student has been served, and something is served."""
        return self._looked and not self._awaited and any(family.aliases for family in self.families.values())

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for something to become true of what is served; `condition` is asked after every change."""
        while not condition():
            await self._changed.wait()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _why_not(self, family: Family) -> str:
        if family.refused:
            return f"refused: {family.refused[0].error}"
        return "no production alias" if self._looked else "loading"

    async def follow(self) -> None:
        """Load what the store holds now, then whatever changes, until cancelled."""
        stop, woken = asyncio.Event(), asyncio.Event()
        watching = asyncio.create_task(self._watch(stop, woken))
        try:
            # subtle: the watch starts before the first look, so that no change falls between the two
            await asyncio.sleep(0)
            await self.refresh()
            while True:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(woken.wait(), self._poll_s)
                woken.clear()
                await self.refresh()
        finally:
            stop.set()
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            self._loader.shutdown(wait=False, cancel_futures=True)

    async def _watch(self, stop: asyncio.Event, woken: asyncio.Event) -> None:
        try:
            async for _ in changes(self._store.root, stop):
                woken.set()
        except (OSError, RuntimeError) as error:
            log_failure("store_not_watched", error, store=str(self._store.root))

    async def refresh(self) -> None:
        """Bring the served set in line with the store; what cannot be read or proved stays as it was."""
        try:
            names = await self._in_thread(self._names)
        except (StoreError, OSError) as error:
            if str(error) != self._unreadable:
                log_event(logging.ERROR, "store_unreadable", store=str(self._store.root), detail=str(error))
            self._unreadable = str(error)
            return
        self._unreadable = ""
        for name in [name for name in self.families if name not in names]:
            self._remove(name)
        self.families |= {name: Family(name) for name in names if name not in self.families}
        for name in names:
            await self._refresh_family(name)
        if not self._looked:
            self._looked = True
            self._log_readiness()
        self._tell()

    def _names(self) -> list[str]:
        # subtle: a store that is gone for a moment (a mount) is not a store without students
        if not self._store.root.is_dir():
            raise StoreError(f"{self._store.root}: no such directory")
        return self._store.students()

    def _log_readiness(self) -> None:
        if self.ready:
            log_event(logging.INFO, "ready", served=self.served())
        else:
            log_event(logging.WARNING, "not_ready", served=self.served(), waiting_for=self.waiting_for())

    def _remove(self, name: str) -> None:
        self._put(Family(name))
        del self.families[name]
        if self._choose_required:
            self._awaited.discard(name)
        log_event(logging.INFO, "student_removed", model=name)

    async def _refresh_family(self, name: str) -> None:
        before = self.families[name]
        try:
            file = await self._in_thread(self._store.aliases, name)
        except (StoreError, OSError) as error:
            self._await_if_first(name)
            if not any(refusal.version is None and refusal.detail == str(error) for refusal in before.refused):
                versions = tuple(refusal for refusal in before.refused if refusal.version is not None)
                self._put(replace(before, refused=(self._refuse(name, None, error), *versions)))
            return
        wanted = {alias: entry.version for alias, entry in file.aliases.items()}
        if DEFAULT_ALIAS in wanted:
            self._await_if_first(name)
        loaded, refused = await self._load_missing(before, wanted)
        # an alias whose new version was refused keeps the version it had
        known = {alias: loaded.get(version) or before.aliases.get(alias) for alias, version in wanted.items()}
        aliases = {alias: served for alias, served in known.items() if served is not None}
        self._put(Family(name, aliases, wanted, refused))

    def _await_if_first(self, name: str) -> None:
        if self._choose_required and not self._looked:
            self._awaited.add(name)

    async def _load_missing(
        self, before: Family, wanted: Mapping[str, int]
    ) -> tuple[dict[int, Served], tuple[Refusal, ...]]:
        loaded, refused = before.versions, []
        for version in sorted(set(wanted.values()) - set(loaded)):
            outcome = await self._try(before, version)
            if isinstance(outcome, Refusal):
                refused.append(outcome)
            else:
                loaded[version] = outcome
        return loaded, tuple(refused)

    async def _try(self, before: Family, version: int) -> Served | Refusal:
        """Load a version, unless it was refused before and has not changed since."""
        seen = await self._in_thread(fingerprint, self._store.root / before.name / str(version))
        for refusal in before.refused:
            if refusal.version == version and refusal.seen == seen:
                return refusal
        try:
            return await self._in_thread(self._load, before.name, version)
        except _NAMED_ERRORS as error:
            return replace(self._refuse(before.name, version, error), seen=seen)
        except Exception as error:  # noqa: BLE001 - task boundary: one bundle must not end the others
            log_failure("load_failed", error, model=before.name, version=version)
            return replace(self._refuse(before.name, version, error), seen=seen)

    def _refuse(self, name: str, version: int | None, error: Exception) -> Refusal:
        code = str(getattr(error, "code", "internal"))
        self._metrics.bundle_refused.labels(name, code).inc()
        log_event(logging.ERROR, "refused", model=name, version=version, error=code, detail=str(error))
        return Refusal(version, code, str(error))

    def _put(self, family: Family) -> None:
        before = self.families.get(family.name, Family(family.name))
        self.families[family.name] = family
        for version in before.versions.keys() - family.versions.keys():
            self._metrics.student_info.remove(*before.versions[version].info)
        for version in family.versions.keys() - before.versions.keys():
            self._metrics.student_info.labels(*family.versions[version].info).set(1)
        old, new = ({alias: one.version for alias, one in each.aliases.items()} for each in (before, family))
        if old != new:
            log_event(logging.INFO, "aliases_served", model=family.name, aliases=new)
        if family.production is not None and family.name in self._awaited:
            self._awaited.discard(family.name)
            if self._looked and self.ready:
                self._log_readiness()
        self._tell()

    async def _in_thread(self, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        return await asyncio.get_running_loop().run_in_executor(self._loader, lambda: call(*args, **kwargs))

    def find(self, reference: str | None, task: Task) -> Served:
        """The version that a request's `model` means.

        Args:
            reference: `name`, `name@alias` or `name@version`; None: the only student that serves the task.
            task: what the route does.
        Raises:
            UnknownModel: nothing is served by that name, alias or version.
            NotReady: the student is in the store but has not been loaded, or was refused.
            InvalidInput: the student does another task, or there are several to choose from.
        """
        served = self._only(task) if reference is None else self._named(reference)
        if served.manifest.task != task:
            raise wrong_field("/model", f"{served.name!r} is a student for {served.manifest.task}, not for {task}")
        return served

    def _only(self, task: Task) -> Served:
        productions = [one.production for one in self.families.values() if one.production is not None]
        fitting = [served for served in productions if served.manifest.task == task]
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            names = ", ".join(served.name for served in fitting)
            raise wrong_field("/model", f"is required: more than one student serves {task}: {names}")
        if not self.ready:
            raise NotReady(f"no student for {task} is loaded yet")
        raise UnknownModel(f"no student here serves {task}")

    def _named(self, reference: str) -> Served:
        name, at, wanted = reference.partition("@")
        family = self.families.get(name)
        if family is None:
            if not self._looked:
                raise NotReady("the students are being loaded")
            raise UnknownModel(f"no student is named {name!r}")
        if wanted.isdecimal():
            found = family.versions.get(int(wanted)) if len(wanted) < 10 else None
        else:
            found = family.aliases.get(wanted if at else DEFAULT_ALIAS)
        if found is not None:
            return found
        if not self._looked:
            raise NotReady(f"student {name!r} is being loaded")
        raise _absent(family, wanted if at else DEFAULT_ALIAS)


def _absent(family: Family, wanted: str) -> ServiceError:
    """Why a version or an alias of a known student does not answer."""
    version = str(family.pointed.get(wanted, wanted))
    for refusal in family.refused:
        if refusal.version is None or str(refusal.version) == version:
            return NotReady(f"student {family.name!r} was refused: {refusal.error}; the service's log says why")
    if wanted.isdecimal():
        return UnknownModel(f"version {wanted} of {family.name!r} is not served: no alias points at it")
    return UnknownModel(f"student {family.name!r} has no alias {wanted!r}")

"""The served set: which versions of which students answer, following the store's aliases while the service runs.

Every version that an alias points at is served. A new one is loaded and proved aside, one after another, before any
alias moves to it; one that is refused is logged and counted, and its alias goes on answering with the version it had.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import ParamSpec, Protocol, TypeVar

from service.api.families import Family, Refusal, named, only, tasks_of
from service.api.loading import Served, fingerprint
from service.api.logs import log_event, log_failure
from service.api.problems import wrong_field
from service.bundle.manifest import Task
from service.errors import BundleError, RunFailed, SettingsInvalid, StoreError
from service.metrics import Metrics
from service.store.aliases import DEFAULT_ALIAS
from service.store.store import Store
from service.store.watch import changes

P = ParamSpec("P")
R = TypeVar("R")
# a look at the store that nothing asked for: a file system may not tell of changes, nor a store that was put in place
# of another
POLL_S = 10.0
_NAMED_ERRORS = (BundleError, StoreError, SettingsInvalid)

__all__ = ["Family", "Refusal", "Students"]


class Loading(Protocol):
    """Loads versions, and finds better ways to run them; every call is made in one thread."""

    def __call__(self, name: str, version: int) -> Served:
        """Load and prove a version. Raises: BundleError, StoreError or SettingsInvalid, by name."""
        ...

    def improve(self, served: Served) -> Served:
        """The version as it is best run here, settled: loaded and proved anew, or as it was."""
        ...

    def tidy(self) -> None:
        """Give back the memory of what is gone."""
        ...


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
        load: Loading,
        metrics: Metrics,
        required: tuple[str, ...] | None = None,
        poll_s: float = POLL_S,
        retired: Callable[[Served], None] = lambda _: None,
    ) -> None:
        """Serve nothing yet.

        Args:
            store: what to follow.
            load: loads and proves versions; it is called in a thread.
            metrics: told what is served and what was refused.
            required: students to wait for; None: those that have a production alias at the first look.
            poll_s: seconds after which `follow` looks again, even if nothing tells of a change.
            retired: told of every loaded version that is no longer in service, also where it is loaded anew.
        """
        self.families: dict[str, Family] = {}
        self._store = store
        self._load: Callable[[str, int], Served] = load
        self._loading = load
        self._metrics = metrics
        self._choose_required = required is None
        self._awaited = set(required or ())
        self._required = set(self._awaited)
        self._looked = False
        self._poll_s = poll_s
        self._retired = retired
        self._unreadable = ""
        self._changed = asyncio.Event()
        self._woken = asyncio.Event()
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

    @property
    def looked(self) -> bool:
        """Whether the first look is over: whatever the store holds has been loaded or refused."""
        return self._looked

    @property
    def unreadable(self) -> str:
        """Why the store could not be read at the last look; empty: it could."""
        return self._unreadable

    def look(self) -> None:
        """Have `follow` look at the store now."""
        self._woken.set()

    async def prove(self, name: str, version: int) -> Served | Refusal:
        """Load and prove a version as if it were to be served, and let it go again."""
        try:
            return await self._in_thread(self._load, name, version)
        except _NAMED_ERRORS as error:
            return Refusal(version, str(getattr(error, "code", "internal")), str(error))

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
        stop, woken = asyncio.Event(), self._woken
        watching = asyncio.create_task(self._watch(stop, woken))
        try:
            # subtle: the watch starts before the first look, so that no change falls between the two
            await asyncio.sleep(0)
            await self.refresh()
            while True:
                await self._improve()
                await self._in_thread(self._loading.tidy)
                with contextlib.suppress(TimeoutError):
                    # subtle: not `wait_for`, which swallows a cancellation that comes together with the event
                    async with asyncio.timeout(self._poll_s):
                        await woken.wait()
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

    async def _improve(self) -> None:
        """Have every version that was loaded run as it is best run here; a change of the store goes first."""
        while not self._woken.is_set():
            unsettled = [served for family in self.families.values() for served in family.aliases.values()]
            served = next((served for served in unsettled if not served.settled), None)
            if served is None:
                return
            try:
                better = await self._in_thread(self._loading.improve, served)
            except Exception as error:  # noqa: BLE001 - task boundary: it is served on as it is
                log_failure("improving_failed", error, model=served.name, version=served.version)
                better = replace(served, settled=True)
            self._swap(served, better)

    def _swap(self, old: Served, new: Served) -> None:
        """Let `new` answer wherever `old` does; requests under way finish on the one they found."""
        family = self.families.get(old.name)
        if family is not None:
            aliases = {alias: new if served is old else served for alias, served in family.aliases.items()}
            self._put(replace(family, aliases=aliases))

    def take_out(self, name: str, version: int, *, detail: str) -> None:
        """Stop serving a loaded version that works no more; `follow` loads and proves it anew.

        Until it is back, a required student holds readiness back.
        """
        family = self.families.get(name)
        if family is None or version not in family.versions:
            return
        log_event(logging.ERROR, "taken_out", model=name, version=version, detail=detail)
        if name in self._required and family.production is not None and family.production.version == version:
            self._awaited.add(name)
        aliases = {alias: served for alias, served in family.aliases.items() if served.version != version}
        refused = (*family.refused, Refusal(version, RunFailed.code, detail))
        self._put(replace(family, aliases=aliases, refused=refused))
        self.look()

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
            self._required.discard(name)
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
        # subtle: what was taken out meanwhile must not come back unproved
        taken_out = before.versions.keys() - self.families[name].versions.keys()
        # an alias whose new version was refused keeps the version it had
        known = {alias: loaded.get(version) or before.aliases.get(alias) for alias, version in wanted.items()}
        aliases = {alias: served for alias, served in known.items() if served and served.version not in taken_out}
        self._put(Family(name, aliases, wanted, refused))

    def _await_if_first(self, name: str) -> None:
        if self._choose_required and not self._looked:
            self._awaited.add(name)
            self._required.add(name)

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
        self._tell_of_versions(before.versions, family.versions)
        old, new = ({alias: one.version for alias, one in each.aliases.items()} for each in (before, family))
        if old != new:
            log_event(logging.INFO, "aliases_served", model=family.name, aliases=new)
        if family.production is not None and family.name in self._awaited:
            self._awaited.discard(family.name)
            if self._looked and self.ready:
                self._log_readiness()
        self._tell()

    def _tell_of_versions(self, before: Mapping[int, Served], now: Mapping[int, Served]) -> None:
        metrics = self._metrics
        for version, served in before.items():
            if now.get(version) is not served:
                metrics.student_info.remove(*served.info)
                metrics.student_memory_bytes.remove(served.name, str(version))
            if not any(other.handle is served.handle for other in now.values()):
                self._retired(served)
        for version, served in now.items():
            metrics.student_info.labels(*served.info).set(1)
            metrics.student_memory_bytes.labels(served.name, str(version)).set(served.memory_bytes)

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
            InvalidInput: the student does another task, or there are several to choose from. An embed student that is
                named also ranks.
        """
        served = only(self.families, task, ready=self.ready) if reference is None else self.named(reference)
        if task not in tasks_of(served):
            raise wrong_field("/model", f"{served.name!r} is a student for {served.manifest.task}, not for {task}")
        return served

    def serves(self, served: Served) -> bool:
        """Whether a version that was found is still in service."""
        family = self.families.get(served.name)
        return family is not None and family.versions.get(served.version) is served

    def named(self, reference: str) -> Served:
        """The version that `name`, `name@alias` or `name@version` means; raises as `find`."""
        return named(self.families, reference, looked=self._looked)

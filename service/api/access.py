"""Who calls, and how much they may: API keys with quotas, the admin key, and the paths that need neither."""

import hashlib
import hmac
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from starlette.types import Scope

from service.api.keys import KeyEntry, KeyFile, digest_of
from service.errors import Forbidden, QuotaExceeded, Unauthorized
from service.metrics import Metrics
from service.settings import Settings

# asked by machines that hold no key: balancers, Prometheus, the documentation's page
OPEN_PATHS = frozenset({"/metrics", "/docs", "/docs/oauth2-redirect", "/openapi.json", "/health", "/ping"})
OPEN_PREFIXES = ("/health/", "/v2/health/")
ADMIN = "/admin"
_HEADERS = (b"authorization", b"x-api-key")
_ROUNDING = 1e-6


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose request it is: the name of a key, or "" where none is asked for; `admin` on the admin routes alone."""

    name: str = ""
    admin: bool = False


ANYONE = Caller()
ADMINISTRATOR = Caller("admin", admin=True)


class Bucket:
    """A token bucket in debt: whoever finds one unit in it may go on, and what that really took is taken afterwards.

    It holds a minute's worth at most. Owner: event loop.
    """

    __slots__ = ("_rate_s", "_seen", "capacity", "level")

    def __init__(self, per_minute: float, *, now: float) -> None:
        self.capacity = self.level = per_minute
        self._rate_s = per_minute / 60
        self._seen = now

    def wait_s(self, now: float) -> float:
        """Seconds until there is one unit; 0: there is."""
        self.level = min(self.capacity, self.level + (now - self._seen) * self._rate_s)
        self._seen = now
        missing = 1.0 - self.level
        return missing / self._rate_s if missing > _ROUNDING else 0.0

    def take(self, units: float) -> None:
        """Take so much, into debt if need be."""
        self.level -= units


@dataclass(slots=True)
class _Account:
    """A key and what is left of its quotas, by the name of the limit."""

    key: KeyEntry
    digest: bytes
    buckets: dict[str, Bucket]


class Access:
    """The doorkeeper. Owner: event loop."""

    def __init__(self, settings: Settings, metrics: Metrics, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Read the keys.

        Args:
            settings: `api_keys` and `admin_key`.
            metrics: told of refused quotas.
            clock: seconds.
        Raises: SettingsInvalid: the file of keys is broken.
        """
        self._clock = clock
        self._metrics = metrics
        admin = settings.admin_key
        self._admin = None if admin is None else bytes.fromhex(digest_of(admin.get_secret_value().strip()))
        self._file = None if settings.api_keys is None else KeyFile(settings.api_keys, clock=clock)
        self._accounts: dict[str, _Account] = {}
        self._read()

    def __repr__(self) -> str:
        return f"Access(open={self.open}, keys={len(self._accounts)}, admin={self._admin is not None})"

    @property
    def open(self) -> bool:
        """Whether no key is asked for, but for the admin routes."""
        return self._file is None

    def _read(self) -> None:
        now = self._clock()
        before, self._accounts = self._accounts, {}
        for key in self._file.keys if self._file is not None else ():
            rates = {"items": key.items_per_minute, "compute": key.compute_per_minute}
            buckets = {what: Bucket(rate, now=now) for what, rate in rates.items() if rate is not None}
            old = before[key.name].buckets if key.name in before else {}
            for what in buckets.keys() & old.keys():
                old[what].wait_s(now)
                buckets[what].level = min(buckets[what].level, old[what].level)
            self._accounts[key.name] = _Account(key, bytes.fromhex(key.sha256), buckets)

    def caller(self, scope: Scope) -> Caller:
        """Whose request this is.

        Raises:
            Unauthorized: a key is needed, and none or no such key came.
            Forbidden: the key is right, but not for this path.
        """
        path: str = scope["path"]
        if path == ADMIN or path.startswith(ADMIN + "/"):
            return ANYONE if self._admin is None else self.administrator(scope)
        if self._file is None or is_open(path, scope["method"]):
            return ANYONE
        if self._file.changed():
            self._read()
        presented = list(_presented(scope))
        account = self._matching(presented)
        if account is not None:
            return Caller(account.key.name)
        if self._is_admin(presented):
            raise Forbidden("the admin key opens /admin alone; this path needs an API key")
        raise _unauthorized(presented, "an API key")

    def administrator(self, scope: Scope) -> Caller:
        """The holder of the admin key. Raises: Unauthorized, Forbidden: this is not theirs."""
        presented = list(_presented(scope))
        if self._is_admin(presented):
            return ADMINISTRATOR
        if self._matching(presented) is not None:
            raise Forbidden("an API key does not open /admin; that needs the admin key")
        raise _unauthorized(presented, "the admin key")

    def _is_admin(self, presented: list[bytes]) -> bool:
        stored = self._admin
        return stored is not None and sum(hmac.compare_digest(digest, stored) for digest in presented) > 0

    def _matching(self, presented: list[bytes]) -> _Account | None:
        # subtle: always all comparisons, so that the time taken tells nothing of which one held
        found = None
        for digest in presented:
            for account in self._accounts.values():
                if hmac.compare_digest(digest, account.digest):
                    found = account
        return found

    def admit(self, caller: Caller, *, model: str) -> None:
        """Before the inputs are looked at: may this caller ask this student now?

        Raises:
            Forbidden: not this student.
            QuotaExceeded: nothing is left of a quota; `retry_after_s` is when there will be.
        """
        if self._file is None:
            return
        account = self._account(caller)
        if account.key.models is not None and model not in account.key.models:
            raise Forbidden(f"this key may not ask for student {model!r}")
        self._check_quota(account)

    def allow(self, caller: Caller, *, tokens: int, depth: float, full_depth: bool = False) -> None:
        """Before running: may this caller have this much?

        Args:
            caller: of `caller`.
            tokens: of all inputs.
            depth: the share of the full student's compute that is expected: 1 for `never`, else the mean depth of
                the certified point.
            full_depth: whether the request itself asks for full depth where its student offers less.
        Raises:
            Forbidden: the key does not allow full depth, or so much compute in one request.
            QuotaExceeded: nothing is left of a quota.
        """
        if self._file is None:
            return
        account = self._account(caller)
        if full_depth and not account.key.full_depth:
            raise Forbidden("this key may not ask for full depth: leave `exit` out, or name a certified risk")
        most = account.key.max_request_compute
        if most is not None and tokens * depth > most:
            raise Forbidden(
                f"the request needs {tokens * depth:.0f} full-depth tokens ({tokens} tokens at depth {depth:g}); "
                f"this key may take {most:.0f} at once"
            )
        self._check_quota(account)

    def charge(self, caller: Caller, *, items: int, compute_tokens: float) -> None:
        """After running: take what was used.

        Args:
            caller: of `caller`.
            items: that were run.
            compute_tokens: the sum of their tokens, each times the depth it was run to.
        """
        account = self._accounts.get(caller.name)
        if account is None:
            return
        for what, units in (("items", float(items)), ("compute", compute_tokens)):
            if what in account.buckets:
                account.buckets[what].take(units)

    def _account(self, caller: Caller) -> _Account:
        try:
            return self._accounts[caller.name]
        except KeyError:
            raise Unauthorized("the API key has just been withdrawn") from None

    def _check_quota(self, account: _Account) -> None:
        now = self._clock()
        waits = {what: bucket.wait_s(now) for what, bucket in account.buckets.items()}
        what = max(waits, key=waits.__getitem__, default=None)
        if what is None or waits[what] == 0.0:
            return
        self._metrics.quota_refused.labels(account.key.name).inc()
        units = "items" if what == "items" else "full-depth tokens"
        limit = f"{account.buckets[what].capacity:.0f} {units} a minute"
        raise QuotaExceeded(f"this key has used up its {limit}", retry_after_s=waits[what])

    def status(self) -> list[dict[str, Any]]:
        """Each key's name, limits and what is left of them; neither keys nor digests."""
        now = self._clock()
        return [_told(account, now) for account in self._accounts.values()]


def _told(account: _Account, now: float) -> dict[str, Any]:
    waits = {what: bucket.wait_s(now) for what, bucket in account.buckets.items()}
    left = {what: round(bucket.level, 3) for what, bucket in account.buckets.items()}
    return account.key.model_dump(mode="json", exclude={"sha256"}) | {
        "left": left,
        "retry_after_s": round(max(waits.values(), default=0.0), 3),
    }


def is_open(path: str, method: str) -> bool:
    """Whether a path needs no key: probes, metrics, documentation, and what a browser asks before it asks.

    >>> [is_open(path, "GET") for path in ("/health/ready", "/metrics", "/v1/models")]
    [True, True, False]
    """
    if method == "OPTIONS" or path in OPEN_PATHS or path.startswith(OPEN_PREFIXES):
        return True
    return path.startswith("/tei/") and path.endswith(("/health", "/ping"))


def _presented(scope: Scope) -> Iterator[bytes]:
    """The digests of the keys that came: the first of each header that may carry one."""
    headers = scope["headers"]
    for wanted in _HEADERS:
        value = next((value for name, value in headers if name == wanted), b"").strip()
        if value[:7].lower() == b"bearer ":
            value = value[7:].strip()
        if value:
            yield hashlib.sha256(value).digest()


def _unauthorized(presented: list[bytes], needed: str) -> Unauthorized:
    if presented:
        return Unauthorized(f"{needed} is needed, and what came is none")
    return Unauthorized(f"{needed} is needed: send `authorization: Bearer KEY` or `x-api-key: KEY`")

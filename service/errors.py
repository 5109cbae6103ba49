"""Every error of the online half, and what each means over HTTP.

ServiceError                              BundleError (start-up and offline; never over HTTP)
├─ CallerError      the caller can fix    ├─ ManifestInvalid   manifest.json breaks its schema
│  ├─ Malformed           400             ├─ FormatTooNew      newer major, or unknown `requires`
│  ├─ Unauthorized        401             ├─ FileMissing       a file the manifest names is not there
│  ├─ Forbidden           403             ├─ FileTooLarge      a file is over the size bound
│  ├─ UnknownModel        404             ├─ DigestMismatch    a file's bytes are not the published ones
│  ├─ BodyTimeout         408             ├─ GraphMismatch     a graph's tensors are not the manifest's
│  ├─ Conflict            409             ├─ GoldenMismatch    a backend does not reproduce the goldens
│  ├─ TooLarge            413             └─ MemoryFull        the loaded students would exceed the limit
│  └─ InvalidInput        422             StoreError (start-up and offline; never over HTTP)
├─ Unavailable      the caller may retry  ├─ UnknownVersion    no such student, version or alias
│  ├─ Overloaded          429             ├─ AliasInvalid      an alias name or file breaks its rules
│  │  └─ QuotaExceeded    429             ├─ SpaceMismatch     an alias would move between embedding spaces
│  ├─ NotReady            503             └─ PublishFailed     nothing was published; the store is as it was
│  ├─ Draining            503             SettingsInvalid (start-up)
│  └─ DeadlineExceeded    504             └─ BackendUnavailable  a backend asked for by name is not usable
└─ RunFailed              500 (ours)
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FieldProblem:
    """One bad field of a request: where (RFC 6901 JSON pointer) and what is wrong."""

    pointer: str
    detail: str


class ServiceError(Exception):
    """An error with an HTTP meaning. `status` and `code` are fixed per class."""

    status = 500
    code = "internal"
    title = "Internal error"

    def __init__(self, detail: str, *, errors: tuple[FieldProblem, ...] = ()) -> None:
        super().__init__(detail)
        self.detail = detail
        self.errors = errors


class CallerError(ServiceError):
    """The caller can mend the request."""

    status, code, title = 400, "bad_request", "Bad request"


class Malformed(CallerError):
    """The body is not JSON, or not the media type the route takes."""

    status, code, title = 400, "malformed", "Malformed request"


class Unauthorized(CallerError):
    """A key is needed and none, or a wrong one, came."""

    status, code, title = 401, "unauthorized", "Unauthorized"


class Forbidden(CallerError):
    """The key is right but may not do this."""

    status, code, title = 403, "forbidden", "Forbidden"


class UnknownModel(CallerError):
    """No served student goes by that name, version or alias."""

    status, code, title = 404, "unknown_model", "Unknown model"


class BodyTimeout(CallerError):
    """The body did not come in time."""

    status, code, title = 408, "body_timeout", "Request timeout"


class Conflict(CallerError):
    """What is there stands in the way of what was asked (the admin routes alone)."""

    status, code, title = 409, "conflict", "Conflict"


class TooLarge(CallerError):
    """The body or its number of items is over the limit."""

    status, code, title = 413, "too_large", "Request too large"


class InvalidInput(CallerError):
    """A field is wrong; `errors` names it by JSON pointer."""

    status, code, title = 422, "invalid_input", "Invalid input"


class Unavailable(ServiceError):
    """The caller may try again."""

    status, code, title = 503, "unavailable", "Unavailable"


class Overloaded(Unavailable):
    """Shed at admission; `retry_after_s` goes into the Retry-After header."""

    status, code, title = 429, "overloaded", "Overloaded"

    def __init__(self, detail: str, *, retry_after_s: float) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class QuotaExceeded(Overloaded):
    """The key has used up what it may use for now."""

    status, code, title = 429, "quota_exceeded", "Quota exceeded"


class NotReady(Unavailable):
    """The student, or the service, is not loaded yet."""

    status, code, title = 503, "not_ready", "Not ready"


class Draining(Unavailable):
    """The service is stopping and takes no new work."""

    status, code, title = 503, "draining", "Draining"


class DeadlineExceeded(Unavailable):
    """The request's deadline passed before its answer was ready."""

    status, code, title = 504, "deadline_exceeded", "Deadline exceeded"


class RunFailed(ServiceError):
    """A graph failed on this item; ours, logged once."""

    status, code, title = 500, "run_failed", "Run failed"


class BundleError(Exception):
    """A bundle is refused. The message names the offending file, field or tensor."""

    code = "bundle"


class ManifestInvalid(BundleError):
    """`manifest.json` is not JSON, breaks the schema, or contradicts itself."""

    code = "manifest_invalid"


class FormatTooNew(BundleError):
    """The bundle's major format version, or an entry of its `requires`, is not known here."""

    code = "format_too_new"


class FileMissing(BundleError):
    """A file the manifest names is not in the bundle."""

    code = "file_missing"


class FileTooLarge(BundleError):
    """A file is larger than the bound, or than the manifest says."""

    code = "file_too_large"


class DigestMismatch(BundleError):
    """A file's sha256 is not the manifest's."""

    code = "digest_mismatch"


class GraphMismatch(BundleError):
    """A graph does not load, or its tensors are not those the manifest names."""

    code = "graph_mismatch"


class GoldenMismatch(BundleError):
    """A backend's outputs on the golden inputs are outside the manifest's tolerance."""

    code = "golden_mismatch"


class MemoryFull(BundleError):
    """Loading it would take the students together over the memory limit."""

    code = "memory_full"


class StoreError(Exception):
    """The store cannot do what was asked; it is unchanged."""

    code = "store"


class UnknownVersion(StoreError):
    """No such student, version or alias in the store."""

    code = "unknown_version"


class AliasInvalid(StoreError):
    """An alias name breaks the rules, or `aliases.json` does not parse."""

    code = "alias_invalid"


class SpaceMismatch(StoreError):
    """The alias would move to another embedding space, which breaks stored indexes."""

    code = "space_mismatch"


class PublishFailed(StoreError):
    """The new version could not be written; the store is as it was before."""

    code = "publish_failed"


class SettingsInvalid(Exception):
    """The service's settings contradict each other or are out of bounds."""

    code = "settings_invalid"


class BackendUnavailable(SettingsInvalid):
    """A backend was asked for by name and is not installed, or not active on this machine."""

    code = "backend_unavailable"

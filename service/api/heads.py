"""The heads of plain requests, read at a glance.

A client sends the same head again and again, but for the length of what follows; so what was understood of one is kept,
byte for byte. What is not plain - pieces, two requests in one, encodings, a connection that is to be closed, a header
twice - is not read here, but by uvicorn's parser.
"""

import re
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any

# a body of so many bytes takes a millisecond to parse and check; longer ones mostly come in pieces anyway
MAX_REQUEST_BYTES = 1 << 16
MAX_HEAD_BYTES = 1 << 12
# a client has one for each length of its bodies; one or two megabytes; when there are more, all are forgotten
MAX_KEPT = 1024

_HEAD = re.compile(rb"POST (/[!-~]*) HTTP/1\.1\r\n((?:[A-Za-z0-9-]+:[\t -~]*\r\n)+)\r\n")
_LENGTH = re.compile(rb"[0-9]{1,5}")
_UNUSUAL = frozenset(
    {b"transfer-encoding", b"expect", b"upgrade", b"proxy-connection", b"content-encoding", b"trailer", b"te"}
)
# of these each request has its own, so that nothing is gained by keeping its head
_OWN = frozenset({b"x-request-id", b"traceparent", b"x-amzn-trace-id"})


@dataclass(frozen=True, slots=True)
class Head:
    """What a request says before its body.

    Attributes:
        path: where it is posted to.
        length: of its body, in bytes.
        headers: by lower-case name.
        scope: method, path and headers as in an ASGI scope, for what reads one; not to be changed.
    """

    path: str
    length: int
    headers: Mapping[bytes, bytes]
    scope: dict[str, Any]


class Heads:
    """The heads that were seen. Owner: event loop."""

    def __init__(self, paths: Container[str], *, max_body_bytes: int) -> None:
        """Read those of POST requests to `paths` whose bodies have at most so many bytes."""
        self._paths = paths
        self._max_body_bytes = max_body_bytes
        self._kept: dict[bytes, Head] = {}

    def read(self, data: bytes) -> tuple[Head, bytes] | None:
        """The head and the body of one whole plain request; None: `data` is something else.

        Args:
            data: all that has come on a connection since the last answer.
        """
        begin = data.find(b"\r\n\r\n", 0, MAX_HEAD_BYTES) + 4
        if begin < 4 or len(data) > MAX_REQUEST_BYTES:
            return None
        raw = data[:begin]
        head = self._kept.get(raw) or self._parsed(raw)
        if head is None or len(data) != begin + head.length:
            return None
        return head, data[begin:]

    def is_alone(self, data: bytes) -> bool:
        """Whether `data` is the head of a plain request and nothing else, so that its body will come next."""
        if len(data) > MAX_HEAD_BYTES or data.find(b"\r\n\r\n") != len(data) - 4:
            return False
        head = self._kept.get(data) or self._parsed(data)
        return head is not None and head.length > 0

    def _parsed(self, raw: bytes) -> Head | None:
        match = _HEAD.fullmatch(raw)
        if match is None or (path := match[1].decode("ascii")) not in self._paths:
            return None
        head = _parsed(path, match[2])
        if head is None or head.length > self._max_body_bytes:
            return None
        if _OWN.isdisjoint(head.headers):
            if len(self._kept) >= MAX_KEPT:
                self._kept.clear()
            self._kept[raw] = head
        return head


def _parsed(path: str, fields: bytes) -> Head | None:
    lines = [line.partition(b":") for line in fields.split(b"\r\n")[:-1]]
    # subtle: as uvicorn's parser does, which leaves what is behind a value
    pairs = [(name.lower(), value.lstrip(b" \t")) for name, _, value in lines]
    headers = dict(pairs)
    length = headers.get(b"content-length", b"")
    if len(headers) < len(pairs) or not _UNUSUAL.isdisjoint(headers) or _LENGTH.fullmatch(length) is None:
        return None
    if headers.get(b"connection", b"keep-alive").lower() != b"keep-alive":
        return None
    return Head(path, int(length), headers, {"type": "http", "method": "POST", "path": path, "headers": pairs})

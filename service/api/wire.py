"""A whole answer straight onto its connection, in one write.

What uvicorn's own `send` does for it, in two writes and with a look at every header, costs as much as parsing the
request does. It stays the way of everything that is not a direct route's answer.
"""

from collections.abc import Sequence

from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

SCOPE_KEY = "understudy.wire"
_OK = b"content-type: application/json\r\ncontent-length: %d\r\nx-request-id: %b\r\n%b\r\n%b"

Header = tuple[bytes, bytes]


def wire_of(scope: Scope) -> RequestResponseCycle | None:
    """The connection's side of a request; None: another server's.

    It can be had once: as it holds its scope, a request of which both are left would wait for the garbage collector.
    """
    wire: RequestResponseCycle | None = scope.pop(SCOPE_KEY, None)
    return wire


def header_lines(headers: Sequence[Header]) -> bytes:
    """Headers as they go over the wire."""
    return b"".join([b"%b: %b\r\n" % header for header in headers])


def ok_rest(request_id: bytes, headers: Sequence[Header], body: bytes) -> bytes:
    """What follows the status line of a 200: headers, an empty line, a JSON body.

    Args:
        request_id: a plain word.
        headers: beside type, length and id; their words are ours, as nothing looks at them here.
        body: the document.
    """
    return _OK % (len(body), request_id, header_lines(headers), body)


def reply_at_once(
    cycle: RequestResponseCycle | None, request_id: bytes, headers: Sequence[Header], body: bytes
) -> bool:
    """Answer 200 with a JSON body.

    Args:
        cycle: of `wire_of`.
        request_id: a plain word.
        headers: beside type, length and id; their words are ours, as nothing looks at them here.
        body: the document.
    Returns: whether that was possible; if not, nothing was written: another server, a client that reads too slowly.
    """
    if cycle is None or cycle.flow.write_paused or cycle.disconnected or cycle.response_started:
        return False
    ours = [*cycle.default_headers] if cycle.keep_alive else [*cycle.default_headers, (b"connection", b"close")]
    cycle.response_started = cycle.response_complete = True
    cycle.transport.write(b"".join((STATUS_LINE[200], header_lines(ours), ok_rest(request_id, headers, body))))
    cycle.message_event.set()
    if not cycle.keep_alive:
        cycle.transport.close()
    cycle.on_response()
    return True

"""A whole answer straight onto its connection, in one write.

What uvicorn's own `send` does for it, in two writes and with a look at every header, costs as much as parsing the
request does. It stays the way of everything that is not a direct route's answer.
"""

from collections.abc import Sequence

from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

SCOPE_KEY = "understudy.wire"
_OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\nx-request-id: %b\r\n"

Header = tuple[bytes, bytes]


def wire_of(scope: Scope) -> RequestResponseCycle | None:
    """The connection's side of a request; None: another server's.

    It can be had once: as it holds its scope, a request of which both are left would wait for the garbage collector.
    """
    wire: RequestResponseCycle | None = scope.pop(SCOPE_KEY, None)
    return wire


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
    parts = [_OK % (len(body), request_id)]
    parts += [b"%b: %b\r\n" % header for header in headers]
    parts += [b"%b: %b\r\n" % header for header in cycle.default_headers]
    if not cycle.keep_alive:
        parts.append(b"connection: close\r\n")
    parts += (b"\r\n", body)
    cycle.response_started = cycle.response_complete = True
    cycle.transport.write(b"".join(parts))
    cycle.message_event.set()
    if not cycle.keep_alive:
        cycle.transport.close()
    cycle.on_response()
    return True

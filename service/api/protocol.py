"""uvicorn's HTTP protocol, with bounds on what comes before the app sees a request.

uvicorn waits for ever for headers that come slowly or not at all, keeps headers of any length, and stops counting an
idle connection's time at the first byte of anything. The app bounds the body itself.
"""

import asyncio
from http import HTTPStatus
from typing import Any

from starlette.exceptions import HTTPException
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from service.api import wire
from service.api.problems import router_response
from service.settings import Settings

MAX_HEADER_BYTES = 1 << 15
# a body in chunks of one byte takes six
_WORST_CHUNKING = 8


class BoundedProtocol(HttpToolsProtocol):
    """One connection. Owner: event loop.

    Invariant: while no answer of ours is awaited, a timer runs: keep-alive's between requests, `header_timeout_s` from
    a connection's start, or a request's first byte, to the end of its headers. More bytes do not set it back.
    """

    header_timeout_s = 10.0
    max_message_bytes = 1 << 30

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._timer: asyncio.TimerHandle | None = None
        self._idle_timer: asyncio.TimerHandle | None = None
        self._idle_since = 0.0
        self._in_headers = False
        self._refusal = HTTPStatus.BAD_REQUEST
        self._chunk_bytes = 0
        self._message_bytes = 0
        self._whole = True

    @property
    def timed(self) -> bool:
        """Whether the header timer runs."""
        return self._timer is not None

    @property
    def idle(self) -> bool:
        """Whether nothing is under way: a next request may be answered."""
        cycle = self.cycle
        done = self._whole and (cycle is None or cycle.response_complete)
        return done and not self.flow.write_paused and not self.transport.is_closing()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client connects."""
        super().connection_made(transport)
        self.arm()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection has ended, by whomever."""
        self.disarm()
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes came."""
        self._chunk_bytes = len(data)
        self._message_bytes += self._chunk_bytes
        super().data_received(data)
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            if self._timer is not None:
                self.disarm()
        elif self._timer is None and self.timeout_keep_alive_task is None:
            self.arm()
        if self._message_bytes > MAX_HEADER_BYTES:
            self._check_length()

    def on_message_begin(self) -> None:
        """A request's first bytes came."""
        self._in_headers = True
        self._whole = False
        self._message_bytes = self._chunk_bytes
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """A request's headers are there; the app is called, unless they are too long."""
        self._in_headers = False
        if self._message_bytes > MAX_HEADER_BYTES:
            length = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
            if length > MAX_HEADER_BYTES:
                self._refusal = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
                raise ValueError("headers too long")
        super().on_headers_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        cycle.scope[wire.SCOPE_KEY] = cycle  # type: ignore[literal-required]
        super()._start_asgi_task(cycle, app)

    def on_message_complete(self) -> None:
        """A request's last byte came."""
        self._whole = True
        super().on_message_complete()
        cycle = self.cycle
        if cycle is not None and cycle.response_complete and self.timeout_keep_alive_task is None:
            # subtle: answered before its body was there; uvicorn's own timer was ended by the rest of the body
            self.disarm()
            self.be_idle()

    def on_response_complete(self) -> None:
        """An answer is out."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        else:
            self.be_idle()

    def be_idle(self) -> None:
        """The time between two requests begins."""
        # subtle: uvicorn starts and cancels a timer for each request, which costs more than parsing it; ours is started
        # once, and finds out when it ends whether there were requests meanwhile
        self._idle_since = self.loop.time()
        if self._idle_timer is None:
            self._wait_idle(self.timeout_keep_alive)
        self.timeout_keep_alive_task = self._idle_timer

    def _wait_idle(self, wait_s: float) -> None:
        self._idle_timer = self.loop.call_later(wait_s, self._look_whether_idle)

    def _look_whether_idle(self) -> None:
        self._idle_timer = None
        if self.timeout_keep_alive_task is None:
            return
        left_s = self._idle_since + self.timeout_keep_alive - self.loop.time()
        if left_s > 0:
            self._wait_idle(left_s)
            self.timeout_keep_alive_task = self._idle_timer
        else:
            self.timeout_keep_alive_handler()

    def _unset_keepalive_if_required(self) -> None:
        self.timeout_keep_alive_task = None

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP, or too long, in the shape of every other error."""
        self._refuse(self._refusal)

    def _check_length(self) -> None:
        if self._in_headers:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        elif self._message_bytes > self.max_message_bytes:
            self.transport.close()

    def arm(self) -> None:
        """Headers must end in time."""
        self._timer = self.loop.call_later(self.header_timeout_s, self.out_of_time)

    def disarm(self) -> None:
        """The header timer is not needed: a request is there."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def out_of_time(self) -> None:
        """They did not."""
        self._timer = None
        if self._in_headers:
            self._refuse(HTTPStatus.REQUEST_TIMEOUT)
        else:
            self.transport.close()

    def _refuse(self, status: HTTPStatus) -> None:
        if not self.transport.is_closing():
            if not self._is_writing():
                self.transport.write(_answer(status))
            self.transport.close()

    def _is_writing(self) -> bool:
        """Whether an answer may be half written, so that another one would garble it."""
        cycle = self.cycle
        return cycle is not None and not cycle.response_complete and (cycle.response_started or bool(self.pipeline))


def _answer(status: HTTPStatus) -> bytes:
    response = router_response(HTTPException(status))
    headers = [*response.raw_headers, (b"connection", b"close")]
    head = b"".join(b"%b: %b\r\n" % header for header in headers)
    return STATUS_LINE[status] + head + b"\r\n" + bytes(response.body)


def bounds_of(settings: Settings) -> dict[str, Any]:
    """The class attributes that bound a connection."""
    return {
        "header_timeout_s": settings.header_timeout_s,
        "max_message_bytes": MAX_HEADER_BYTES + _WORST_CHUNKING * settings.max_body_bytes,
    }

"""A connection to the service: requests that the short road takes are answered from here, the rest by uvicorn."""

from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.flow_control import CLOSE_HEADER, HIGH_WATER_LIMIT

from service.api.express import Express, Visit
from service.api.protocol import BoundedProtocol, bounds_of
from service.api.wire import header_lines
from service.settings import Settings

CLOSING = header_lines((CLOSE_HEADER,))


class Connection(BoundedProtocol):
    """One connection. Owner: event loop.

    Invariant: while a visit is under way, what comes behind it is kept for afterwards, up to a bound above which
    nothing is read. Reading on before is how a client that leaves is noticed. A head that came alone is kept until
    something follows it, or its time is over.
    """

    express_of: Callable[[], Express | None] = staticmethod(lambda: None)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._express = self.express_of()
        self._visit: Visit | None = None
        self._answered = False
        self._behind = b""
        self._head = b""
        self._last = False

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection has ended, by whomever."""
        visit, self._visit = self._visit, None
        if visit is not None and self._express is not None:
            self._express.give_up(visit)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes came."""
        if self._visit is not None:
            self._behind += data
            if len(self._behind) > HIGH_WATER_LIMIT:
                self.flow.pause_reading()
        elif self._express is None or not self.idle:
            super().data_received(data)
        else:
            self._begin(self._express, data)

    def _begin(self, express: Express, data: bytes) -> None:
        """A request begins, or goes on after its head."""
        head, self._head = self._head, b""
        if self._take(express, head + data):
            return
        if head or not express.awaits(data):
            super().data_received(head + data)
            return
        self._head = data
        self._unset_keepalive_if_required()
        if not self.timed:
            self.arm()

    def out_of_time(self) -> None:
        """The body of a head that came alone did not begin in time: it is waited for on the long road."""
        super().out_of_time() if not self._head else self._pass_on()

    def _pass_on(self) -> None:
        head, self._head = self._head, b""
        self.disarm()
        super().data_received(head)

    def _take(self, express: Express, data: bytes) -> bool:
        self._answered = False
        visit = express.take(data, self._answer)
        if visit is None:
            return False
        self.disarm()
        if not self._answered:
            self._visit = visit
            self._unset_keepalive_if_required()
        return True

    def _answer(self, status: bytes, rest: bytes) -> None:
        self._answered, self._visit = True, None
        if self.transport.is_closing():
            return
        ours = header_lines(self.server_state.default_headers)
        self.transport.write(status + ours + (CLOSING if self._last else b"") + rest)
        self.server_state.total_requests += 1
        if self._last:
            self.transport.close()
            return
        self.be_idle()
        if self._behind:
            behind, self._behind = self._behind, b""
            self.flow.resume_reading()
            self.data_received(behind)

    def shutdown(self) -> None:
        """The server stops: close, after the answer that is awaited."""
        if self._head:
            self._pass_on()
        if self._visit is None:
            super().shutdown()
        else:
            self._last = True


def connection(settings: Settings, express_of: Callable[[], Express | None]) -> type[Connection]:
    """The protocol for `uvicorn.Config(http=...)`.

    Args:
        settings: the bounds.
        express_of: the short road, asked for once a connection; None: there is none.
    """
    return type("Bounded", (Connection,), {**bounds_of(settings), "express_of": staticmethod(express_of)})

"""Who is inside: bodies that come late, clients that leave at each phase, and the door that closes."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from starlette.requests import ClientDisconnect
from starlette.types import Message

from service.api.door import Door
from service.errors import BodyTimeout, Draining, ServiceError, TooLarge
from service.metrics import Metrics
from service.settings import load_settings

PATIENCE_S = 30
SCOPE: dict[str, Any] = {"type": "http", "headers": []}


class Client:
    """Sends what the test says, when it says so."""

    def __init__(self) -> None:
        self.messages: asyncio.Queue[Message] = asyncio.Queue()
        self.asked = asyncio.Event()

    def sends(self, body: bytes, *, more: bool = False) -> None:
        self.messages.put_nowait({"type": "http.request", "body": body, "more_body": more})

    def leaves(self) -> None:
        self.messages.put_nowait({"type": "http.disconnect"})

    async def receive(self) -> Message:
        self.asked.set()
        return await self.messages.get()


class Work:
    """Takes the body and works until the test lets it go."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.go = asyncio.Event()
        self.body = b""

    def __call__(self, body: bytes) -> Awaitable[bytes]:
        self.body = body
        return self._work()

    async def _work(self) -> bytes:
        self.begun.set()
        await self.go.wait()
        return self.body.upper()


@pytest.fixture
def door() -> Door:
    return _door()


def _door(**settings: Any) -> Door:
    return Door(load_settings(slots=1, **settings), Metrics())


@pytest.fixture
async def client() -> Client:
    return Client()


@pytest.fixture
async def work() -> Work:
    return Work()


def _ask(door: Door, client: Client, work: Callable[[bytes], Awaitable[bytes]]) -> asyncio.Task[bytes]:
    return asyncio.create_task(door.serve(SCOPE, client.receive, work))


async def _ended(asked: asyncio.Task[bytes], error: type[Exception]) -> str:
    async with asyncio.timeout(PATIENCE_S):
        with pytest.raises(error) as caught:
            await asked
    return str(caught.value)


async def test_served(door: Door, client: Client, work: Work) -> None:
    client.sends(b"body")
    asked = _ask(door, client, work)
    await work.begun.wait()
    assert (door.inside, repr(door)) == (1, "<Door inside=1 reading=0>")
    work.go.set()
    assert await asked == b"BODY"
    assert door.inside == 0
    assert await door.empty(0)


async def test_an_error_is_passed_on(door: Door, client: Client) -> None:
    def refuse(body: bytes) -> Awaitable[bytes]:
        raise TooLarge("no")

    client.sends(b"")
    assert await _ended(_ask(door, client, refuse), TooLarge) == "no"
    assert door.inside == 0


class TestBodies:
    async def test_one_that_does_not_come_in_time(self, client: Client, work: Work) -> None:
        door = _door(body_timeout_s=0.05)
        client.sends(b'{"inp', more=True)
        assert "in time" in await _ended(_ask(door, client, work), BodyTimeout)
        assert not work.begun.is_set()
        assert repr(door) == "<Door inside=0 reading=0>"

    async def test_one_of_which_nothing_comes(self, client: Client, work: Work) -> None:
        await _ended(_ask(_door(body_timeout_s=0.05), client, work), BodyTimeout)

    async def test_one_that_comes_late_but_in_time(self, door: Door, client: Client, work: Work) -> None:
        client.sends(b"bo", more=True)
        asked = _ask(door, client, work)
        async with asyncio.timeout(PATIENCE_S):
            while "reading=1" not in repr(door):  # noqa: ASYNC110 - there is no event
                await asyncio.sleep(0)
        client.sends(b"dy")
        await work.begun.wait()
        assert "reading=0" in repr(door)
        work.go.set()
        assert await asked == b"BODY"

    async def test_its_client_is_then_watched_too(self, door: Door, client: Client, work: Work) -> None:
        client.sends(b"bo", more=True)
        asked = _ask(door, client, work)
        async with asyncio.timeout(PATIENCE_S):
            while "reading=1" not in repr(door):  # noqa: ASYNC110 - there is no event
                await asyncio.sleep(0)
        client.sends(b"dy")
        await work.begun.wait()
        client.leaves()
        await _ended(asked, ClientDisconnect)

    async def test_the_client_leaves_meanwhile(self, door: Door, client: Client, work: Work) -> None:
        client.sends(b"bo", more=True)
        client.leaves()
        await _ended(_ask(door, client, work), ClientDisconnect)
        assert door.inside == 0


class TestLeaving:
    async def test_while_the_answer_is_worked_on(self, door: Door, client: Client, work: Work) -> None:
        client.sends(b"x")
        asked = _ask(door, client, work)
        await work.begun.wait()
        client.sends(b"", more=False)  # what comes after the body is passed over
        client.leaves()
        await _ended(asked, ClientDisconnect)
        assert (door.inside, door.closed) == (0, False)

    async def test_a_short_request_is_not_watched(self, door: Door, client: Client, work: Work) -> None:
        client.sends(b"x")
        work.go.set()
        assert await _ask(door, client, work) == b"X"
        client.asked.clear()
        await asyncio.sleep(0)
        assert not client.asked.is_set()

    async def test_a_cancellation_from_outside_goes_on(self, door: Door, client: Client, work: Work) -> None:
        client.sends(b"x")
        asked = _ask(door, client, work)
        await work.begun.wait()
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        assert door.inside == 0

    async def test_so_does_one_that_comes_with_the_clients_leaving(
        self, door: Door, client: Client, work: Work
    ) -> None:
        client.sends(b"x")
        asked = _ask(door, client, work)
        await work.begun.wait()
        client.asked.clear()
        async with asyncio.timeout(PATIENCE_S):
            await client.asked.wait()  # it is watched
        client.leaves()
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked


async def test_those_that_others_answer_are_counted_too(client: Client, work: Work) -> None:
    metrics = Metrics()
    door = Door(load_settings(slots=1), metrics)
    door.enter()
    client.sends(b"x")
    asked = _ask(door, client, work)
    await work.begun.wait()
    assert (door.inside, metrics.inflight_requests.value, await door.empty(0)) == (2, 2, False)
    work.go.set()
    await asked
    door.close()
    emptied = asyncio.create_task(door.empty(PATIENCE_S))
    await asyncio.sleep(0)
    assert not emptied.done()
    door.leave()
    assert await emptied
    assert (door.inside, metrics.inflight_requests.value) == (0, 0)


class TestClosing:
    async def test_nobody_comes_in(self, door: Door, client: Client, work: Work) -> None:
        door.close()
        assert await _ended(_ask(door, client, work), Draining) == "the service is stopping"
        assert "closed" in repr(door)

    async def test_those_inside_are_waited_for(self, door: Door, client: Client, work: Work) -> None:
        client.sends(b"x")
        asked = _ask(door, client, work)
        await work.begun.wait()
        assert not await door.empty(0)
        emptied = asyncio.create_task(door.empty(PATIENCE_S))
        work.go.set()
        assert await emptied
        assert await asked == b"X"

    @pytest.mark.parametrize("late", [False, True])
    async def test_bodies_that_have_not_come_are_given_up(
        self, door: Door, client: Client, work: Work, late: bool
    ) -> None:
        client.sends(b"x", more=True)
        reading, working = _ask(door, client, work), _ask(door, other := Client(), Work())
        other.sends(b"y")
        await client.asked.wait()
        if late:
            async with asyncio.timeout(PATIENCE_S):
                while "reading=1" not in repr(door):  # noqa: ASYNC110 - there is no event
                    await asyncio.sleep(0)
        door.give_up_reading()
        assert "before the request was complete" in await _ended(reading, ServiceError)
        assert not working.done()
        working.cancel()
        with pytest.raises(asyncio.CancelledError):
            await working

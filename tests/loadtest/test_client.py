"""Connections and the pool, against scripted servers on the same loop."""

import asyncio
import contextlib

import pytest

from loadtest.client import Pool, Pools
from loadtest.errors import TargetFailed
from loadtest.servers import free_port
from loadtest.wire import LOST, Origin, request_bytes

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class Script:
    """What a server does with each request, in turn: bytes to write, "close", or an event to wait for first."""

    def __init__(self, *steps) -> None:
        self._steps = list(steps)
        self.talks = set()
        self.waiting = set()
        self.connections = 0
        self.requests = 0

    def protocol(self, talk):
        self.connections += 1
        return talk(self.on_request, self.talks)

    def on_request(self, talk, head, body):
        self.requests += 1
        step = self._steps.pop(0) if self._steps else OK
        if isinstance(step, asyncio.Event):
            task = asyncio.create_task(self._later(talk, step))
            self.waiting.add(task)
            return
        if step == "close":
            talk.transport.close()
            return
        talk.transport.write(step)
        if b"connection: close" in step or step.startswith(b"HTTP/1.0"):
            talk.transport.close()

    async def _later(self, talk, gate):
        await gate.wait()
        talk.transport.write(OK)


@pytest.fixture
def pool_on(talk):
    @contextlib.asynccontextmanager
    async def start(script, *, most=4, timeout_s=30.0, clock=None):
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: script.protocol(talk), "127.0.0.1", 0)
        origin = Origin("http", "127.0.0.1", server.sockets[0].getsockname()[1], "")
        pool = Pool(origin, most=most, timeout_s=timeout_s, clock=clock)
        try:
            yield pool, origin
        finally:
            await pool.close()
            server.close()
            for each in script.talks:
                each.transport.abort()
            await asyncio.gather(*script.waiting)
            await asyncio.sleep(0)

    return start


def ask(pool, origin, *, want_body=True):
    future = asyncio.get_running_loop().create_future()
    pool.send(request_bytes(origin, "/", None), future.set_result, want_body=want_body)
    return future


async def test_a_connection_is_used_again(pool_on):
    script = Script()
    async with pool_on(script) as (pool, origin):
        for _ in range(3):
            found = await ask(pool, origin)
            assert (found.status, found.body) == (200, b"ok")
    assert (script.connections, script.requests, pool.opened) == (1, 3, 1)


async def test_requests_that_overlap_get_connections_of_their_own(pool_on):
    gates = [asyncio.Event(), asyncio.Event()]
    script = Script(*gates)
    async with pool_on(script) as (pool, origin):
        futures = [ask(pool, origin), ask(pool, origin)]
        for gate in gates:
            gate.set()
        assert [(await future).status for future in futures] == [200, 200]
    assert script.connections == 2 and pool.limited == 0


async def test_at_the_bound_requests_wait_and_are_counted(pool_on):
    script = Script()
    async with pool_on(script, most=1) as (pool, origin):
        await pool.open(1)
        futures = [ask(pool, origin) for _ in range(5)]
        assert [(await future).status for future in futures] == [200] * 5
    assert (script.connections, pool.limited) == (1, 4)


async def test_an_answer_that_closes_makes_room_for_another_connection(pool_on):
    closing = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
    script = Script(closing, closing)
    async with pool_on(script, most=1) as (pool, origin):
        futures = [ask(pool, origin) for _ in range(3)]
        assert [(await future).status for future in futures] == [200] * 3
    assert script.connections == 3


async def test_an_answer_may_end_with_the_connection(pool_on):
    async with pool_on(Script(b"HTTP/1.0 200 OK\r\n\r\nabc")) as (pool, origin):
        assert (await ask(pool, origin)).body == b"abc"


async def test_a_first_answer_that_never_comes_is_lost(pool_on):
    async with pool_on(Script("close")) as (pool, origin):
        assert await ask(pool, origin) == LOST
        assert pool.retried == 0


async def test_half_an_answer_is_lost_and_not_asked_for_again(pool_on):
    script = Script(OK, b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\nconnection: close\r\n\r\nhalf")
    async with pool_on(script) as (pool, origin):
        await ask(pool, origin)
        assert (await ask(pool, origin)).status == 0
        assert pool.retried == 0


async def test_a_connection_closed_under_a_request_costs_one_more_try_and_no_more(pool_on):
    script = Script(OK, "close", OK, "close")
    async with pool_on(script, most=1) as (pool, origin):
        assert (await ask(pool, origin)).status == 200
        assert (await ask(pool, origin)).status == 200
        assert pool.retried == 1
        assert (await ask(pool, origin)).status == 200
        assert pool.retried == 2


async def test_what_is_not_http_is_lost(pool_on):
    async with pool_on(Script(b"SMTP ready\r\n\r\n")) as (pool, origin):
        assert (await ask(pool, origin)).status == 0


async def test_an_answer_that_takes_too_long_is_given_up(pool_on):
    never, now = asyncio.Event(), [0.0]
    async with pool_on(Script(never, never), most=1, timeout_s=5.0, clock=lambda: now[0]) as (pool, origin):
        await pool.open(1)
        on_its_way, waiting = ask(pool, origin), ask(pool, origin)
        now[0] = 6.0
        assert await on_its_way == LOST and await waiting == LOST
        never.set()


async def test_nobody_listens():
    port = free_port()
    origin = Origin("http", "127.0.0.1", port, "")
    pool = Pool(origin, most=2, timeout_s=5.0)
    with pytest.raises(TargetFailed, match=f"cannot connect to 127.0.0.1:{port}"):
        await pool.open(2)
    assert await ask(pool, origin) == LOST
    await pool.close()


async def test_closing_the_pool_loses_what_is_on_its_way(pool_on):
    never = asyncio.Event()
    async with pool_on(Script(never), most=1) as (pool, origin):
        await pool.open(1)
        on_its_way, waiting = ask(pool, origin), ask(pool, origin)
        await pool.close()
        assert await on_its_way == LOST and await waiting == LOST
        never.set()


async def test_kinds_do_not_wait_for_each_others_connections(pool_on):
    gate = asyncio.Event()
    slow, fast = Script(gate), Script()
    async with pool_on(slow, most=1) as (pool, origin), pool_on(fast, most=1) as (other, _):
        pools, answered = Pools([pool, other]), []
        done = [asyncio.get_running_loop().create_future() for _ in range(3)]
        for place, kind in enumerate((0, 0, 1)):
            pools.send(request_bytes(origin, "/", None), done[place].set_result, kind=kind)
        answered.append((await done[2]).status)
        assert not done[0].done() and not done[1].done()
        gate.set()
        answered += [(await one).status for one in done[:2]]
    assert answered == [200, 200, 200]
    assert (pool.limited, other.limited) == (1, 0)

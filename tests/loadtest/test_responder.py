"""The responder answers whole requests, however they are cut."""

import asyncio
import threading

from loadtest.responder import ANSWER, respond


async def test_it_answers_whole_requests_only():
    stop, port = threading.Event(), asyncio.get_running_loop().create_future()
    task = asyncio.create_task(respond(port.set_result, stop.wait))
    reader, writer = await asyncio.open_connection("127.0.0.1", int(await port))
    writer.write(b"POST / HTTP/1.1\r\ncontent-length: 4\r\n\r\nab")
    await writer.drain()
    writer.write(b"cdGET / HTTP/1.1\r\n\r\nGET")
    assert await reader.readexactly(2 * len(ANSWER)) == ANSWER * 2
    writer.close()
    await writer.wait_closed()
    stop.set()
    await task

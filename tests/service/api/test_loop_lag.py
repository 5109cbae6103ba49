"""The loop's lag is measured until nobody wants it."""

import asyncio

from service.api.loop_lag import LoopLag
from service.metrics import SECONDS, Distribution

PATIENCE_S = 30


async def test_how_late_the_loop_is() -> None:
    series, moments = Distribution(SECONDS), iter([0.0, 3.001, 5.0, 5.0, 5.0])
    measured = asyncio.Event()

    def clock() -> float:
        now = next(moments)
        if now == 5.0 and sum(series.counts) == 1:
            measured.set()
        return now

    lag = LoopLag(series, every_s=0.001, clock=clock)
    async with asyncio.timeout(PATIENCE_S):
        await measured.wait()
    lag.close()
    assert (sum(series.counts), series.total) == (1, 3.0)

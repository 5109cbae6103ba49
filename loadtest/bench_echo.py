"""A plain FastAPI route that echoes the bodies of classify: the yardstick of `bench_smallest`."""

from fastapi import FastAPI
from pydantic import BaseModel

app = FastAPI()


class Body(BaseModel):
    """The same body as a classify request."""

    model: str | None = None
    inputs: str


@app.post("/v1/classify")
async def echo(body: Body) -> dict[str, str | None]:
    """What came, as it came."""
    return {"model": body.model, "inputs": body.inputs}


@app.get("/health/ready")
async def ready() -> dict[str, str]:
    """Always."""
    return {"status": "ready"}

"""The examples of docs/surfaces.md, run against a server with students of the names that they use."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

TEXT = (Path(__file__).parents[2] / "docs" / "surfaces.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture(scope="module")
def address(
    tmp_path_factory: pytest.TempPathFactory, build_bundle: Callable[..., Path], start_server: Callable[..., Any]
) -> Iterator[str]:
    store = tmp_path_factory.mktemp("documented") / "store"
    for name, task, pairs in (
        ("sentiment", "classify", "none"),
        ("minilm", "embed", "none"),
        ("reranker", "rank", "joint"),
    ):
        build_bundle(store / name / "1", name=name, task=task, pairs=pairs)
        (store / name / "aliases.json").write_text('{"schema": 1, "aliases": {"production": {"version": 1}}}')
    with start_server("--store", str(store)) as server:
        yield server.ready().url.removeprefix("http://")


@pytest.mark.parametrize("block", BLOCKS, ids=[block.split()[1].partition(".")[0] for block in BLOCKS])
def test_an_example(address: str, block: str) -> None:
    names: dict[str, Any] = {}
    exec(block.replace("localhost:8000", address), names)
    if "vector" in names:
        assert len(names["vector"]) in (1, 6)
    if "best" in names:
        assert names["best"] in (0, 1) or len(names["best"]) == 1
    if "labels" in names:
        assert len(names["labels"]) in (2, 3)
    client = names.get("client")
    if hasattr(client, "_client_wrapper"):
        client._client_wrapper.httpx_client.httpx_client.close()


def test_there_are_examples() -> None:
    assert len(BLOCKS) == 5

"""The README's first screen is what the shipped students really answer."""

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def asked_and_answered() -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Path, body and answer of the README's first block."""
    block = re.search(r"```\n\$ (curl .*?)\n(\{.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert block is not None
    words = shlex.split(block[1].replace("\\\n", " "))
    url = next(word for word in words if word.startswith("localhost:"))
    return "/" + url.partition("/")[2], json.loads(words[words.index("-d") + 1]), json.loads(block[2])


def test_the_curl_gives_its_answer(serve: Callable[..., Any]):
    path, body, answer = asked_and_answered()
    with serve("--store", str(ROOT / "models" / "store")).ready().client() as client:
        got = client.post(path, json=body).json()
    got.pop("timing_ms")
    answer.pop("timing_ms")
    scores = [result.pop("score") for result in got["results"]]
    wanted = [result.pop("score") for result in answer["results"]]
    assert got == answer
    # another processor may round an int8 sum the other way
    assert all(abs(a - b) < 0.02 for a, b in zip(scores, wanted, strict=True))

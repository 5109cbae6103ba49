"""docs/loadtest.md: its example is a scenario, and it names every clause, arrival and benchmark."""

import re
from pathlib import Path

from loadtest.scenario import Arrivals, Sla, read_scenario

ROOT = Path(__file__).parents[2]
DOC = (ROOT / "docs" / "loadtest.md").read_text(encoding="utf-8")


def test_the_example_is_a_scenario(tmp_path):
    (example,) = re.findall(r"```yaml\n(.*?)```", DOC, re.DOTALL)
    (tmp_path / "example.yaml").write_text(example)
    assert read_scenario(tmp_path / "example.yaml").mixture[1].path == "/v1/embeddings"


def test_every_clause_and_kind_of_arrivals_is_told():
    for name in (*Sla.model_fields, *Arrivals.model_fields):
        assert f"`{name}" in DOC


def test_every_benchmark_is_told():
    runnable = [file for file in (ROOT / "loadtest").glob("bench_*.py") if "__main__" in file.read_text()]
    assert len(runnable) == 7
    for file in runnable:
        assert f"`{file.stem}`" in DOC

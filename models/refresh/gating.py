"""The gates as a step of a refresh: all are judged and told; one that failed publishes nothing."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from models.errors import GateFailed
from models.refresh.cache import StepCache
from models.refresh.progress import Reporter
from models.report.card import GateResult

_FILE = "gates.json"


def pass_gates(
    cache: StepCache,
    reporter: Reporter,
    judged: Callable[[Path], tuple[GateResult, ...]],
    *,
    name: str,
    step: str,
    inputs: dict[str, Any],
) -> tuple[GateResult, ...]:
    """Every gate, all passed (a cached step).

    Args:
        judged: the gates' results, measured with the step's folder to work in; called only when the step runs.
        name: the student's, for the error.
        step, inputs: as `StepCache.run` takes them.
    Raises: GateFailed: naming those that were not passed.
    """

    def make(folder: Path) -> None:
        gates = judged(folder)
        for gate in gates:
            passed = "passed" if gate.passed else "FAILED"
            reporter.say(f"gate: {gate.name}: {gate.reached} ({gate.required}): {passed}")
        failed = [f"{gate.name}: {gate.reached}, required {gate.required}" for gate in gates if not gate.passed]
        if failed:
            raise GateFailed(f"{name}: nothing was published: {'; '.join(failed)}")
        (folder / _FILE).write_text(json.dumps([asdict(gate) for gate in gates], indent=1), encoding="utf-8")

    document = json.loads((cache.run(step, inputs, make) / _FILE).read_text(encoding="utf-8"))
    return tuple(GateResult(**fields) for fields in document)

"""A student's stages as bare graphs: run one after another, and made int8 one after another.

B items, T tokens, C labels or dimensions, N rows.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime

from models.compress.int8 import Int8Settings, quantise_static
from models.compress.ranges import Feeds, Range
from models.compress.receipt import Receipt, make_receipt
from models.compress.stored import store_weights
from service.bundle.manifest import Stage
from service.bundle.sources import SIDES, is_sided

Array = npt.NDArray[Any]
_EXIT_OUTPUTS = ("logits", "score", "embedding")


_SIDES = tuple(f"{side}:" for side in SIDES)


class StageRunner:
    """Runs bare stage graphs on one thread of ONNX Runtime, every item to full depth; of two texts that are read
    apart, a stage of one text on each."""

    def __init__(self, stages: Sequence[Stage], graphs: Mapping[str, Path]) -> None:
        """Load the graphs.

        Args:
            stages: manifest entries in pipeline order.
            graphs: one file for each stage id.
        """
        self._stages = tuple(stages)
        self._sessions = {stage.id: _session(graphs[stage.id]) for stage in stages}

    def __call__(self, batch: Feeds) -> dict[str, Array]:
        """Run one batch.

        Args:
            batch: token inputs int64 [B, T], of two texts apart each under its side (`first:input_ids`); may hold
                outputs of earlier stages (`STAGE.OUTPUT`) already.
        Returns: the batch and every output of these stages, by source name (`00.hidden`, `first:00.state`).
        """
        known: dict[str, Array] = dict(batch)
        for stage in self._stages:
            for side in _sides(stage, known):
                values = self._sessions[stage.id].run(list(stage.outputs), stage_feeds(stage, known, side=side))
                known |= {f"{side}{stage.id}.{name}": value for name, value in zip(stage.outputs, values, strict=True)}
        return known


def stage_feeds(stage: Stage, known: Feeds, *, side: str = "") -> dict[str, Array]:
    """A stage's inputs by tensor name, taken from what is known by source name.

    Args:
        side: `first:` or `second:`, where it is one of two texts that are read apart.
    """
    return {tensor: known[side + source] for tensor, source in stage.inputs.items()}


def _sides(stage: Stage, known: Feeds) -> tuple[str, ...]:
    """The texts that a stage is run on, one after the other."""
    apart = any(source.startswith(_SIDES) for source in known)
    return _SIDES if apart and not is_sided(stage.inputs.values()) else ("",)


def _masks(stage: Stage, known: Feeds, side: str) -> Array:
    """Which tokens the rows of a stage's inner tensors are of; of a stage that joins two texts, the first one's."""
    return known[f"{_SIDES[0]}attention_mask" if is_sided(stage.inputs.values()) else f"{side}attention_mask"]


def final_outputs(stages: Sequence[Stage], graphs: Mapping[str, Path], batches: Iterable[Feeds]) -> Array:
    """The last exit's raw output of every row at full depth: float32 [N, C], in the batches' order."""
    runner = StageRunner(stages, graphs)
    output = next(name for name in _EXIT_OUTPUTS if name in stages[-1].outputs)
    rows = [runner(batch)[f"{stages[-1].id}.{output}"] for batch in batches]
    return np.concatenate([values.reshape(len(values), -1) for values in rows])


def quantise_stages(
    stages: Sequence[Stage],
    *,
    fp32: Mapping[str, Path],
    int8: Mapping[str, Path],
    batches: Sequence[Feeds],
    settings: Int8Settings,
    trained: Mapping[str, Mapping[str, Range]] | None = None,
    store_others: bool = False,
) -> Receipt:
    """Write the int8 graph of every stage.

    Each stage is calibrated on what its *int8* predecessors write, since that is what it will read in service.

    Args:
        stages: manifest entries in pipeline order.
        fp32, int8: files by stage id, to read and to write.
        batches: calibration rows, `input_ids`, `attention_mask` and where needed `token_type_ids`: int64 [B, T]; of
            two texts apart, each under its side.
        settings: how ranges are chosen.
        trained: by stage id, ranges by weight name from training for int8; None measures them here.
        store_others: also store in 8 bits the weights that stay float32 (`models.compress.stored`).
    Returns: the receipt, on the calibration rows.
    Raises: ValueError: no rows, or a trained range fits no weight.
    """
    known: list[dict[str, Array]] = [dict(batch) for batch in batches]
    for stage in stages:
        feeds = [
            stage_feeds(stage, batch, side=side) | {"attention_mask": _masks(stage, batch, side)}
            for batch in known
            for side in _sides(stage, batch)
        ]
        ranges = None if trained is None else trained[stage.id]
        quantise_static(fp32[stage.id], int8[stage.id], feeds=feeds, settings=settings, ranges=ranges)
        _store(int8[stage.id], every=store_others)
        runner = StageRunner([stage], int8)
        known = [runner(batch) for batch in known]
    name = "int8 trained" if trained is not None else f"int8 static, percentile {settings.percentile:g}"
    return make_receipt(
        f"{name}, other weights stored in 8 bits" if store_others else name,
        before=[fp32[stage.id] for stage in stages],
        after=[int8[stage.id] for stage in stages],
        outputs_before=final_outputs(stages, fp32, batches),
        outputs_after=final_outputs(stages, int8, batches),
        labels="logits" in stages[-1].outputs,
    )


def _store(path: Path, *, every: bool) -> None:
    """Store in 8 bits what stays float32: of `every` graph, or of one with an LSTM alone, whose weights all do."""
    model = onnx.load(path)
    if every or any(node.op_type == "LSTM" for node in model.graph.node):
        onnx.save(store_weights(model), path)


def _session(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])

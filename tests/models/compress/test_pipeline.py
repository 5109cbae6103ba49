"""All stages of a student made int8 together."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from models.compress.int8 import Int8Settings
from models.compress.pipeline import StageRunner, final_outputs, quantise_stages
from models.compress.stored import MIN_VALUES
from models.export.stages import ExportedStage


@pytest.fixture
def paths(exported: tuple[ExportedStage, ...], tmp_path: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    fp32 = {item.stage.id: item.path for item in exported}
    return fp32, {stage_id: tmp_path / f"{stage_id}.int8.onnx" for stage_id in fp32}


def test_every_stage_is_written_and_the_end_is_near_fp32(exported, paths, batches, unseen):
    fp32, int8 = paths
    stages = [item.stage for item in exported]
    receipt = quantise_stages(stages, fp32=fp32, int8=int8, batches=batches, settings=Int8Settings(percentile=100))
    assert receipt.rows == sum(len(batch["input_ids"]) for batch in batches)
    assert receipt.bytes_before == sum(path.stat().st_size for path in fp32.values())
    assert all(path.is_file() for path in int8.values())
    before, after = final_outputs(stages, fp32, unseen), final_outputs(stages, int8, unseen)
    assert before.shape == (36, 4)
    assert np.abs(before - after).mean() < 0.1 * np.abs(before).mean()


def test_the_runner_tells_outputs_by_their_source_names(exported, paths, batches):
    stages = [item.stage for item in exported]
    known = StageRunner(stages, paths[0])(batches[0])
    assert {"input_ids", "00.hidden", "00.logits", "01.hidden", "01.logits", "02.logits"} <= set(known)
    # any stage may be run on what earlier ones wrote
    again = StageRunner(stages[1:], paths[0])(known)
    assert np.array_equal(again["02.logits"], known["02.logits"])


def test_weights_that_stay_float32_may_be_stored_in_8_bits(exported, paths, batches, unseen, tmp_path: Path):
    fp32, int8 = paths
    stages, settings = [item.stage for item in exported], Int8Settings(percentile=100)
    stored = {stage_id: tmp_path / f"{stage_id}.stored.onnx" for stage_id in fp32}
    plain = quantise_stages(stages, fp32=fp32, int8=int8, batches=batches, settings=settings)
    small = quantise_stages(stages, fp32=fp32, int8=stored, batches=batches, settings=settings, store_others=True)
    assert small.name == "int8 static, percentile 100, other weights stored in 8 bits"
    assert small.bytes_after < plain.bytes_after
    large = [
        tensor for path in stored.values() for tensor in onnx.load(path).graph.initializer if tensor.data_type == 1
    ]
    assert all(len(tensor.dims) < 2 or np.prod(tensor.dims) < MIN_VALUES or 1 in tensor.dims for tensor in large)
    before, after = final_outputs(stages, int8, unseen), final_outputs(stages, stored, unseen)
    assert not np.array_equal(before, after)
    assert np.abs(before - after).mean() < 0.02 * np.abs(before).mean()

"""An encoder of BERT-base's size with random weights: a familiar yardstick beside the teacher's speed."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.export.stages import export_stages
from models.students.encoder import EncoderConfig, EncoderStudent
from service.runtime.backends.onnxruntime import OnnxRuntimeSession
from service.runtime.backends.stage import Execution
from service.runtime.session import TOKENS

_PARITY_ATOL = 1e-2

_CONFIG = EncoderConfig(
    vocabulary=30_522,
    width=2,
    layers=12,
    hidden=768,
    heads=12,
    feed_forward=3_072,
    exits=(12,),
    max_tokens=512,
    activation="gelu",
)


def bert_base_size(folder: Path) -> Callable[[Mapping[str, NDArray[np.int64]]], object]:
    """Export the encoder (fp32, about 440 MB) and load it in ONNX Runtime with one thread.

    Args:
        folder: where the graph is written; it may be deleted once this returns.
    Returns: runs a padded batch of token inputs int64 [B, T].
    """
    return encoder_of(_CONFIG, folder)


def encoder_of(config: EncoderConfig, folder: Path) -> Callable[[Mapping[str, NDArray[np.int64]]], object]:
    """The same for any one-exit encoder."""
    (exported,) = export_stages(EncoderStudent(config).stages(), folder, parity_atol=_PARITY_ATOL)
    stage = exported.stage
    inputs = dict.fromkeys(stage.inputs, TOKENS)
    session = OnnxRuntimeSession(exported.path, inputs=inputs, outputs=stage.outputs, how=Execution())
    return lambda feeds: session.run({tensor: feeds[source] for tensor, source in stage.inputs.items()})

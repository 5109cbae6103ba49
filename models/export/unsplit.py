"""The same student as one graph, without exits.

A benchmark's other side: what cutting a student at its exit heads costs when nobody leaves is the difference between
`exit: "never"` and this. Not meant for production.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path

import onnx
from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto

from models.export.bundle import BundleParts, write_draft
from service.bundle.load import Bundle
from service.bundle.manifest import Manifest, Stage
from service.bundle.sources import TOKEN_INPUTS
from service.runtime.encode import Text

STAGE = "00"


def unsplit(bundle: Bundle, directory: Path, *, name: str) -> Bundle:
    """Write a bundle whose only stage is all of the given one's, up to its last exit.

    Args:
        bundle: verified, of any number of stages.
        directory: new or empty; it becomes the bundle.
        name: the new student's.
    Raises: BundleError: the joined graph is not valid.
    """
    manifest = bundle.manifest
    leave = manifest.exits[-1]
    with tempfile.TemporaryDirectory() as scratch:
        graphs = {}
        for precision in manifest.precisions:
            path = Path(scratch) / f"{precision}.onnx"
            models = {stage.id: onnx.load(bundle.graph_path(precision, stage.id)) for stage in manifest.stages}
            onnx.save(joined(manifest, models), path)
            graphs[precision] = {STAGE: path}
        inputs = onnx.load(path).graph.input
        stage = Stage(
            id=STAGE,
            inputs={tensor.name: tensor.name for tensor in inputs},
            outputs={leave.output: manifest.stage(leave.stage).outputs[leave.output]},
        )
        parts = BundleParts(
            name=name,
            task=manifest.task,
            labels=manifest.labels,
            max_tokens=manifest.max_tokens,
            pairs=manifest.pairs,
            space_id=manifest.space_id,
            embedding_dimensions=manifest.embedding_dimensions,
            tokenizer_json=bundle.tokenizer_path.read_bytes(),
            pad_id=manifest.tokenizer.pad_id,
            stages=(stage,),
            exits=(leave.model_copy(update={"stage": STAGE}),),
            graphs=graphs,
            default_precision=manifest.default_precision,
            golden_texts=_golden_texts(bundle),
            provenance=manifest.provenance.model_copy(update={"notes": ("one graph without exits, for benchmarks",)}),
        )
        return write_draft(directory, parts)


def _golden_texts(bundle: Bundle) -> tuple[Text, ...]:
    samples = bundle.golden.samples
    return tuple(s.text if s.text_pair is None else (s.text, s.text_pair) for s in samples)


def joined(manifest: Manifest, models: Mapping[str, ModelProto]) -> ModelProto:
    """One ONNX model that computes the last exit's output from the token inputs.

    Args:
        manifest: names the stages in order, and what each reads.
        models: each stage's graph, by stage id; all of one opset.
    """
    leave = manifest.exits[-1]
    nodes: list[NodeProto] = []
    graph = GraphProto(name=f"{manifest.name}-unsplit")
    inputs: dict[str, ValueInfoProto] = {}
    for stage in manifest.stages:
        own = models[stage.id].graph
        nodes.extend(_renamed(node, stage) for node in own.node)
        for weight in own.initializer:
            graph.initializer.append(weight)
            graph.initializer[-1].name = _name(weight.name, stage)
        inputs |= {_name(i.name, stage): i for i in own.input if _name(i.name, stage) in TOKEN_INPUTS}
        if stage.id == leave.stage:
            output = next(o for o in own.output if o.name == leave.output)
    wanted = _name(leave.output, manifest.stage(leave.stage))
    needed = _needed(nodes, wanted)
    for node in needed:
        node.output[:] = [leave.output if name == wanted else name for name in node.output]
    used = {name for node in needed for name in node.input}
    for name, value in inputs.items():
        if name in used:
            graph.input.append(value)
            graph.input[-1].name = name
    graph.node.extend(needed)
    weights = [weight for weight in graph.initializer if weight.name in used]
    del graph.initializer[:]
    graph.initializer.extend(weights)
    graph.output.append(output)
    first = models[manifest.stages[0].id]
    model: ModelProto = onnx.helper.make_model(graph, opset_imports=first.opset_import, ir_version=first.ir_version)
    return model


def _renamed(node: NodeProto, stage: Stage) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    copy.name = f"{stage.id}/{node.name}" if node.name else ""
    copy.input[:] = [_name(name, stage) for name in node.input]
    copy.output[:] = [_name(name, stage) for name in node.output]
    return copy


def _name(name: str, stage: Stage) -> str:
    """A value's name in the joined graph; "" (an input left out) stays."""
    if name in stage.inputs:
        source = stage.inputs[name]
        return source if source in TOKEN_INPUTS else source.replace(".", "/", 1)
    return f"{stage.id}/{name}" if name else ""


def _needed(nodes: list[NodeProto], output: str) -> list[NodeProto]:
    """The nodes that `output` depends on, in their order."""
    wanted, kept = {output}, []
    for node in reversed(nodes):
        if wanted & set(node.output):
            wanted |= set(node.input)
            kept.append(node)
    return kept[::-1]

"""int8 graphs with static scales: u8 activations, one scale a tensor, times s8 weights, one scale an output.

A product with a constant weight becomes QuantizeLinear, then a Gemm between DequantizeLinear nodes, with an int32
bias: standard ONNX, which ONNX Runtime fuses into one integer kernel at load and other runtimes know as QDQ. Every
scale is a constant of the graph, so a row's integers do not depend on the rows beside it. Products of two
activations (attention), and heads that see one row an item, stay float32.

On x86 without VNNI the product of u8 and s8 saturates in 16 bits; the session there asks ONNX Runtime for its exact,
slower kernels (measured with VNNI: 1.8 times the time), so that the integers are the same on every processor.

B items, T tokens, K inner dimension, N outputs.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from models.compress.products import Product, find_products
from models.compress.ranges import SAMPLE_VALUES, Feeds, Range, observe
from models.compress.smoothing import Smoothing, least_error

WEIGHT_LEVELS = 127
"""Largest magnitude of an s8 weight; -128 is not used, so that the scale is symmetric."""


@dataclass(frozen=True, slots=True)
class Int8Settings:
    """How post-training scales are chosen.

    Attributes:
        percentile: of the calibration values, 50 < percentile <= 100: a range leaves out what lies beyond.
        smoothings: ways to move differences between an activation's channels into the weights; each input gets the
            one with the least error on the calibration rows. None moves nothing and adds no work.
        keep: weights (by initializer name) whose products stay float32.
        sample_values: values kept of the widest activation, for percentiles and errors.
    """

    percentile: float = 99.99
    smoothings: tuple[Smoothing, ...] = ()
    keep: frozenset[str] = frozenset()
    sample_values: int = SAMPLE_VALUES


@dataclass(frozen=True, slots=True)
class QuantisedWeight:
    """s8 levels [K, N] and float32 scales [N] with `levels * scales` near the weight."""

    levels: npt.NDArray[np.int8]
    scales: npt.NDArray[np.float32]

    @property
    def restored(self) -> npt.NDArray[np.float32]:
        """float32 [K, N]: what the integer kernel multiplies with."""
        return np.asarray(self.levels * self.scales, np.float32)


def quantise_weight(weight: npt.NDArray[np.float32]) -> QuantisedWeight:
    """Round a weight to s8 with one symmetric scale an output.

    Args:
        weight: float32 [K, N].
    """
    peaks = np.maximum(np.abs(weight).max(axis=0), 1e-8)
    scales = (peaks / WEIGHT_LEVELS).astype(np.float32)
    levels = np.clip(np.rint(weight / scales), -WEIGHT_LEVELS, WEIGHT_LEVELS).astype(np.int8)
    return QuantisedWeight(levels, scales)


def quantise_static(
    fp32: Path,
    int8: Path,
    *,
    feeds: Iterable[Feeds],
    settings: Int8Settings,
    ranges: Mapping[str, Range] | None = None,
) -> tuple[str, ...]:
    """Write the int8 form of a graph.

    Args:
        fp32: the float32 graph.
        int8: where to write.
        feeds: calibration batches with the graph's own input names; `attention_mask` tells padding from tokens.
        settings: how ranges are chosen.
        ranges: trained ranges by weight name, used as they are: then exactly these products are quantised, and
            neither `feeds` nor `settings` is looked at.
    Returns: the names of the weights that were quantised.
    Raises: ValueError: no calibration batches, or a trained range names a weight that is not in the graph.
    """
    model = onnx.load(fp32)
    products = find_products(model.graph)
    if ranges is not None:
        plans = _trained_plans(products, ranges)
    else:
        plans = _measured_plans(model, products, feeds, settings)
    onnx.save(_rewritten(model, plans), int8)
    return tuple(plan.product.name for plan in plans)


@dataclass(frozen=True, slots=True)
class _Plan:
    """One product to quantise: the range of its input, and what divides each input channel first (None: nothing)."""

    product: Product
    span: Range
    divisors: npt.NDArray[np.float32] | None


def _trained_plans(products: tuple[Product, ...], ranges: Mapping[str, Range]) -> list[_Plan]:
    missing = sorted(set(ranges) - {product.name for product in products})
    if missing:
        raise ValueError(f"the graph has no product with the weight {missing[0]!r}")
    return [_Plan(product, ranges[product.name], None) for product in products if product.name in ranges]


def _measured_plans(
    model: onnx.ModelProto, products: tuple[Product, ...], feeds: Iterable[Feeds], settings: Int8Settings
) -> list[_Plan]:
    candidates = [product for product in products if product.name not in settings.keep]
    if not candidates:
        return []
    sources = [product.source for product in candidates]
    seen = observe(model, tensors=sources, feeds=feeds, sample_values=settings.sample_values)
    by_token = [product for product in candidates if not seen[product.source].per_item]
    divisors, spans = {}, {}
    for source in {product.source for product in by_token}:
        weights = [product.weight for product in by_token if product.source == source]
        divisors[source] = least_error(
            settings.smoothings,
            seen[source],
            weights,
            percentile=settings.percentile,
            rounding=lambda weight: quantise_weight(weight).restored,
        )
        spans[source] = seen[source].scaled(divisors[source]).clipped(settings.percentile)
    return [_Plan(product, spans[product.source], divisors[product.source]) for product in by_token]


def _rewritten(model: onnx.ModelProto, plans: list[_Plan]) -> onnx.ModelProto:
    """The model with the planned products replaced, and nothing in it that is no longer used."""
    writer = _Writer()
    by_output = {plan.product.output: plan for plan in plans}
    gone = {name for plan in plans for name in plan.product.nodes}
    sources = {plan.product.source for plan in plans}
    for node in model.graph.node:
        plan = by_output.get(node.output[0])
        if plan is not None:
            writer.product(plan)
        elif node.op_type == "Relu" and node.input[0] in by_output and node.output[0] not in sources:
            writer.relu(node)
        elif node.output[0] not in gone:
            writer.nodes.append(node)
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:]
    result.graph.node.extend(writer.nodes)
    result.graph.initializer.extend(writer.initializers)
    drop_unused(result.graph)
    onnx.checker.check_model(result)
    return result


def drop_unused(graph: onnx.GraphProto) -> None:
    """Take out initializers that no node reads, in place."""
    used = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


class _Writer:
    """The nodes and constants of the new graph; an activation shared by several products is quantised once."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.quantised: dict[tuple[str, Range], str] = {}

    def product(self, plan: _Plan) -> None:
        """Append the nodes of one product."""
        product = plan.product
        name = f"{product.output}/int8"
        weight = product.weight if plan.divisors is None else product.weight * plan.divisors[:, None]
        rounded = quantise_weight(weight)
        source = self._dequantised(self._quantised(plan), name, plan.span)
        inputs = [source, self._weight(rounded, name)]
        if product.bias is not None:
            inputs.append(self._bias(product.bias, rounded, plan.span, name))
        if product.flat:
            self._node("Gemm", inputs, product.output)
        else:
            self._restored(product, self._node("Gemm", inputs, f"{name}/rows"), name)

    def relu(self, node: onnx.NodeProto) -> None:
        """Append a Relu that follows an int8 product and feeds none.

        ONNX Runtime would join Gemm and Relu into a float32 operator before it looks for int8 products; a Max with 0
        is the same function and stays apart. A Relu before QuantizeLinear it drops by itself.
        """
        zero = self._constant(np.array(0, np.float32), f"{node.output[0]}/zero")
        self._node("Max", [node.input[0], zero], node.output[0])

    def _restored(self, product: Product, rows: str, name: str) -> None:
        """Rows [*, N] back to the source's leading dimensions."""
        leading = self._node("Shape", [product.source], f"{name}/leading", end=-1)
        width = self._constant(np.array([product.weight.shape[1]], np.int64), f"{name}/width")
        shape = self._node("Concat", [leading, width], f"{name}/shape", axis=0)
        self._node("Reshape", [rows, shape], product.output)

    def _quantised(self, plan: _Plan) -> str:
        """The source's levels, u8 [rows, K]: a Gemm takes nothing else."""
        source = plan.product.source
        key = (source, plan.span)
        if key not in self.quantised:
            is_first = all(known != source for known, _ in self.quantised)
            name = f"{source}/int8" if is_first else f"{plan.product.output}/own"
            values = source
            if not plan.product.flat:
                shape = self._constant(np.array([-1, plan.product.weight.shape[0]], np.int64), f"{name}/flat_shape")
                values = self._node("Reshape", [values, shape], f"{name}/flat")
            if plan.divisors is not None:
                factors = self._constant((1 / plan.divisors).astype(np.float32), f"{name}/smoothing")
                values = self._node("Mul", [values, factors], f"{name}/smoothed")
            scale, zero = self._scale(plan.span, name)
            self.quantised[key] = self._node("QuantizeLinear", [values, scale, zero], f"{name}/levels")
        return self.quantised[key]

    def _dequantised(self, levels: str, name: str, span: Range) -> str:
        scale, zero = self._scale(span, f"{name}/source")
        return self._node("DequantizeLinear", [levels, scale, zero], f"{name}/source")

    def _scale(self, span: Range, name: str) -> tuple[str, str]:
        scale = self._constant(np.array(span.scale, np.float32), f"{name}/scale")
        return scale, self._constant(np.array(span.zero_point, np.uint8), f"{name}/zero")

    def _weight(self, rounded: QuantisedWeight, name: str) -> str:
        levels = self._constant(rounded.levels, f"{name}/weight_levels")
        scales = self._constant(rounded.scales, f"{name}/weight_scales")
        zeros = self._constant(np.zeros(rounded.scales.shape, np.int8), f"{name}/weight_zeros")
        return self._node("DequantizeLinear", [levels, scales, zeros], f"{name}/weight", axis=1)

    def _bias(self, bias: npt.NDArray[np.float32], rounded: QuantisedWeight, span: Range, name: str) -> str:
        """The bias as int32 in the product's own steps, as the integer kernel adds it."""
        steps = (rounded.scales * np.float32(span.scale)).astype(np.float32)
        limit = float(2**31 - 1)
        levels = self._constant(
            np.clip(np.rint(bias.astype(np.float64) / steps), -limit, limit).astype(np.int32), f"{name}/bias_levels"
        )
        scales = self._constant(steps, f"{name}/bias_scales")
        zeros = self._constant(np.zeros(bias.shape, np.int32), f"{name}/bias_zeros")
        return self._node("DequantizeLinear", [levels, scales, zeros], f"{name}/bias", axis=0)

    def _constant(self, value: npt.NDArray[np.generic], name: str) -> str:
        self.initializers.append(numpy_helper.from_array(value, name))
        return name

    def _node(self, kind: str, inputs: list[str], output: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

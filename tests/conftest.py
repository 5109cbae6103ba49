"""Fixtures for every test folder: tiny real bundles and stores, built in milliseconds without torch.

The toy classifier has two stages (a word table with an exit, then one layer with the last exit); its words carry
their label, so that texts of marked words are confident at the first exit and texts of plain words are not.
The toy embedder has one stage. Both are computed by real ONNX graphs behind a real `tokenizer.json`.

B items, T tokens, H hidden, C labels, D embedding dimensions, V vocabulary.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import settings
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing

settings.register_profile("understudy", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("understudy")

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
MARKED = (
    ("bad", "awful", "slow", "broken"),
    ("okay", "usual", "plain", "middling"),
    ("good", "great", "fast", "lovely"),
)
PLAIN = (
    "the",
    "a",
    "is",
    "was",
    "it",
    "very",
    "not",
    "film",
    "card",
    "my",
    "and",
    "but",
    "this",
    "where",
    "how",
    "do",
    "i",
)
CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
WORDS = tuple(word for group in MARKED for word in group) + PLAIN
VOCABULARY = (*SPECIALS, *WORDS, *".,!?'-", *(c for c in CHARACTERS if c not in WORDS), *(f"##{c}" for c in CHARACTERS))
GOLDEN_TEXTS = (
    "this film is great",
    "it was awful, very bad!",
    "my card is not usual",
    "where is it?",
    "",
    "zebra 42 good",
)
HIDDEN, DIMENSIONS = 8, 6
LABELS = ("negative", "neutral", "positive")

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class ToySpec:
    """What a toy bundle is made of; `build_bundle(path, **fields)` takes these fields.

    `seed` changes the weights (another version answers with other numbers, mostly the same labels);
    `change` is called with the manifest as a dict, last, and may break it.
    """

    task: Literal["classify", "embed", "rank"] = "classify"
    name: str = ""
    seed: int = 0
    labels: tuple[str, ...] = LABELS
    pairs: Literal["none", "joint", "separate"] = "none"
    joined: bool = False  # the texts of a pair are read apart by stage 00 and joined by stage 01
    max_tokens: int = 32
    precisions: tuple[str, ...] = ("fp32", "int8")
    space_id: str = "toy-space-1"
    certified: bool = True
    default_risk: float | None = 0.05
    change: Callable[[dict[str, Any]], None] | None = None
    extra_files: Mapping[str, bytes] = field(default_factory=dict)


def _tokenizer() -> Tokenizer:
    ids = {token: i for i, token in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(WordPiece(ids, unk_token="[UNK]"))
    tokenizer.add_special_tokens(list(SPECIALS))
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])],
    )
    return tokenizer


def _weights(seed: int, n_labels: int) -> Arrays:
    """Deterministic weights: marked words point along their label's axis, everything else is small noise."""
    draw = np.random.default_rng(seed)
    table = draw.normal(0, 0.3, (len(VOCABULARY), HIDDEN)).astype(np.float32)
    for label, words in enumerate(MARKED):
        for word in words:
            table[VOCABULARY.index(word), label] += 4.0
    read = np.zeros((HIDDEN, n_labels), np.float32)
    np.fill_diagonal(read, 8.0)
    return {
        "table": table,
        "types": draw.normal(0, 0.05, (2, HIDDEN)).astype(np.float32),
        "read": read,
        "mix": (np.eye(HIDDEN) * 0.5 + draw.normal(0, 0.05, (HIDDEN, HIDDEN))).astype(np.float32),
        "read_upper": (1.8 * read + draw.normal(0, 0.3, read.shape)).astype(np.float32),
        "project": draw.normal(0, 1, (HIDDEN, DIMENSIONS)).astype(np.float32),
        "weigh": np.linspace(-2, 2, HIDDEN, dtype=np.float32),
    }


def _masked_mean(states: str, prefix: str) -> list[onnx.NodeProto]:
    """Nodes that write `{prefix}pooled` [B, H], the mean of `states` [B, T, H] over the unmasked tokens."""
    return [
        helper.make_node("Mul", [states, "mask3"], [f"{prefix}kept"]),
        helper.make_node("ReduceSum", [f"{prefix}kept", "axis1"], [f"{prefix}sum"], keepdims=0),
        helper.make_node("ReduceSum", ["mask", "axis1"], [f"{prefix}count"], keepdims=1),
        helper.make_node("Div", [f"{prefix}sum", f"{prefix}count"], [f"{prefix}pooled"]),
    ]


def _graph(
    nodes: list[onnx.NodeProto], inputs: Mapping[str, list[Any]], outputs: Mapping[str, list[Any]], weights: Arrays
) -> bytes:
    ints = {"input_ids", "attention_mask", "token_type_ids", "first_mask", "second_mask"}
    kinds = {name: TensorProto.INT64 if name in ints else TensorProto.FLOAT for name in [*inputs, *outputs]}
    if "state" in outputs or "first_mask" in inputs:
        kinds |= dict.fromkeys(("state", "first", "second"), TensorProto.INT8)
    mask = [
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "axis2"], ["mask3"]),
    ] * ("attention_mask" in inputs)
    constants = {"axis1": np.array([1], np.int64), "axis2": np.array([2], np.int64), **weights}
    graph = helper.make_graph(
        mask + nodes,
        "toy",
        [helper.make_tensor_value_info(name, kinds[name], dims) for name, dims in inputs.items()],
        [helper.make_tensor_value_info(name, kinds[name], dims) for name, dims in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def _lookup(pairs: str) -> list[onnx.NodeProto]:
    """Nodes that write `hidden` [B, T, H] from the ids (and, for pairs, the token types), zero where masked."""
    if pairs == "none":
        words = [helper.make_node("Gather", ["table", "input_ids"], ["words"])]
    else:
        words = [
            helper.make_node("Gather", ["table", "input_ids"], ["plain_words"]),
            helper.make_node("Gather", ["types", "token_type_ids"], ["sides"]),
            helper.make_node("Add", ["plain_words", "sides"], ["words"]),
        ]
    return [*words, helper.make_node("Mul", ["words", "mask3"], ["hidden"])]


def _sides(spec: ToySpec) -> str:
    """Whether the words carry which text they are of."""
    return "joint" if spec.pairs == "joint" or spec.joined else "none"


def _token_inputs(spec: ToySpec) -> dict[str, list[Any]]:
    names = ["input_ids", "attention_mask"] + (["token_type_ids"] if _sides(spec) == "joint" else [])
    return {name: ["B", "T"] for name in names}


def _graphs(spec: ToySpec, weights: Arrays) -> dict[str, bytes]:
    """The ONNX graph of each stage, by stage id."""
    used = {name: weights[name] for name in ["table", *(["types"] if _sides(spec) == "joint" else [])]}
    ids = _token_inputs(spec)
    if spec.joined:
        return _joined_graphs(spec, weights, used, ids)
    if spec.task == "rank" and spec.pairs == "joint":
        nodes = [
            *_lookup(_sides(spec)),
            *_masked_mean("hidden", ""),
            helper.make_node("MatMul", ["pooled", "weigh"], ["score"]),
        ]
        return {"00": _graph(nodes, ids, {"score": ["B"]}, used | {"weigh": weights["weigh"]})}
    if _answer(spec) == "embedding":
        nodes = [
            *_lookup(_sides(spec)),
            *_masked_mean("hidden", ""),
            helper.make_node("MatMul", ["pooled", "project"], ["embedding"]),
        ]
        return {"00": _graph(nodes, ids, {"embedding": ["B", DIMENSIONS]}, used | {"project": weights["project"]})}
    logits = {"logits": ["B", len(spec.labels)]}
    hidden = {"hidden": ["B", "T", HIDDEN]}
    lower = [
        *_lookup(_sides(spec)),
        *_masked_mean("hidden", ""),
        helper.make_node("MatMul", ["pooled", "read"], ["logits"]),
    ]
    upper = [
        helper.make_node("MatMul", ["hidden", "mix"], ["mixed"]),
        helper.make_node("Tanh", ["mixed"], ["states"]),
        *_masked_mean("states", "upper_"),
        helper.make_node("MatMul", ["upper_pooled", "read_upper"], ["logits"]),
    ]
    upper_inputs = {**hidden, "attention_mask": ["B", "T"]}
    return {
        "00": _graph(lower, ids, hidden | logits, used | {"read": weights["read"]}),
        "01": _graph(upper, upper_inputs, logits, {name: weights[name] for name in ("mix", "read_upper")}),
    }


def _joined_graphs(spec: ToySpec, weights: Arrays, used: Arrays, ids: Mapping[str, list[Any]]) -> dict[str, bytes]:
    """A ranker whose words are kept in int8 and joined by the product of both texts' means; or a siamese classifier,
    which joins their means by the distance of each channel."""
    lookup = _lookup("joint")
    if spec.task == "classify":
        lower = [*lookup, *_masked_mean("hidden", ""), helper.make_node("Identity", ["pooled"], ["vector"])]
        upper = [
            helper.make_node("Sub", ["first", "second"], ["between"]),
            helper.make_node("Abs", ["between"], ["far"]),
            helper.make_node("MatMul", ["far", "read"], ["logits"]),
        ]
        both = {"first": ["B", HIDDEN], "second": ["B", HIDDEN]}
        return {
            "00": _graph(lower, ids, {"vector": ["B", HIDDEN]}, used),
            "01": _graph(upper, both, {"logits": ["B", len(spec.labels)]}, {"read": weights["read"]}),
        }
    lower = [
        *lookup,
        helper.make_node("Mul", ["hidden", "levels"], ["scaled"]),
        helper.make_node("Round", ["scaled"], ["rounded"]),
        helper.make_node("Clip", ["rounded", "lowest", "highest"], ["clipped"]),
        helper.make_node("Cast", ["clipped"], ["state"], to=TensorProto.INT8),
    ]
    bounds = {"levels": 20.0, "lowest": -127.0, "highest": 127.0}
    upper = [
        *_side_mean("first"),
        *_side_mean("second"),
        helper.make_node("Mul", ["first_mean", "second_mean"], ["shared"]),
        helper.make_node("MatMul", ["shared", "weigh"], ["score"]),
    ]
    both = {
        "first": ["B", "Q", HIDDEN],
        "first_mask": ["B", "Q"],
        "second": ["B", "T", HIDDEN],
        "second_mask": ["B", "T"],
    }
    return {
        "00": _graph(lower, ids, {"state": ["B", "T", HIDDEN]}, used | {n: np.float32(v) for n, v in bounds.items()}),
        "01": _graph(upper, both, {"score": ["B"]}, {"weigh": weights["weigh"] / 400}),
    }


def _side_mean(side: str) -> list[onnx.NodeProto]:
    """Nodes that write `{side}_mean` [B, H], the mean of int8 states over the unmasked tokens."""
    return [
        helper.make_node("Cast", [side], [f"{side}_states"], to=TensorProto.FLOAT),
        helper.make_node("Cast", [f"{side}_mask"], [f"{side}_kept"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", [f"{side}_kept", "axis2"], [f"{side}_kept3"]),
        helper.make_node("Mul", [f"{side}_states", f"{side}_kept3"], [f"{side}_inside"]),
        helper.make_node("ReduceSum", [f"{side}_inside", "axis1"], [f"{side}_sum"], keepdims=0),
        helper.make_node("ReduceSum", [f"{side}_kept", "axis1"], [f"{side}_count"], keepdims=1),
        helper.make_node("Div", [f"{side}_sum", f"{side}_count"], [f"{side}_mean"]),
    ]


def _answer(spec: ToySpec) -> str:
    """The output that answers."""
    if spec.task == "rank":
        return "score" if spec.pairs == "joint" or spec.joined else "embedding"
    return "embedding" if spec.task == "embed" else "logits"


def _stages(spec: ToySpec) -> list[dict[str, Any]]:
    ids = {name: name for name in _token_inputs(spec)}
    if spec.joined:
        return _joined_stages(spec, ids)
    if spec.task != "classify":
        dims = ["B"] if _answer(spec) == "score" else ["B", DIMENSIONS]
        return [{"id": "00", "inputs": ids, "outputs": {_answer(spec): {"dtype": "float32", "dims": dims}}}]
    logits = {"logits": {"dtype": "float32", "dims": ["B", len(spec.labels)]}}
    hidden = {"hidden": {"dtype": "float32", "dims": ["B", "T", HIDDEN]}}
    upper = {"id": "01", "inputs": {"hidden": "00.hidden", "attention_mask": "attention_mask"}, "outputs": logits}
    return [{"id": "00", "inputs": ids, "outputs": hidden | logits}, upper]


def _joined_stages(spec: ToySpec, ids: Mapping[str, str]) -> list[dict[str, Any]]:
    lower = {"id": "00", "scope": "item", "cacheable": True, "inputs": dict(ids)}
    if spec.task == "classify":
        vector = {"vector": {"dtype": "float32", "dims": ["B", HIDDEN]}}
        sides = {side: f"{side}:00.vector" for side in ("first", "second")}
        logits = {"logits": {"dtype": "float32", "dims": ["B", len(spec.labels)]}}
        return [lower | {"outputs": vector}, {"id": "01", "scope": "pair", "inputs": sides, "outputs": logits}]
    state = {"state": {"dtype": "int8", "dims": ["B", "T", HIDDEN]}}
    sides = {side: f"{side}:00.state" for side in ("first", "second")}
    sides |= {f"{side}_mask": f"{side}:attention_mask" for side in ("first", "second")}
    score = {"score": {"dtype": "float32", "dims": ["B"]}}
    return [lower | {"outputs": state}, {"id": "01", "scope": "pair", "inputs": sides, "outputs": score}]


def _exits(spec: ToySpec) -> list[dict[str, Any]]:
    if spec.joined:
        return [{"id": "full", "stage": "01", "output": _answer(spec), "depth": 1.0}]
    if spec.task != "classify":
        return [{"id": "full", "stage": "00", "output": _answer(spec), "depth": 1.0}]
    return [
        {"id": "early", "stage": "00", "output": "logits", "depth": 0.25, "temperature": 1.5},
        {"id": "full", "stage": "01", "output": "logits", "depth": 1.0, "temperature": 1.0},
    ]


def _certificate(precision: str) -> dict[str, Any]:
    def point(risk: float, threshold: float) -> dict[str, Any]:
        measured = {"rows": 1000, "errors": 3, "p_value": 0.01, "exit_shares": [0.5, 0.5], "mean_depth": 0.625}
        return {"risk": risk, "thresholds": [threshold], **measured}

    return {
        "backend": "onnxruntime",
        "precision": precision,
        "confidence": "max_probability",
        "delta": 0.05,
        "population": "toy texts",
        "population_digest": "0" * 64,
        "reference": "full depth, same precision",
        "input_policy": "truncate end",
        "points": [point(0.01, 0.9), point(0.05, 0.7)],
    }


def _golden(spec: ToySpec, graphs: Mapping[str, Mapping[str, bytes]], tokenizer: Tokenizer) -> dict[str, Any]:
    sessions = {p: [onnxruntime.InferenceSession(g) for g in stages.values()] for p, stages in graphs.items()}
    paired = spec.pairs == "joint" or spec.joined
    texts: list[Any] = [(text, "is it good?") for text in GOLDEN_TEXTS] if paired else list(GOLDEN_TEXTS)
    samples = []
    for text in texts:
        if spec.joined:
            samples.append(_joined_sample(spec, sessions, *(tokenizer.encode(part).ids for part in text), text))
            continue
        encoded = tokenizer.encode(*text) if isinstance(text, tuple) else tokenizer.encode(text)
        outputs = {p: _full_depth(spec, sessions[p], encoded.ids, encoded.type_ids) for p in graphs}
        first, second = text if isinstance(text, tuple) else (text, None)
        samples.append({"text": first, "text_pair": second, "input_ids": encoded.ids, "outputs": outputs})
    return {"schema": 1, "samples": samples}


def _joined_sample(
    spec: ToySpec,
    sessions: Mapping[str, list[onnxruntime.InferenceSession]],
    first: list[int],
    second: list[int],
    texts: tuple[str, str],
) -> dict[str, Any]:
    outputs = {}
    for precision, (lower, upper) in sessions.items():
        feeds: Arrays = {}
        for kind, (side, ids) in enumerate((("first", first), ("second", second))):
            ones = np.ones((1, len(ids)), np.int64)
            (feeds[side],) = lower.run(
                None, {"input_ids": np.array([ids]), "attention_mask": ones, "token_type_ids": ones * kind}
            )
            feeds[f"{side}_mask"] = ones
        wanted = [each.name for each in upper.get_inputs()]
        (answer,) = upper.run(None, {name: feeds[name] for name in wanted})
        outputs[precision] = {"full": [float(value) for value in answer.reshape(-1)]}
    return {"text": texts[0], "text_pair": texts[1], "input_ids": [*first, *second], "outputs": outputs}


def _full_depth(
    spec: ToySpec, sessions: list[onnxruntime.InferenceSession], ids: list[int], types: list[int]
) -> dict[str, list[float]]:
    known: Arrays = {
        "input_ids": np.array([ids]),
        "token_type_ids": np.array([types]),
        "attention_mask": np.ones((1, len(ids)), np.int64),
    }
    exits: dict[str, list[float]] = {}
    for session, leave in zip(sessions, _exits(spec), strict=True):
        names = [output.name for output in session.get_outputs()]
        known |= dict(
            zip(names, session.run(names, {i.name: known[i.name] for i in session.get_inputs()}), strict=True)
        )
        exits[leave["id"]] = [float(value) for value in known[leave["output"]][0].reshape(-1)]
    return exits


def _manifest(spec: ToySpec, files: Mapping[str, bytes]) -> dict[str, Any]:
    stages = _stages(spec)
    classify = spec.task == "classify"
    document: dict[str, Any] = {
        "format": "1.0",
        "requires": ["joined"] if spec.joined else [],
        "name": spec.name or ("toy" if classify else f"toy-{spec.task}"),
        "task": spec.task,
        "max_tokens": spec.max_tokens,
        "pairs": spec.pairs,
        "tokenizer": {"file": "tokenizer.json", "pad_id": 0},
        "stages": stages,
        "exits": _exits(spec),
        "precisions": {
            precision: {
                "files": {stage["id"]: f"stages/{stage['id']}.{precision}.onnx" for stage in stages},
                "golden_atol": 1e-4 if precision == "fp32" else 1e-3,
            }
            for precision in spec.precisions
        },
        "default_precision": spec.precisions[-1],
        "golden": "golden.json",
        "files": {path: {"sha256": hashlib.sha256(raw).hexdigest(), "bytes": len(raw)} for path, raw in files.items()},
        "provenance": {"made_by": "test", "created": "2025-01-01T00:00:00Z"},
    }
    if spec.task == "rank":
        return document
    if not classify:
        return document | {"space_id": spec.space_id, "embedding_dimensions": DIMENSIONS}
    document |= {"labels": list(spec.labels)}
    if spec.joined:
        return document
    document |= {"default_risk": spec.default_risk}
    return document | ({"certificates": [_certificate(p) for p in spec.precisions]} if spec.certified else {})


def _build(path: Path, spec: ToySpec) -> Path:
    tokenizer, exact = _tokenizer(), _weights(spec.seed, len(spec.labels))
    rounded = {name: (np.round(value * 64) / 64).astype(np.float32) for name, value in exact.items()}
    graphs = {p: _graphs(spec, exact if p == "fp32" else rounded) for p in spec.precisions}
    files: dict[str, bytes] = {f"stages/{s}.{p}.onnx": raw for p, stages in graphs.items() for s, raw in stages.items()}
    files["tokenizer.json"] = tokenizer.to_str().encode()
    files["golden.json"] = json.dumps(_golden(spec, graphs, tokenizer)).encode()
    files |= dict(spec.extra_files)
    document = _manifest(spec, files)
    if spec.change is not None:
        spec.change(document)
    for file, raw in [*files.items(), ("manifest.json", json.dumps(document, indent=1).encode())]:
        (path / file).parent.mkdir(parents=True, exist_ok=True)
        (path / file).write_bytes(raw)
    return path


BuildBundle = Callable[..., Path]


@pytest.fixture(autouse=True, scope="session")
def _plain_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No setting of the developer's shell reaches a test; only UNDERSTUDY_DATA stays. Caches are the tests' own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        for name in [n for n in os.environ if n.startswith("UNDERSTUDY_") and n != "UNDERSTUDY_DATA"]:
            patch.delenv(name)
        yield


@pytest.fixture(scope="session")
def build_bundle() -> BuildBundle:
    """`build_bundle(path, **fields of ToySpec) -> path`: writes a tiny real bundle at `path`."""
    return lambda path, **fields: _build(path, ToySpec(**fields))


@pytest.fixture
def classify_bundle(tmp_path: Path, build_bundle: BuildBundle) -> Path:
    """A valid two-stage classify bundle, `toy`; this test may change it."""
    return build_bundle(tmp_path / "classify_bundle")


@pytest.fixture
def embed_bundle(tmp_path: Path, build_bundle: BuildBundle) -> Path:
    """A valid one-stage embed bundle, `toy-embed`; this test may change it."""
    return build_bundle(tmp_path / "embed_bundle", task="embed")


@pytest.fixture
def bundle_dir(classify_bundle: Path) -> Path:
    """The bundle for tests that do not care which: `classify_bundle`."""
    return classify_bundle


@pytest.fixture
def store_dir(tmp_path: Path, build_bundle: BuildBundle) -> Path:
    """A store with the students `toy` (classify) and `toy-embed` (embed), version 1 of each in production."""
    root = tmp_path / "store"
    build_bundle(root / "toy" / "1")
    build_bundle(root / "toy-embed" / "1", task="embed")
    for name in ("toy", "toy-embed"):
        aliases = {"schema": 1, "aliases": {"production": {"version": 1}}, "rules": {}}
        (root / name / "aliases.json").write_text(json.dumps(aliases))
    return root

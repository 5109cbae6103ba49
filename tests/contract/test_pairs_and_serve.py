"""A student of pairs: cut in training as in the service, the same in any company, and answered by every door alike.

B items, E exits, C labels.
"""

import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import pytest
import torch
from tokenizers import Tokenizer

from models.compress.int8 import Int8Settings
from models.compress.pipeline import quantise_stages
from models.compress.token_table import quantise_token_table
from models.export.bundle import BundleParts, finalise, write_draft
from models.export.golden_texts import GOLDEN_TEXTS, golden_texts
from models.export.stages import export_stages
from models.students.encoder import EncoderConfig, EncoderStudent
from models.students.student import exit_names
from service.api.app import create_app
from service.api.schemas import ClassifyAnswer, ClassifyResult
from service.bundle.manifest import Certificate, Exit, OperatingPoint, Provenance
from service.errors import SettingsInvalid
from service.runtime.encode import Encoded, Encoder, pad
from service.runtime.heads import ExitPolicy, softmax
from service.runtime.session import BACKENDS
from service.runtime.student import Student
from service.settings import load_settings
from service.store.store import Store

Pair = tuple[str, str]

LABELS = ("apart", "alike", "neither")
MAX_TOKENS = 24
TOLERANCE = {"fp32": 1e-4, "int8": 1e-3}
LONG = "very slow card and my film was not great but it is fast "
EDGES: list[Pair] = [
    ("", ""),
    ("good", ""),
    ("", "good"),
    ("good", "good"),
    (LONG * 9, "bad"),
    ("bad", LONG * 9),
    (LONG * 9, LONG * 9),
    (LONG * 9, ""),
    ("zzzz qqqq 0000 " * 9, "?!,.-'" * 4),
    ("😀 猫 where", "\x00\x1f card"),
]
"""Pairs that a wrong cut or a wrong type of token would show on."""


def drawn(count: int, *, seed: int) -> list[Pair]:
    """Pairs of texts of 0 to 30 words each."""
    draw = np.random.default_rng(seed)
    words = LONG.split()
    return [
        (" ".join(draw.choice(words, n)), " ".join(draw.choice(words, m))) for n, m in draw.integers(0, 31, (count, 2))
    ]


PAIRS = [*EDGES, *drawn(54, seed=2)]


@pytest.fixture(scope="module")
def torch_student(tokenizer_json: bytes) -> EncoderStudent:
    """Random; the second text's tokens look different from the first's."""
    torch.manual_seed(5)
    config = EncoderConfig(
        vocabulary=Tokenizer.from_buffer(tokenizer_json).get_vocab_size(),
        width=len(LABELS),
        layers=3,
        hidden=32,
        heads=2,
        feed_forward=32,
        exits=(1, 2, 3),
        max_tokens=MAX_TOKENS,
        pairs=True,
    )
    made = EncoderStudent(config).eval()
    torch.nn.init.normal_(made.embeddings.tokens.weight)
    second = made.embeddings.second
    assert second is not None
    torch.nn.init.normal_(second, std=1.0)
    for head in made.exits:
        torch.nn.init.normal_(head.logits.weight, std=0.2)
    return made


def certificate(precision: str, confidences: np.ndarray) -> Certificate:
    """One point, whose thresholds about half of the pairs meet at each exit."""
    point = OperatingPoint(
        risk=0.05,
        thresholds=tuple(clear_of(confidences[:, at]) for at in (0, 1)),
        rows=1000,
        errors=3,
        p_value=0.01,
        exit_shares=(0.5, 0.25, 0.25),
        mean_depth=0.6,
    )
    return Certificate(
        backend="onnxruntime",
        precision=precision,
        confidence="max_probability",
        delta=0.05,
        population="drawn pairs",
        population_digest="0" * 64,
        reference="full depth, same precision",
        input_policy="pairs of texts as one sequence, cut at the end",
        points=(point,),
    )


@pytest.fixture(scope="module")
def store(torch_student: EncoderStudent, tokenizer_json: bytes, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store in which version 1 of `same`, with exits at risk 0.05, is in production; read only."""
    work = tmp_path_factory.mktemp("same")
    exported = export_stages(torch_student.stages(), work / "graphs")
    onnx.save(quantise_token_table(onnx.load(exported[0].path)), exported[0].path)
    fp32 = {each.stage.id: each.path for each in exported}
    int8 = {stage_id: path.with_name(f"{stage_id}.int8.onnx") for stage_id, path in fp32.items()}
    encoded = Encoder(tokenizer_json, max_tokens=MAX_TOKENS, pad_id=0).encode(drawn(96, seed=1))
    batches = [pad(encoded[at : at + 16], pad_id=0) for at in range(0, 96, 16)]
    stages = tuple(each.stage for each in exported)
    quantise_stages(stages, fp32=fp32, int8=int8, batches=batches, settings=Int8Settings())
    parts = BundleParts(
        name="same",
        task="classify",
        labels=LABELS,
        max_tokens=MAX_TOKENS,
        pairs="joint",
        tokenizer_json=tokenizer_json,
        stages=stages,
        exits=tuple(
            Exit(id=name, stage=stage.id, output="logits", depth=depth)
            for name, stage, depth in zip(exit_names(torch_student), stages, torch_student.depths(), strict=True)
        ),
        graphs={"fp32": fp32, "int8": int8},
        default_precision="int8",
        provenance=Provenance(made_by="test", created="2025-01-01T00:00:00Z"),
        golden_texts=golden_texts(pairs=True),
    )
    draft = write_draft(work / "draft", parts)
    found = []
    for precision in ("fp32", "int8"):
        student = Student(draft, precision=precision)
        sure = scores(student, student.encoder.encode(PAIRS))[:, :-1].max(axis=-1)
        found.append(certificate(precision, sure))
    finalise(draft.path, certificates=found, default_risk=0.05)
    made = Store(work / "store")
    made.publish(draft.path, name="same", alias="production")
    return made


@pytest.fixture(scope="module", params=sorted(BACKENDS))
def backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    try:
        BACKENDS[name].require()
    except SettingsInvalid as error:
        pytest.skip(str(error))
    return name


@pytest.fixture(scope="module", params=["fp32", "int8"])
def student(store: Store, backend: str, request: pytest.FixtureRequest) -> Student:
    return Student(store.open("same", 1), backend=backend, precision=request.param)


@pytest.fixture(scope="module")
def encoded(student: Student) -> list[Encoded]:
    return student.encoder.encode(PAIRS)


@pytest.fixture(scope="module")
def alone(student: Student, encoded: list[Encoded]) -> np.ndarray:
    """float [B, E, C]: what it says of each pair by itself."""
    return np.concatenate([scores(student, [item]) for item in encoded])


def scores(student: Student, batch: Sequence[Encoded], *, length: int | None = None) -> np.ndarray:
    """float [B, E, C]."""
    return np.stack([softmax(raw, temperature=1.0) for raw in student.all_exits(batch, length=length)], axis=1)


# what was trained and what is served


def test_fp32_computes_what_torch_computes_but_for_the_rounded_table(
    store: Store, torch_student: EncoderStudent
) -> None:
    student = Student(store.open("same", 1), precision="fp32")
    feeds = pad(student.encoder.encode(PAIRS), pad_id=0)
    names = ("input_ids", "attention_mask", "token_type_ids")
    with torch.no_grad():
        wanted = torch_student(*(torch.as_tensor(feeds[name]) for name in names)).exits
    for found, want in zip(student.all_exits(student.encoder.encode(PAIRS)), wanted, strict=True):
        assert np.abs(found - want.numpy()).max() < 0.05 * want.abs().max()


def test_golden_pairs_are_reproduced_and_are_pairs(student: Student) -> None:
    student.check_golden()
    samples = student.bundle.golden.samples
    assert len(samples) == len(GOLDEN_TEXTS)
    assert [(sample.text, sample.text_pair) for sample in samples] == list(golden_texts(pairs=True))


def test_which_text_a_token_stands_in_counts(student: Student, encoded: list[Encoded], alone: np.ndarray) -> None:
    turned = scores(student, student.encoder.encode([(second, first) for first, second in PAIRS]))
    place = PAIRS.index((LONG * 9, "bad"))
    assert np.abs(turned[place] - alone[place]).max() > 0.01
    feeds = pad([encoded[place]], pad_id=0)
    typed, plain = (
        student.run_padded({**feeds, "token_type_ids": types}, ExitPolicy((None, None))).raw
        for types in (feeds["token_type_ids"], np.zeros_like(feeds["token_type_ids"]))
    )
    assert np.abs(typed - plain).max() > 0.01


# company


def assert_alike(company: np.ndarray, alone: np.ndarray, precision: str) -> None:
    assert np.abs(company - alone).max() <= TOLERANCE[precision]
    ranked = np.sort(alone, axis=-1)
    tied = ranked[..., -1] - ranked[..., -2] <= TOLERANCE[precision]
    assert ((company.argmax(-1) == alone.argmax(-1)) | tied).all()


@pytest.mark.parametrize("size", [2, 7, 33, 64])
def test_in_batches_of_any_size(student: Student, encoded: list[Encoded], alone: np.ndarray, size: int) -> None:
    order = np.random.default_rng(size).permutation(len(encoded))
    for at in range(0, len(order), size):
        batch = order[at : at + size]
        assert_alike(scores(student, [encoded[i] for i in batch]), alone[batch], student.precision)


@pytest.mark.parametrize("length", [5, 12, 17, 24])
def test_padded_to_any_length(student: Student, encoded: list[Encoded], alone: np.ndarray, length: int) -> None:
    fits = [at for at, item in enumerate(encoded) if item.kept <= length]
    found = scores(student, [encoded[at] for at in fits], length=length)
    assert_alike(found, alone[fits], student.precision)


def test_who_goes_on_answers_as_if_alone(student: Student, encoded: list[Encoded], alone: np.ndarray) -> None:
    """Later stages read no token types; what is left of the batch must be the right rows."""
    sure = alone[:, :-1].max(axis=-1)
    thresholds = tuple(clear_of(sure[:, at]) for at in (0, 1))
    outcome = student.run_padded(pad(encoded, pad_id=0), ExitPolicy(thresholds))
    met = np.concatenate([sure >= thresholds, np.ones((len(sure), 1), dtype=bool)], axis=1)
    assert outcome.exit_index.tolist() == met.argmax(axis=1).tolist()
    assert set(outcome.exit_index.tolist()) == {0, 1, 2}
    found = softmax(outcome.raw, temperature=1.0)
    assert_alike(found, alone[np.arange(len(sure)), outcome.exit_index], student.precision)


def clear_of(confidences: np.ndarray) -> float:
    """The middle of the widest gap that a quarter to three quarters of them lie above."""
    ranked = np.sort(confidences)[len(confidences) // 4 : 3 * len(confidences) // 4]
    widest = int(np.diff(ranked).argmax())
    return float(ranked[widest : widest + 2].mean())


# the service


@contextlib.asynccontextmanager
async def serving(store: Path, **settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(load_settings(store=store, slots=1, **settings))
    async with app.router.lifespan_context(app):
        service = app.state.service
        await service.students.until(lambda: service.ready)
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://service", timeout=60) as client:
            yield client


@pytest.fixture
async def client(store: Store) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(store.root, backend="onnxruntime") as found:
        yield found


async def classified(client: httpx.AsyncClient, **body: Any) -> list[ClassifyResult]:
    response = await client.post("/v1/classify", json=body)
    assert response.status_code == 200, response.text
    return ClassifyAnswer.model_validate_json(response.content, strict=True).results


def shown(results: Sequence[ClassifyResult]) -> np.ndarray:
    """float [B, C], in the order of `LABELS`."""
    return np.array([[{s.label: s.score for s in one.labels or ()}[label] for label in LABELS] for one in results])


@pytest.mark.parametrize("exit", ["never", "default"])
async def test_the_engine_answers_pairs_as_the_student_does(client: httpx.AsyncClient, store: Store, exit: Any) -> None:
    student = Student(store.open("same", 1))
    items = student.encoder.encode(PAIRS)
    outcomes = [student.run([item], student.policy(exit))[0] for item in items]
    results = await classified(client, inputs=PAIRS, exit=exit, top_k=len(LABELS))
    names = [leave.id for leave in student.manifest.exits]
    assert [one.exit for one in results] == [names[outcome.exit_index] for outcome in outcomes]
    assert len({one.exit for one in results}) == (1 if exit == "never" else 3)
    wanted = np.stack([softmax(outcome.raw[None], temperature=1.0)[0] for outcome in outcomes])
    np.testing.assert_allclose(shown(results), wanted, atol=TOLERANCE["int8"])
    for one, item in zip(results, items, strict=True):
        lost = None if one.truncated is None else (one.truncated.kept, one.truncated.dropped)
        assert lost == ((item.kept, item.dropped) if item.truncated else None)


async def test_a_pair_alone_is_the_pair_in_company(client: httpx.AsyncClient) -> None:
    together = await classified(client, inputs=PAIRS[:12], exit="never", top_k=3)
    apart = [(await classified(client, inputs=[pair], exit="never", top_k=3))[0] for pair in PAIRS[:12]]
    np.testing.assert_allclose(shown(together), shown(apart), atol=TOLERANCE["int8"])


@pytest.mark.parametrize(
    ("inputs", "pointer", "says"),
    [
        # two texts are two inputs, not a pair
        (["the film", "the card"], "/inputs/0", "takes pairs of texts"),
        ("the film", "/inputs/0", "takes pairs of texts"),
        ([["a", "b", "c"]], "/inputs/0", "a pair holds two texts, not 3"),
        ([["a"]], "/inputs/0", "a pair holds two texts, not 1"),
        ([["a", "b"], "c"], "/inputs/1", "all inputs alike"),
        ([["a", None]], "/inputs/0", ""),
        ([["a", "b"], ["a", 5]], "/inputs/1", ""),
    ],
)
async def test_what_is_no_pair_is_refused_by_its_place(
    client: httpx.AsyncClient, inputs: Any, pointer: str, says: str
) -> None:
    response = await client.post("/v1/classify", json={"inputs": inputs})
    assert response.status_code == 422
    (error,) = response.json()["errors"]
    assert error["pointer"].startswith(pointer)
    assert says in error["detail"]


async def test_a_long_pair_is_refused_where_nothing_may_be_cut(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/classify", json={"inputs": [["a", "b"], ["a", LONG * 9]], "truncate": "error"})
    assert (response.status_code, response.json()["errors"][0]["pointer"]) == (422, "/inputs/1")


async def test_other_doors_give_the_same_scores(client: httpx.AsyncClient) -> None:
    """`[text, text]` is one pair on TEI's door."""
    pairs = [pair for pair in PAIRS[3:9] if all(pair)]
    wanted = shown(await classified(client, inputs=pairs, top_k=3))
    (alone, *_) = pairs
    for body, expected in ((list(alone), wanted[:1]), ([list(pair) for pair in pairs], wanted)):
        response = await client.post("/tei/predict", json={"inputs": body, "truncate": True})
        assert response.status_code == 200, response.text
        found = response.json() if isinstance(body[0], list) else [response.json()]
        scored = [[{one["label"]: one["score"] for one in answer}[label] for label in LABELS] for answer in found]
        np.testing.assert_allclose(scored, expected, atol=TOLERANCE["int8"])
    flat = [text for pair in pairs for text in pair]
    tensor = {"name": "text", "datatype": "BYTES", "shape": [len(pairs), 2], "data": flat}
    response = await client.post("/v2/models/same/infer", json={"inputs": [tensor]})
    assert response.status_code == 200, response.text
    outputs = {output["name"]: output["data"] for output in response.json()["outputs"]}
    assert outputs["label"] == [LABELS[at] for at in wanted.argmax(axis=1)]


async def test_openvino_serves_pairs_as_it_computes_them(store: Store) -> None:
    try:
        BACKENDS["openvino"].require()
    except SettingsInvalid as error:
        pytest.skip(str(error))
    student = Student(store.open("same", 1), backend="openvino")
    items = student.encoder.encode(PAIRS)
    wanted = np.concatenate([scores(student, [item])[:, -1] for item in items])
    async with serving(store.root, backend="openvino") as client:
        results = await classified(client, inputs=PAIRS, top_k=3)
    # it has no certificate here, so nobody leaves early
    assert {one.exit for one in results} == {"full"}
    np.testing.assert_allclose(shown(results), wanted, atol=TOLERANCE["int8"])

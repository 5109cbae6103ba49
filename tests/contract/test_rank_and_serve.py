"""A cross-encoder student is answered with on /v1/rank as it was exported, and its teacher once it is imported."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import numpy as np
import onnx
import pytest
import torch
from transformers import BertConfig, BertModel

from models.compress.pipeline import quantise_stages
from models.compress.token_table import quantise_token_table
from models.export.bundle import BundleParts, write_draft
from models.export.import_command import ImportTask, command
from models.export.import_model import INT8
from models.export.stages import export_stages
from models.recipe.rank import RankStudent
from models.students.cross_encoder import new_cross_encoder, score_pairs
from models.students.encoder import EncoderStudent
from models.students.vocabulary import untrimmed
from models.teachers.cross_encoder import LABELS
from models.teachers.teacher import MeanPooled, Teacher
from models.teachers.tokens import Padded
from service.api.app import create_app
from service.api.schemas import RankAnswer
from service.bundle.manifest import Exit, Provenance
from service.runtime.encode import Encoder, pad
from service.runtime.student import Student
from service.settings import load_settings
from service.store.store import Store

QUERY = "is the film good"
PASSAGES = ["the film was great", "my card is not fast", "", "where do i get it", "awful and slow, it was very bad"]
PAIRS = [(QUERY, passage) for passage in PASSAGES]


@contextlib.asynccontextmanager
async def serving(store: Path) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(load_settings(store=store, slots=1, backend="onnxruntime"))
    async with app.router.lifespan_context(app):
        service = app.state.service
        await service.students.until(lambda: service.ready)
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://service", timeout=60) as client:
            yield client


@pytest.fixture
def teacher(tokenizer_json: bytes) -> Teacher:
    """A random cross-encoder that tells passages apart."""
    torch.manual_seed(7)
    config = BertConfig(
        vocab_size=120,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=40,
    )
    encoder = BertModel(config, add_pooling_layer=False)
    for name, parameter in encoder.named_parameters():
        if "LayerNorm" not in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return Teacher(MeanPooled(encoder, torch.nn.Linear(16, 1)), tokenizer_json, LABELS, max_tokens=24)


@pytest.fixture
def ranker(teacher: Teacher) -> EncoderStudent:
    settings = RankStudent(layers=1, hidden=16, heads=2, feed_forward=32, teacher_layers=(0,), max_tokens=24)
    made = new_cross_encoder(
        settings,
        trimmed=untrimmed(teacher.tokenizer_json),
        state=teacher.encoder_state(),
        teacher_heads=2,
        seed=0,
    )
    return made.eval()


@pytest.fixture
def store(ranker: EncoderStudent, teacher: Teacher, tmp_path: Path) -> Store:
    """A store with the student in both precisions, int8 the default."""
    (exported,) = export_stages(ranker.stages(), tmp_path / "graphs")
    fp32, int8 = exported.path, exported.path.with_name("00.int8.onnx")
    table = tmp_path / "table.onnx"
    onnx.save(quantise_token_table(onnx.load(fp32)), table)
    encoded = Encoder(teacher.tokenizer_json, max_tokens=24, pad_id=0).encode(PAIRS * 4)
    batches = [pad(encoded[at : at + 4], pad_id=0) for at in range(0, len(encoded), 4)]
    quantise_stages([exported.stage], fp32={"00": table}, int8={"00": int8}, batches=batches, settings=INT8)
    parts = BundleParts(
        name="judge",
        task="rank",
        max_tokens=24,
        pairs="joint",
        tokenizer_json=teacher.tokenizer_json,
        stages=(exported.stage,),
        exits=(Exit(id="full", stage="00", output="score", depth=1.0),),
        graphs={"fp32": {"00": fp32}, "int8": {"00": int8}},
        default_precision="int8",
        provenance=Provenance(made_by="test", created="2025-01-01T00:00:00Z"),
        golden_texts=PAIRS,
    )
    draft = write_draft(tmp_path / "draft", parts)
    made = Store(tmp_path / "store")
    made.publish(draft.path, name="judge", alias="production")
    return made


async def asked(store: Path) -> tuple[list[int], np.ndarray]:
    """The passages' places, best first, and their scores in that order."""
    async with serving(store) as client:
        response = await client.post("/v1/rank", json={"query": QUERY, "passages": PASSAGES})
    answer = RankAnswer.model_validate_json(response.content, strict=True)
    return [one.index for one in answer.results], np.array([one.score for one in answer.results])


def sigmoid(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-values.astype(np.float64)))


async def test_a_student_is_served_as_it_was_exported(store: Store, ranker: EncoderStudent) -> None:
    bundle = store.open("judge", 1)
    fp32, int8 = (Student(bundle, precision=precision) for precision in ("fp32", "int8"))
    feeds = pad(fp32.encoder.encode(PAIRS), pad_id=0)
    with torch.no_grad():
        batch = Padded(*(torch.as_tensor(feeds[name]) for name in ("input_ids", "attention_mask", "token_type_ids")))
        wanted = score_pairs(ranker, batch).numpy()
    np.testing.assert_allclose(fp32.all_exits(fp32.encoder.encode(PAIRS))[-1], wanted, atol=1e-4)
    (served,) = int8.all_exits(int8.encoder.encode(PAIRS))
    assert np.abs(served - wanted).max() < 0.2 * wanted.std()
    order, shown = await asked(store.root)
    assert order == np.argsort(-served).tolist()
    np.testing.assert_allclose(shown, sigmoid(served)[order], atol=1e-3)


async def test_its_teacher_is_served_too(teacher: Teacher, tmp_path: Path) -> None:
    teacher.save(tmp_path / "teacher")
    command(str(tmp_path / "teacher"), ImportTask.rank, "judge", tmp_path / "store")
    wanted = teacher.logits(PAIRS, bf16=False)[:, 0]
    order, shown = await asked(tmp_path / "store")
    assert order == np.argsort(-wanted).tolist()
    np.testing.assert_allclose(shown, sigmoid(wanted)[order], atol=1e-4)

"""A bi-encoder is answered with on /v1/rank as torch computes it, and a passage that is known is not read again."""

import contextlib
import json
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import pytest
import torch
from tokenizers import Tokenizer

from models.compress.pipeline import quantise_stages
from models.compress.stored import store_weights
from models.export.bundle import BundleParts, write_draft
from models.export.import_model import INT8
from models.export.stages import export_stages
from models.students.bi_encoder import FIRST_SCALE, SPREADS, BiEncoder, BiEncoderConfig
from models.students.encoder import EncoderConfig
from models.students.split_ranker import LEVELS
from models.teachers.pair_lists import as_second, feeds_apart
from models.teachers.tokens import tokenise
from service.api.app import create_app
from service.api.keys import digest_of
from service.api.schemas import RankAnswer
from service.bundle.manifest import Exit, Provenance
from service.bundle.sources import JOINED
from service.runtime.student import Student
from service.settings import load_settings
from service.store.store import Store

MAX_TOKENS, WIDTH = 24, 20
QUERY = "is the film good"
PASSAGES = [
    "the film was great",
    "my card is not fast",
    "",
    "where do i get it",
    "awful and slow, it was very bad",
    "very slow card and my film was not great but it is fast " * 3,
]
PAIRS = [(QUERY, passage) for passage in PASSAGES]
NEAR = 0.25 * FIRST_SCALE * SPREADS / LEVELS
"""How far a score goes where a few of the levels it is made of went the other way."""


@pytest.fixture(scope="module")
def student(tokenizer_json: bytes) -> BiEncoder:
    """Random; it tells texts apart, and queries from passages."""
    torch.manual_seed(7)
    encoder = EncoderConfig(
        vocabulary=Tokenizer.from_buffer(tokenizer_json).get_vocab_size(),
        width=1,
        layers=2,
        hidden=32,
        heads=2,
        feed_forward=32,
        exits=(),
        max_tokens=MAX_TOKENS,
        token_width=16,
        pairs=True,
    )
    made = BiEncoder(BiEncoderConfig(encoder, WIDTH)).eval()
    embeddings = made.encoder.embeddings
    torch.nn.init.normal_(embeddings.tokens.weight)
    assert embeddings.second is not None
    torch.nn.init.normal_(embeddings.second, std=0.3)
    made.level.fill_(-2.0)
    return made


@pytest.fixture(scope="module")
def store(student: BiEncoder, tokenizer_json: bytes, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with the student in both precisions; read only."""
    work = tmp_path_factory.mktemp("bi")
    exported = export_stages(student.stages(), work / "graphs")
    fp32 = {each.stage.id: each.path for each in exported}
    int8 = {stage_id: path.with_name(f"{stage_id}.int8.onnx") for stage_id, path in fp32.items()}
    batches = feeds_apart(tokenizer_json, PAIRS * 4, max_tokens=MAX_TOKENS, batch_items=8)
    quantise_stages([each.stage for each in exported], fp32=fp32, int8=int8, batches=batches, settings=INT8)
    for path in int8.values():
        onnx.save(store_weights(onnx.load(path), min_values=256), path)
    parts = BundleParts(
        name="twins",
        task="rank",
        max_tokens=MAX_TOKENS,
        pairs="separate",
        requires=(JOINED,),
        tokenizer_json=tokenizer_json,
        stages=tuple(each.stage for each in exported),
        exits=(Exit(id="full", stage="01", output="score", depth=1.0),),
        graphs={"fp32": fp32, "int8": int8},
        default_precision="int8",
        provenance=Provenance(made_by="test", created="2025-01-01T00:00:00Z"),
        golden_texts=PAIRS,
    )
    draft = write_draft(work / "draft", parts)
    made = Store(work / "store")
    made.publish(draft.path, name="twins", alias="production")
    return made


def by_torch(student: BiEncoder, tokenizer_json: bytes) -> np.ndarray:
    """float32 [passages]: the scores of the pairs, one by one."""
    texts = tokenise(tokenizer_json, [QUERY, *PASSAGES], max_tokens=MAX_TOKENS)
    query = texts.padded([0])
    passages = (as_second(texts).padded([at]) for at in range(1, len(PASSAGES) + 1))
    with torch.no_grad():
        return np.array([float(student(query, passage)[0]) for passage in passages])


@contextlib.asynccontextmanager
async def serving(store: Store, precision: str, **more: Any) -> AsyncIterator[tuple[httpx.AsyncClient, Any]]:
    app = create_app(load_settings(store=store.root, slots=1, backend="onnxruntime", precision=precision, **more))
    async with app.router.lifespan_context(app):
        service = app.state.service
        await service.students.until(lambda: service.ready)
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://service", timeout=60) as client:
            yield client, service


async def asked(client: httpx.AsyncClient, passages: list[str] = PASSAGES) -> np.ndarray:
    """The passages' raw scores, in the order they were sent in."""
    body = {"query": QUERY, "passages": passages, "raw_scores": True}
    response = await client.post("/v1/rank", json=body)
    assert response.status_code == 200, response.text
    answer = RankAnswer.model_validate_json(response.content, strict=True)
    assert [one.index for one in answer.results] == sorted(
        range(len(passages)), key=lambda at: -{one.index: one.score for one in answer.results}[at]
    )
    return np.array([one.score for one in sorted(answer.results, key=lambda one: one.index)])


async def read_texts(client: httpx.AsyncClient) -> float:
    """How many texts the first stage has read."""
    series = r'^understudy_batch_items_sum\{model="twins",stage="00"\} (\S+)$'
    found = re.search(series, (await client.get("/metrics")).text, flags=re.MULTILINE)
    return float(found[1]) if found else 0.0


async def test_it_is_served_as_torch_computes_it(store: Store, student: BiEncoder, tokenizer_json: bytes) -> None:
    wanted = by_torch(student, tokenizer_json)
    assert np.ptp(wanted) > 10 * NEAR
    async with serving(store, "fp32") as (client, _):
        np.testing.assert_allclose(await asked(client), wanted, atol=NEAR)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
async def test_a_warm_cache_answers_as_a_cold_one_and_reads_the_query_alone(store: Store, precision: str) -> None:
    offline = Student(store.open("twins", 1), precision=precision)
    offline.check_golden()
    async with serving(store, precision) as (client, service):
        cold = await asked(client)
        np.testing.assert_allclose(cold, offline.all_exits(offline.encoder.encode(PAIRS))[-1], atol=NEAR)
        before = await read_texts(client)
        kept = service.passages.nbytes
        warm = await asked(client)
        assert warm.tolist() == cold.tolist()
        assert await read_texts(client) == before + 1
        await asked(client, ["one passage more"])
        assert service.passages.nbytes - kept == WIDTH + 640 + 128, "int8, whatever its length"


def test_int8_is_near_torch(store: Store, student: BiEncoder, tokenizer_json: bytes) -> None:
    wanted, served = by_torch(student, tokenizer_json), Student(store.open("twins", 1))
    found = served.all_exits(served.encoder.encode(PAIRS))[-1]
    assert np.abs(found - wanted).max() < 0.2 * wanted.std()


async def test_a_known_passage_costs_its_tokens_and_not_its_vectors_numbers(
    store: Store, tmp_path: Path, tokenizer_json: bytes
) -> None:
    keys = [{"name": "limited", "sha256": digest_of("the key"), "compute_per_minute": 60_000}]
    (tmp_path / "keys.json").write_text(json.dumps({"schema": 1, "keys": keys}))
    async with serving(store, "fp32", api_keys=tmp_path / "keys.json") as (client, service):
        now = time.monotonic()
        service.access._clock = lambda: now
        client.headers["authorization"] = "Bearer the key"
        left = [service.access.status()[0]["left"]["compute"]]
        for _ in range(2):
            await asked(client)
            left.append(service.access.status()[0]["left"]["compute"])
        tokens = sum(len(each.ids) for each in Tokenizer.from_buffer(tokenizer_json).encode_batch(PASSAGES[:-1]))
        assert left[0] - left[1] == left[1] - left[2] == pytest.approx(tokens + MAX_TOKENS)

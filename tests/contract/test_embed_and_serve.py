"""An embedder that a recipe made is served as it was measured: by every form and door, the same vectors."""

import base64
import contextlib
import io
import json
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
import transformers
import yaml

from models.evaluate.embedding import vectors_of
from models.recipe.read import read_recipe
from models.refresh.cache import StepCache
from models.refresh.jobs import refresh
from models.refresh.progress import Reporter
from service.api.app import create_app
from service.api.schemas import EmbedAnswer
from service.runtime.heads import binary_embedding, int8_embedding, unit_rows
from service.runtime.student import Student
from service.settings import load_settings
from service.store.store import Store

PATIENCE_S = 60
WORDS = "the a is was it very not film card my and but this where how do good great fast bad awful slow".split()  # noqa: SIM905
TEXTS = [
    "where is my card",
    "",
    "the film was very good",
    "card " * 200,
    "😀 猫 where",
    "\x00\x1f card",
    "bad",
    "it was not a good film but it was very fast and my card is slow",
]
ATOL = 1e-3
"""Between a text alone and in company, in int8."""


def _lines(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def _teacher(folder: Path, tokenizer_json: bytes) -> str:
    """A small random BERT that reads `WORDS`."""
    torch.manual_seed(7)
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    model = transformers.BertModel(
        transformers.BertConfig(vocab_size=120, max_position_embeddings=40, **size), add_pooling_layer=False
    )
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes(tokenizer_json)
    return str(folder)


def _recipe(folder: Path, tokenizer_json: bytes) -> Path:
    chance = random.Random(0)
    texts = [" ".join(chance.sample(WORDS, chance.randint(2, 9))) for _ in range(300)]
    pairs: dict[str, list[dict[str, Any]]] = {"dev": [], "test": []}
    for rows in pairs.values():
        for at in range(40):
            shared, words = at % 6, chance.sample(WORDS, 10)
            other = " ".join(words[5 - shared : 10 - shared])
            rows.append({"text": " ".join(words[:5]), "text_pair": other, "score": shared})
    document = {
        "schema": 1,
        "name": "near",
        "task": "embed",
        "data": {"texts": [_lines(folder / "texts.jsonl", [{"text": text} for text in texts])], "gate": {"cut": 0.2}}
        | {name: _lines(folder / f"{name}.jsonl", rows) for name, rows in pairs.items()},
        "teacher": {"from": _teacher(folder / "teacher", tokenizer_json)},
        "student": {
            "layers": 1,
            "hidden": 16,
            "heads": 1,
            "attention_width": 8,
            "feed_forward": 16,
            "teacher_layers": [0],
            "max_tokens": 24,
        },
        "distil": {
            "objectives": [{"cosine": {}}, {"similarities": {}}],
            "prefixes": [{"dimensions": 8}, {"dimensions": 4}],
            "epochs": 4,
            "batch_items": 16,
            "learning_rate": 0.003,
        },
        "compress": [{"int8": "static", "rows": 64}],
        "gates": {"cosine": 0.5, "overlap": 0.1, "retention": 0.3},
        "publish": {"alias": "production"},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    return folder / "recipe.yaml"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, tokenizer_json: bytes) -> Store:
    """A store in which version 1 of `near` is in production; read only."""
    folder = tmp_path_factory.mktemp("near")
    recipe = read_recipe(_recipe(folder, tokenizer_json))
    cache, said = StepCache(folder / "runs"), Reporter(io.StringIO())
    refresh(recipe, store=folder / "store", cache=cache, seeds=1, reporter=said)
    return Store(folder / "store")


@pytest.fixture(scope="module")
def student(store: Store) -> Student:
    return Student(store.open("near", store.resolve("near").version))


@pytest.fixture(scope="module")
def raw(student: Student) -> np.ndarray:
    """float32 [N, D]: what the reference pass computes of each text, alone."""
    return np.concatenate([student.all_exits([item])[-1] for item in student.encoder.encode(TEXTS)])


@pytest.fixture(scope="module")
def unit(raw: np.ndarray) -> np.ndarray:
    """The same at length 1."""
    return unit_rows(raw)


@contextlib.asynccontextmanager
async def serving(store: Path) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(load_settings(store=store, slots=1, backend="onnxruntime"))
    async with app.router.lifespan_context(app):
        service = app.state.service
        await service.students.until(lambda: service.ready)
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://service", timeout=PATIENCE_S) as client:
            yield client


@pytest.fixture
async def client(store: Store) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(store.root) as found:
        yield found


async def embedded(client: httpx.AsyncClient, **fields: Any) -> EmbedAnswer:
    response = await client.post("/v1/embed", json={"inputs": TEXTS} | fields)
    assert response.status_code == 200, response.text
    return EmbedAnswer.model_validate_json(response.content, strict=True)


async def vectors(client: httpx.AsyncClient, **fields: Any) -> np.ndarray:
    return np.array([result.embedding for result in (await embedded(client, **fields)).results])


def cut(vectors: np.ndarray, dimensions: int) -> np.ndarray:
    """The first numbers, at length 1 again."""
    return vectors[:, :dimensions] / np.linalg.norm(vectors[:, :dimensions], axis=1, keepdims=True)


def test_what_is_published_gives_its_golden_outputs(store: Store) -> None:
    for precision in ("fp32", "int8"):
        Student(store.open("near", 1), precision=precision).check_golden()


def test_what_is_measured_is_what_is_served(student: Student, unit: np.ndarray) -> None:
    np.testing.assert_allclose(vectors_of(student, TEXTS), unit, atol=ATOL)


async def test_the_answer_names_the_version_and_its_space(client: httpx.AsyncClient, student: Student) -> None:
    answer = await embedded(client)
    assert (answer.model, answer.version, answer.space_id) == ("near", 1, student.manifest.space_id)
    assert student.manifest.space_id is not None
    assert all(result.depth == 1.0 for result in answer.results)


async def test_vectors_are_the_students_own(client: httpx.AsyncClient, raw: np.ndarray, unit: np.ndarray) -> None:
    found = await vectors(client)
    assert found.shape == (len(TEXTS), 16)
    np.testing.assert_allclose(found, unit, atol=ATOL)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    scale = np.abs(raw).max()
    np.testing.assert_allclose(await vectors(client, normalize=False), raw, atol=ATOL * max(1.0, scale))


@pytest.mark.parametrize("dimensions", [16, 8, 4, 1])
async def test_the_first_dimensions_are_scaled_again(
    client: httpx.AsyncClient, unit: np.ndarray, dimensions: int
) -> None:
    found = await vectors(client, dimensions=dimensions)
    np.testing.assert_allclose(found, cut(unit, dimensions), atol=10 * ATOL)


async def test_more_dimensions_than_there_are_is_refused(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/embed", json={"inputs": "x", "dimensions": 17})
    assert (response.status_code, response.json()["errors"][0]["pointer"]) == (422, "/dimensions")


@pytest.mark.parametrize("dimensions", [16, 4])
async def test_int8_is_what_the_card_measured(client: httpx.AsyncClient, unit: np.ndarray, dimensions: int) -> None:
    wanted = np.stack([int8_embedding(row) for row in cut(unit, dimensions)])
    found = await vectors(client, encoding="int8", dimensions=dimensions)
    assert np.abs(found - wanted).max() <= 1 + 10 * ATOL * 127
    assert np.abs(found).max() <= 127


@pytest.mark.parametrize("dimensions", [16, 4])
async def test_binary_is_what_the_card_measured(client: httpx.AsyncClient, unit: np.ndarray, dimensions: int) -> None:
    wanted = np.stack([binary_embedding(row) for row in unit[:, :dimensions]])
    found = (await vectors(client, encoding="binary", dimensions=dimensions)).astype(np.uint8)
    assert found.shape == wanted.shape
    clear = np.packbits(np.abs(unit[:, :dimensions]) > ATOL, axis=1)
    np.testing.assert_array_equal(found & clear, wanted & clear)


async def test_base64_is_the_same_numbers(client: httpx.AsyncClient) -> None:
    answer = (await client.post("/v1/embed", json={"inputs": TEXTS, "encoding": "base64"})).json()
    decoded = np.stack(
        [np.frombuffer(base64.b64decode(result["embedding"]), dtype="<f4") for result in answer["results"]]
    )
    np.testing.assert_allclose(decoded, await vectors(client), atol=ATOL)


@pytest.mark.parametrize("encoding", [None, "float", "base64"])
@pytest.mark.parametrize("dimensions", [None, 8])
async def test_openais_door_gives_the_same_vectors(
    client: httpx.AsyncClient, unit: np.ndarray, encoding: str | None, dimensions: int | None
) -> None:
    body = {"input": TEXTS, "model": "near", "encoding_format": encoding, "dimensions": dimensions}
    response = await client.post(
        "/v1/embeddings", json={key: value for key, value in body.items() if value is not None}
    )
    assert response.status_code == 200, response.text
    document = response.json()
    assert [entry["index"] for entry in document["data"]] == list(range(len(TEXTS)))
    assert document["model"] == "near"
    embeddings = [entry["embedding"] for entry in document["data"]]
    if encoding == "base64":
        embeddings = [np.frombuffer(base64.b64decode(text), dtype="<f4") for text in embeddings]
    np.testing.assert_allclose(np.array(embeddings), cut(unit, dimensions or 16), atol=10 * ATOL)


async def test_a_text_alone_is_the_text_in_company(client: httpx.AsyncClient) -> None:
    together = await vectors(client)
    for text, wanted in zip(TEXTS, together, strict=True):
        answer = (await client.post("/v1/embed", json={"inputs": text})).json()
        np.testing.assert_allclose(answer["results"][0]["embedding"], wanted, atol=ATOL)

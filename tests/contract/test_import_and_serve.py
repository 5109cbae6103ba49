"""What `understudy import` publishes is what the service answers with: pairs classified and scored, texts compared."""

import contextlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
import transformers

from models.export.import_command import ImportTask, command
from service.api.app import create_app
from service.api.schemas import ClassifyAnswer, RankAnswer
from service.runtime.student import Student
from service.settings import load_settings
from service.store.store import Store

PATIENCE_S = 60
QUERY = "is the film good"
PASSAGES = ["the film was great", "my card is not fast", "", "where do i get it", "awful and slow, it was very bad"]
Save = Callable[..., Path]


@pytest.fixture
def save_model(tmp_path: Path, tokenizer_json: bytes) -> Save:
    """`save_model(kind, **settings) -> directory` of a small random BERT."""

    def saved(kind: str, **settings: Any) -> Path:
        torch.manual_seed(7)
        size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        config = transformers.BertConfig(vocab_size=120, max_position_embeddings=40, **size, **settings)
        model = getattr(transformers, kind).from_config(config)
        for name, parameter in model.named_parameters():
            if "LayerNorm" not in name:
                torch.nn.init.normal_(parameter, std=0.3)
        model.save_pretrained(tmp_path / "model")
        (tmp_path / "model" / "tokenizer.json").write_bytes(tokenizer_json)
        tokens = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
        about = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 32, **tokens}
        (tmp_path / "model" / "tokenizer_config.json").write_text(json.dumps(about))
        return tmp_path / "model"

    return saved


@contextlib.asynccontextmanager
async def serving(store: Path) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(load_settings(store=store, slots=1, backend="onnxruntime"))
    async with app.router.lifespan_context(app):
        service = app.state.service
        await service.students.until(lambda: service.ready)
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://service", timeout=PATIENCE_S) as client:
            yield client


def _logits(directory: Path, student: Student, pairs: list[tuple[str, str]]) -> np.ndarray:
    """What the model's own code computes for each pair, alone."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(directory).eval()
    rows = []
    for item in student.encoder.encode(pairs):
        ids, types = (torch.tensor(array[None]) for array in (item.input_ids, item.token_type_ids))
        with torch.no_grad():
            rows.append(model(input_ids=ids, token_type_ids=types).logits[0].numpy())
    return np.stack(rows)


async def test_a_pair_classifier(save_model: Save, tmp_path: Path) -> None:
    labels = {0: "no", 1: "maybe", 2: "yes"}
    directory = save_model(
        "AutoModelForSequenceClassification", id2label=labels, label2id={name: at for at, name in labels.items()}
    )
    command(str(directory), ImportTask.classify, "nli", tmp_path / "store", pairs=True)
    pairs = [(QUERY, passage) for passage in PASSAGES]
    wanted = _logits(directory, Student(Store(tmp_path / "store").open("nli", 1)), pairs)
    async with serving(tmp_path / "store") as client:
        response = await client.post("/v1/classify", json={"inputs": pairs})
    answer = ClassifyAnswer.model_validate_json(response.content, strict=True)
    assert [one.label for one in answer.results] == [labels[at] for at in wanted.argmax(axis=1)]
    shares = torch.tensor(wanted).softmax(dim=1).max(dim=1).values.numpy()
    np.testing.assert_allclose([one.score for one in answer.results], shares, atol=1e-4)


async def test_a_cross_encoder(save_model: Save, tmp_path: Path) -> None:
    directory = save_model("AutoModelForSequenceClassification", num_labels=1)
    command(str(directory), ImportTask.rank, "judge", tmp_path / "store")
    student = Student(Store(tmp_path / "store").open("judge", 1))
    wanted = _logits(directory, student, [(QUERY, passage) for passage in PASSAGES])[:, 0]
    async with serving(tmp_path / "store") as client:
        response = await client.post("/v1/rank", json={"query": QUERY, "passages": PASSAGES})
    answer = RankAnswer.model_validate_json(response.content, strict=True)
    assert [one.index for one in answer.results] == np.argsort(-wanted).tolist()
    shown = torch.tensor(np.sort(wanted)[::-1].copy()).sigmoid().numpy()
    np.testing.assert_allclose([one.score for one in answer.results], shown, atol=1e-4)


@pytest.mark.parametrize("task", [ImportTask.rank, ImportTask.embed])
async def test_a_bi_encoder(task: ImportTask, save_model: Save, tmp_path: Path) -> None:
    directory = save_model("AutoModel")
    command(str(directory), task, "near", tmp_path / "store")
    student = Student(Store(tmp_path / "store").open("near", 1))
    model = transformers.AutoModel.from_pretrained(directory).eval()
    rows = []
    for item in student.encoder.encode([QUERY, *PASSAGES]):
        with torch.no_grad():
            rows.append(model(input_ids=torch.tensor(item.input_ids[None])).last_hidden_state[0].mean(dim=0))
    wanted = torch.nn.functional.cosine_similarity(torch.stack(rows[1:]), rows[0][None]).numpy()
    async with serving(tmp_path / "store") as client:
        body = {"model": "near", "query": QUERY, "passages": PASSAGES}
        answers = [RankAnswer.model_validate_json((await client.post("/v1/rank", json=body)).content) for _ in range(2)]
    assert answers[0].results == answers[1].results
    assert [one.index for one in answers[0].results] == np.argsort(-wanted).tolist()
    np.testing.assert_allclose([one.score for one in answers[0].results], np.sort(wanted)[::-1], atol=1e-4)

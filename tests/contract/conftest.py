"""A tiny random student, trained on nothing, exported in both precisions and published in a store."""

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from tokenizers import Tokenizer

from models.compress.bag_table import quantise_bag_table
from models.compress.int8 import Int8Settings
from models.compress.pipeline import quantise_stages
from models.compress.token_table import quantise_token_table
from models.export.bundle import BundleParts, write_draft
from models.export.stages import export_stages
from models.students.bilstm import BilstmConfig, BilstmStudent
from models.students.cascade import CascadeConfig, CascadeStudent
from models.students.cnn import CnnConfig, CnnStudent
from models.students.encoder import EncoderConfig, EncoderStudent
from models.students.ngram import NgramConfig, next_prime
from models.students.student import Student, exit_names
from service.bundle.manifest import Exit, Provenance
from service.runtime.encode import Encoder, pad
from service.store.store import Store

BuildBundle = Callable[..., Path]
LABELS = tuple(f"label-{i}" for i in range(6))
WORDS = (
    *("the", "a", "is", "was", "it", "very", "not", "film", "card", "my", "and", "but", "this", "where", "how", "do"),
    *("bad", "awful", "slow", "okay", "good", "great", "fast"),
)


def sentences(n: int, *, seed: int) -> list[str]:
    """Texts of 1 to 20 words."""
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 21, (n,), generator=draw).tolist()
    return [" ".join(WORDS[i] for i in torch.randint(0, len(WORDS), (k,), generator=draw)) for k in lengths]


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """64 texts that nothing was calibrated on."""
    return sentences(64, seed=2)


@pytest.fixture(scope="session")
def student(tokenizer_json: bytes) -> EncoderStudent:
    """The torch student."""
    torch.manual_seed(11)
    config = EncoderConfig(
        vocabulary=Tokenizer.from_buffer(tokenizer_json).get_vocab_size(),
        width=len(LABELS),
        layers=4,
        hidden=32,
        heads=2,
        feed_forward=64,
        exits=(0, 2, 4),
        max_tokens=24,
        local_features=8,
    )
    made = EncoderStudent(config).eval()
    torch.nn.init.normal_(made.embeddings.tokens.weight)
    for head in made.exits:
        torch.nn.init.normal_(head.logits.weight, std=0.7)
    return made


@pytest.fixture(scope="session")
def tokenizer_json(tmp_path_factory: pytest.TempPathFactory, build_bundle: BuildBundle) -> bytes:
    """A WordPiece tokenizer that knows `WORDS`."""
    return (build_bundle(tmp_path_factory.mktemp("toy")) / "tokenizer.json").read_bytes()


@pytest.fixture(scope="session")
def cascade(student: EncoderStudent) -> CascadeStudent:
    """A bag of n-grams before the student's own encoder."""
    torch.manual_seed(12)
    shape = NgramConfig(
        vocabulary=student.config.vocabulary,
        width=len(LABELS),
        orders=3,
        buckets=next_prime(500),
        rows=16,
        hidden=16,
        max_tokens=24,
        markers=(2, 3),
    )
    made = CascadeStudent(CascadeConfig(shape, student.config))
    made.encoder.load_state_dict(student.state_dict())
    torch.nn.init.normal_(made.ngram.table)
    torch.nn.init.normal_(made.ngram.head.logits.weight, std=0.7)
    with torch.no_grad():
        made.ngram.table[made.ngram.is_marker] = 0.0
    return made.eval()


@pytest.fixture(scope="session")
def published(student: EncoderStudent, tokenizer_json: bytes, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store in which version 1 of `tiny` is in production; read only."""
    return publish("tiny", student, tokenizer_json, tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def published_cascade(
    cascade: CascadeStudent, tokenizer_json: bytes, tmp_path_factory: pytest.TempPathFactory
) -> Store:
    """A store in which version 1 of `cascade` and of `ngram` (its bag alone) are in production; read only."""
    place = tmp_path_factory.mktemp("cascade")
    publish("ngram", cascade.ngram, tokenizer_json, place)
    return publish("cascade", cascade, tokenizer_json, place)


@pytest.fixture(scope="session")
def over_tokens(student: EncoderStudent) -> dict[str, BilstmStudent | CnnStudent]:
    """An LSTM and filters, by architecture."""
    torch.manual_seed(13)
    size, labels = student.config.vocabulary, len(LABELS)
    lstm = BilstmStudent(BilstmConfig(size, labels, token_width=16, states=12, head_width=16, max_tokens=24))
    filters = CnnStudent(CnnConfig(size, labels, token_width=16, sizes=(2, 3, 5), filters=12, max_tokens=24))
    for made in (lstm, filters):
        torch.nn.init.normal_(made.tokens.weight)
        torch.nn.init.normal_(made.logits.weight, std=0.7)
    return {"bilstm": lstm.eval(), "cnn": filters.eval()}


@pytest.fixture(scope="session")
def published_over_tokens(
    over_tokens: dict[str, BilstmStudent | CnnStudent], tokenizer_json: bytes, tmp_path_factory: pytest.TempPathFactory
) -> Store:
    """A store in which version 1 of `bilstm` and of `cnn` are in production; read only."""
    place = tmp_path_factory.mktemp("over_tokens")
    publish("bilstm", over_tokens["bilstm"], tokenizer_json, place)
    return publish("cnn", over_tokens["cnn"], tokenizer_json, place)


def publish(name: str, student: Student, tokenizer_json: bytes, place: Path) -> Store:
    """Export in both precisions, and publish in a store at `place`."""
    work = place / name
    exported = export_stages(student.stages(), work / "graphs")
    for each in exported:
        if "input_ids" in each.stage.inputs.values():
            onnx.save(quantise_bag_table(quantise_token_table(onnx.load(each.path))), each.path)
    stages = tuple(item.stage for item in exported)
    fp32 = {item.stage.id: item.path for item in exported}
    int8 = {stage_id: path.with_name(f"{stage_id}.int8.onnx") for stage_id, path in fp32.items()}
    encoded = Encoder(tokenizer_json, max_tokens=24, pad_id=0).encode(sentences(128, seed=1))
    batches = [pad(encoded[at : at + 16], pad_id=0) for at in range(0, 128, 16)]
    quantise_stages(stages, fp32=fp32, int8=int8, batches=batches, settings=Int8Settings())
    names = ("layer-0", "layer-2", "layer-4") if name == "tiny" else exit_names(student)
    parts = BundleParts(
        name=name,
        task="classify",
        labels=LABELS,
        max_tokens=24,
        tokenizer_json=tokenizer_json,
        stages=stages,
        exits=tuple(
            Exit(id=leave, stage=stage.id, output="logits", depth=depth)
            for leave, stage, depth in zip(names, stages, student.depths(), strict=True)
        ),
        graphs={"fp32": fp32, "int8": int8},
        default_precision="int8",
        provenance=Provenance(made_by="test", created="2025-01-01T00:00:00Z"),
    )
    draft = write_draft(work / "draft", parts)
    store = Store(place / "store")
    assert store.publish(draft.path, name=name, alias="production") == 1
    return store

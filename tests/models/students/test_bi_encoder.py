"""The bi-encoder: its stages equal the whole, a score is a product of kept vectors, and company changes nothing."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch.nn.functional import cosine_similarity, pad

from models.compress.int8 import Int8Settings
from models.compress.pipeline import StageRunner, final_outputs, quantise_stages
from models.errors import RecipeInvalid
from models.export.stages import ExportedStage, export_stages
from models.recipe.bi_encoder import BiEncoderStudent
from models.students.bi_encoder import FIRST_SCALE, SPREADS, BiEncoder
from models.students.bi_start import new_bi_encoder
from models.students.split_ranker import LEVELS
from models.students.split_start import Sample
from models.students.student import encoder_of, tables_of
from models.students.vocabulary import untrimmed
from models.teachers.teacher import Teacher, load_teacher
from models.teachers.tokens import Padded, tokenise

SETTINGS = BiEncoderStudent(
    architecture="bi-encoder",
    layers=2,
    hidden=16,
    heads=1,
    feed_forward=16,
    token_width=8,
    teacher_layers=(0, 1),
    max_tokens=24,
)


@pytest.fixture(scope="module")
def teacher(encoder_directory: Path) -> Teacher:
    return load_teacher(encoder_directory)


def text(items: int, tokens: int, *, second: bool, seed: int = 0) -> Padded:
    """Random ids, the rows after the first one padded by two."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 60, (items, tokens), generator=draw)
    mask = torch.ones_like(ids)
    mask[1:, tokens - 2 :] = 0
    return Padded(ids, mask, torch.full_like(ids, int(second)))


QUERY, PASSAGE = text(3, 5, second=False), text(3, 9, second=True, seed=1)


def new(teacher: Teacher, **changes: Any) -> BiEncoder:
    settings = BiEncoderStudent.model_validate({**SETTINGS.model_dump(), **changes})
    sample = Sample([text(20, 6, second=False, seed=2)], [text(20, 12, second=True, seed=3)])
    return new_bi_encoder(
        settings,
        trimmed=untrimmed(teacher.tokenizer_json),
        state=teacher.encoder_state(),
        teacher_heads=2,
        sample=sample,
        seed=0,
    ).eval()


@pytest.fixture(scope="module", params=[None, 6], ids=["the mean", "narrower"])
def student(teacher: Teacher, request: pytest.FixtureRequest) -> BiEncoder:
    made = new(teacher, vector_width=request.param)
    torch.nn.init.normal_(made.encoder.embeddings.second, std=0.5, generator=torch.Generator().manual_seed(4))
    made.level.fill_(-1.5)
    return made


def test_vectors_are_levels_of_unit_vectors(student: BiEncoder) -> None:
    with torch.no_grad():
        states, units = student.states(PASSAGE), student.units(student.pooled(PASSAGE))
    torch.testing.assert_close(units.norm(dim=1), torch.ones(3))
    levels = states * LEVELS
    assert states.shape == (3, student.config.vector)
    assert (levels - levels.round()).abs().max() < 1e-4
    assert levels.abs().max() <= LEVELS
    torch.testing.assert_close(states / student.config.fits, units, atol=0.51 / LEVELS / student.config.fits, rtol=0)


def test_a_score_is_the_scaled_cosine(student: BiEncoder) -> None:
    with torch.no_grad():
        found = student(QUERY, PASSAGE)
        first, second = (student.units(student.pooled(each)) for each in (QUERY, PASSAGE))
    wanted = FIRST_SCALE * cosine_similarity(first, second) - 1.5
    torch.testing.assert_close(found, wanted, atol=FIRST_SCALE * SPREADS / LEVELS / 2, rtol=0)  # half of what may be


def test_the_stages_together_are_the_whole(student: BiEncoder) -> None:
    read, product = student.stages()
    with torch.no_grad():
        (first,), (second,) = (
            read(each.input_ids, each.attention_mask, each.token_type_ids) for each in (QUERY, PASSAGE)
        )
        (found,) = product(first, second)
        torch.testing.assert_close(found, student(QUERY, PASSAGE), atol=1e-5, rtol=1e-5)
        states = student.states(PASSAGE)
    assert (second.dtype, second.shape) == (torch.int8, (3, student.config.vector))
    torch.testing.assert_close(second.float() / LEVELS, states)


def test_the_gradient_goes_past_the_rounding(student: BiEncoder) -> None:
    student(QUERY, PASSAGE).square().sum().backward()
    parts = [student.log_scale, student.encoder.embeddings.tokens.weight, student.encoder.embeddings.second]
    for part in [*parts, *([student.projection.weight] if student.projection is not None else [])]:
        assert part.grad is not None
        assert part.grad.abs().sum() > 0
    student.zero_grad()


def rows(padded: Padded, places: list[int]) -> Padded:
    return Padded(padded.input_ids[places], padded.attention_mask[places], padded.token_type_ids[places])


def longer(padded: Padded, by: int) -> Padded:
    return Padded(*(pad(each, (0, by)) for each in (padded.input_ids, padded.attention_mask, padded.token_type_ids)))


def test_padding_company_and_order_do_not_change_a_score(student: BiEncoder) -> None:
    with torch.no_grad():
        found = student(QUERY, PASSAGE)
        near = {"atol": FIRST_SCALE * 0.5 / LEVELS, "rtol": 0.0}  # a level may go the other way
        torch.testing.assert_close(student(longer(QUERY, 3), longer(PASSAGE, 4)), found, **near)
        alone = [student(rows(QUERY, [at]), rows(PASSAGE, [at])) for at in range(3)]
        turned = student(rows(QUERY, [2, 0, 1]), rows(PASSAGE, [2, 0, 1]))
    torch.testing.assert_close(torch.cat(alone), found, **near)
    torch.testing.assert_close(turned, found[[2, 0, 1]], **near)


def test_which_text_is_the_passage_counts_once_it_was_learned(teacher: Teacher, student: BiEncoder) -> None:
    as_query = Padded(PASSAGE.input_ids, PASSAGE.attention_mask, torch.zeros_like(PASSAGE.token_type_ids))
    fresh = new(teacher)
    with torch.no_grad():
        assert torch.equal(fresh.states(as_query), fresh.states(PASSAGE))
        assert (student.states(as_query) - student.states(PASSAGE)).abs().max() > 1 / LEVELS


def test_of_the_teachers_whole_shape_it_starts_as_the_sentence_encoder(teacher: Teacher) -> None:
    whole = new(teacher, heads=2, feed_forward=32, token_width=None)
    texts = ["my card is lost", "where is the money", "good film"]
    batch = tokenise(teacher.tokenizer_json, texts, max_tokens=24).padded(np.arange(len(texts)))
    passages = Padded(batch.input_ids, batch.attention_mask, torch.ones_like(batch.token_type_ids))
    wanted = torch.from_numpy(teacher.embeddings(texts))
    with torch.no_grad():
        assert cosine_similarity(whole.pooled(passages), wanted).min() > 0.999


def test_a_narrower_vector_keeps_what_the_texts_differ_in(teacher: Teacher) -> None:
    narrow = new(teacher, vector_width=12)
    pairs = text(20, 6, second=False, seed=2), text(20, 6, second=True, seed=7)
    with torch.no_grad():
        whole, kept = ([make(narrow.pooled(each)) for each in pairs] for make in (lambda pooled: pooled, narrow.units))
    found, wanted = cosine_similarity(*kept), cosine_similarity(*whole)
    assert (found - wanted).abs().max() < 0.05


def test_the_same_seed_makes_the_same_student(teacher: Teacher) -> None:
    changes = {"initialise": "random", "embeddings": "random", "heads": 2, "vector_width": 8}
    first, second = (new(teacher, **changes).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_what_a_refresh_needs_to_know(student: BiEncoder) -> None:
    assert encoder_of(student) is student.encoder
    assert [table.sparse for table in tables_of(student)] == [False]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"heads": 4}, r"student\.heads: 4, the teacher's layers have 2"),
        ({"feed_forward": 64}, r"student\.feed_forward: more than the teacher's 32"),
        ({"teacher_layers": (0, 5)}, r"student\.teacher_layers: the teacher has no layer 5"),
        ({"hidden": 8}, r"student\.hidden: 8"),
    ],
)
def test_what_does_not_fit_the_teacher_is_refused(teacher: Teacher, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeInvalid, match=said):
        new(teacher, **changes)


@pytest.fixture(scope="module")
def exported(student: BiEncoder, tmp_path_factory: pytest.TempPathFactory) -> tuple[ExportedStage, ...]:
    return export_stages(student.stages(), tmp_path_factory.mktemp("graphs"))


def feeds(query: Padded, passage: Padded) -> dict[str, np.ndarray]:
    names = ("input_ids", "attention_mask", "token_type_ids")
    sides = (("first", query), ("second", passage))
    return {f"{side}:{name}": getattr(each, name).numpy() for side, each in sides for name in names}


def test_the_manifest_says_what_is_kept_and_joined(exported: tuple[ExportedStage, ...], student: BiEncoder) -> None:
    read, product = (item.stage for item in exported)
    assert (read.scope, read.cacheable, product.scope, product.cacheable) == ("item", True, "pair", False)
    assert (read.outputs["vector"].dtype, read.outputs["vector"].dims) == ("int8", ("B", student.config.vector))
    assert product.inputs == {"first": "first:00.vector", "second": "second:00.vector"}
    assert product.outputs["score"].dims == ("B",)


def test_a_score_is_the_product_of_the_exported_vectors(
    exported: tuple[ExportedStage, ...], student: BiEncoder
) -> None:
    run = StageRunner([item.stage for item in exported], {item.stage.id: item.path for item in exported})
    for query, passage in ((QUERY, PASSAGE), (text(2, 11, second=False), text(2, 4, second=True))):
        known = run(feeds(query, passage))
        first, second = (known[f"{side}:00.vector"] for side in ("first", "second"))
        assert first.dtype == np.int8
        factor = FIRST_SCALE / (student.config.fits * LEVELS) ** 2
        products = (first.astype(np.float64) * second.astype(np.float64)).sum(1) * factor - 1.5
        np.testing.assert_allclose(known["01.score"], products, atol=1e-4)
        with torch.no_grad():
            np.testing.assert_allclose(known["01.score"], student(query, passage).numpy(), atol=0.08)


def test_int8_is_near_float32_and_the_product_stays_as_it_is(
    exported: tuple[ExportedStage, ...], tmp_path: Path
) -> None:
    stages, fp32 = [item.stage for item in exported], {item.stage.id: item.path for item in exported}
    int8 = {stage_id: tmp_path / f"{stage_id}.int8" for stage_id in fp32}
    batches = [feeds(text(6, 5, second=False, seed=at), text(6, 12, second=True, seed=100 + at)) for at in range(8)]
    receipt = quantise_stages(stages, fp32=fp32, int8=int8, batches=batches, settings=Int8Settings(percentile=100))
    assert receipt.rows == 48
    kinds = {stage_id: [node.op_type for node in onnx.load(path).graph.node] for stage_id, path in int8.items()}
    assert kinds["00"].count("QuantizeLinear") >= 4
    assert "QuantizeLinear" not in kinds["01"]
    before, after = (final_outputs(stages, graphs, batches) for graphs in (fp32, int8))
    assert np.corrcoef(before[:, 0], after[:, 0])[0, 1] > 0.97

"""The split ranker: its stages equal the whole, the fold equals written keys and values, padding changes nothing."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor

from models.compress.int8 import Int8Settings
from models.compress.pipeline import StageRunner, final_outputs, quantise_stages
from models.compress.stored import store_weights
from models.errors import RecipeInvalid
from models.export.stages import ExportedStage, export_stages
from models.recipe.rank import SplitRankerStudent
from models.students.encoder import mask_bias
from models.students.split_ranker import LEVELS, READS_LEVELS, SplitRanker
from models.students.split_start import Sample, new_split_ranker
from models.students.vocabulary import untrimmed
from models.teachers.teacher import Teacher, load_teacher
from models.teachers.tokens import Padded

SETTINGS = SplitRankerStudent(
    architecture="split-ranker",
    layers=1,
    hidden=16,
    heads=1,
    feed_forward=16,
    state_width=6,
    joined_layers=2,
    joined_heads=2,
    joined_feed_forward=32,
    teacher_layers=(0,),
    joined_teacher_layers=(1, 1),
    max_tokens=24,
    head_width=8,
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


def new(teacher: Teacher, **changes) -> SplitRanker:
    settings = SplitRankerStudent.model_validate({**SETTINGS.model_dump(), **changes})
    sample = Sample([text(4, 6, second=False, seed=2)], [text(4, 12, second=True, seed=3)])
    return new_split_ranker(
        settings,
        trimmed=untrimmed(teacher.tokenizer_json),
        state=teacher.encoder_state(),
        teacher_heads=2,
        sample=sample,
        seed=0,
    ).eval()


@pytest.fixture(scope="module")
def ranker(teacher: Teacher) -> SplitRanker:
    return new(teacher)


@torch.no_grad()
def written_down(ranker: SplitRanker, query: Padded, passage: Padded) -> Tensor:
    """The same scores with every key and value of the passage written down, as the papers have it."""
    hidden = ranker.query_expansion(ranker.states(query))
    expanded = ranker.passage_expansion(ranker.states(passage))
    bias = mask_bias(torch.cat([query.attention_mask, passage.attention_mask], dim=1))
    for layer in ranker.layers:
        seen = torch.cat([hidden, expanded], dim=1)
        asked, keys, values = (
            part(each).reshape(len(each), -1, layer.heads, layer.width).transpose(1, 2)
            for part, each in ((layer.query, hidden), (layer.key, seen), (layer.value, seen))
        )
        attention = torch.softmax(asked @ keys.transpose(-1, -2) / layer.width**0.5 + bias, dim=-1)
        mixed = (attention @ values).transpose(1, 2).flatten(2)
        hidden = layer.attention_norm(hidden + layer.output(mixed))
        hidden = layer.norm(hidden + layer.down(layer.activation(layer.up(hidden))))
    scores: Tensor = ranker.head(hidden, query.attention_mask)
    return scores


def test_the_fold_is_one_softmax_over_query_and_passage(ranker: SplitRanker) -> None:
    with torch.no_grad():
        found = ranker(QUERY, PASSAGE)
    assert found.shape == (3,)
    torch.testing.assert_close(found, written_down(ranker, QUERY, PASSAGE), atol=1e-5, rtol=1e-5)


def test_the_stages_together_are_the_whole(ranker: SplitRanker) -> None:
    apart, joined = ranker.stages()
    with torch.no_grad():
        (first,), (second,) = (
            apart(each.input_ids, each.attention_mask, each.token_type_ids) for each in (QUERY, PASSAGE)
        )
        (found,) = joined(first, QUERY.attention_mask, second, PASSAGE.attention_mask)
        torch.testing.assert_close(found, ranker(QUERY, PASSAGE), atol=1e-5, rtol=1e-5)
        states = ranker.states(PASSAGE)
    assert (second.dtype, second.shape) == (torch.int8, (3, 9, 6))
    torch.testing.assert_close(second.float() / LEVELS, states)


def test_the_gradient_goes_past_the_rounding(ranker: SplitRanker) -> None:
    states = ranker.states(PASSAGE)
    levels = states.detach() * LEVELS
    assert (levels - levels.round()).abs().max() < 1e-4
    ranker(QUERY, PASSAGE).sum().backward()
    for part in (ranker.compression, ranker.passage_expansion, ranker.lower.embeddings.tokens):
        assert part.weight.grad is not None
        assert part.weight.grad.abs().sum() > 0
    ranker.zero_grad()


def longer(padded: Padded, by: int) -> Padded:
    return Padded(
        *(torch.nn.functional.pad(each, (0, by)) for each in (padded.input_ids, padded.attention_mask)),
        torch.nn.functional.pad(padded.token_type_ids, (0, by), value=int(padded.token_type_ids.max())),
    )


def test_padding_and_company_do_not_change_a_score(ranker: SplitRanker) -> None:
    with torch.no_grad():
        found = ranker(QUERY, PASSAGE)
        torch.testing.assert_close(ranker(longer(QUERY, 3), longer(PASSAGE, 4)), found, atol=1e-5, rtol=1e-4)
        alone = [
            ranker(
                *(Padded(e.input_ids[[at]], e.attention_mask[[at]], e.token_type_ids[[at]]) for e in (QUERY, PASSAGE))
            )
            for at in range(3)
        ]
    torch.testing.assert_close(torch.cat(alone), found, atol=1e-5, rtol=1e-4)


def test_the_type_tells_query_from_passage(ranker: SplitRanker) -> None:
    as_query = Padded(PASSAGE.input_ids, PASSAGE.attention_mask, torch.zeros_like(PASSAGE.token_type_ids))
    with torch.no_grad():
        assert (ranker.states(as_query) - ranker.states(PASSAGE)).abs().max() > 1e-3


def test_it_starts_from_states_that_tell_the_teachers(teacher: Teacher) -> None:
    whole = new(teacher, heads=2, feed_forward=32, state_width=16)
    batch = text(4, 12, second=True, seed=3)
    mask = batch.attention_mask > 0
    with torch.no_grad():
        wanted = teacher.network.encoder(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            token_type_ids=batch.token_type_ids,
            output_hidden_states=True,
        ).hidden_states[1][mask]
        found = whole.passage_expansion(whole.states(batch))[mask]
    assert ((found - wanted) ** 2).sum() < 0.1 * ((wanted - wanted.mean(0)) ** 2).sum()


def test_the_same_seed_makes_the_same_student(teacher: Teacher) -> None:
    changes = {"initialise": "random", "embeddings": "random"}
    first, second = (new(teacher, **changes).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"heads": 4}, r"student\.heads: 4, the teacher's layers have 2"),
        ({"joined_heads": 3}, r"student\.joined_heads: 3, the teacher's layers have 2"),
        ({"joined_feed_forward": 64}, r"student\.joined_feed_forward: more than the teacher's 32"),
        ({"joined_teacher_layers": (1, 2)}, r"student\.joined_teacher_layers: the teacher has no layer 2"),
        ({"teacher_layers": (5,)}, r"student\.teacher_layers: the teacher has no layer 5"),
        ({"state_width": 17}, r"student\.state_width: 17, more than the 16 of hidden"),
        ({"hidden": 8}, r"student\.hidden: 8"),
    ],
)
def test_what_does_not_fit_the_teacher_is_refused(teacher: Teacher, changes: dict, said: str) -> None:
    with pytest.raises(RecipeInvalid, match=said):
        new(teacher, **changes)


@pytest.fixture(scope="module")
def exported(ranker: SplitRanker, tmp_path_factory: pytest.TempPathFactory) -> tuple[ExportedStage, ...]:
    return export_stages(ranker.stages(), tmp_path_factory.mktemp("graphs"))


def test_the_graphs_are_of_two_texts_of_any_length(exported: tuple[ExportedStage, ...], ranker: SplitRanker) -> None:
    apart, joined = (item.stage for item in exported)
    assert (apart.scope, apart.cacheable, joined.scope, joined.cacheable) == ("item", True, "pair", False)
    assert (apart.outputs["state"].dtype, apart.outputs["state"].dims) == ("int8", ("B", "T", 6))
    assert joined.outputs["score"].dims == ("B",)
    assert joined.inputs == {
        "first": "first:00.state",
        "first_mask": "first:attention_mask",
        "second": "second:00.state",
        "second_mask": "second:attention_mask",
    }
    for query, passage in ((QUERY, PASSAGE), (text(2, 11, second=False), text(2, 4, second=True))):
        found = final_outputs([apart, joined], {item.stage.id: item.path for item in exported}, [feeds(query, passage)])
        with torch.no_grad():
            np.testing.assert_allclose(found[:, 0], ranker(query, passage).numpy(), atol=1e-4)


def feeds(query: Padded, passage: Padded) -> dict[str, np.ndarray]:
    names = ("input_ids", "attention_mask", "token_type_ids")
    sides = (("first", query), ("second", passage))
    return {f"{side}:{name}": getattr(each, name).numpy() for side, each in sides for name in names}


def test_shapes_of_both_texts_are_read_from_their_masks(exported: tuple[ExportedStage, ...]) -> None:
    nodes = onnx.load(exported[1].path).graph.node
    read = {node.input[0] for node in nodes if node.op_type == "Shape"}
    assert read <= {"first_mask", "second_mask"}
    assert not [node for node in nodes if node.op_type in ("Gather", "Unsqueeze") and "Shape" in node.input[0]]


def test_int8_is_near_float32(exported: tuple[ExportedStage, ...], tmp_path: Path) -> None:
    stages, fp32 = [item.stage for item in exported], {item.stage.id: item.path for item in exported}
    int8, stored = ({stage_id: tmp_path / f"{stage_id}.{kind}" for stage_id in fp32} for kind in ("int8", "stored"))
    batches = [feeds(text(6, 5, second=False, seed=at), text(6, 12, second=True, seed=100 + at)) for at in range(8)]
    settings = Int8Settings(percentile=100, keep=frozenset({READS_LEVELS}))
    receipt = quantise_stages(stages, fp32=fp32, int8=int8, batches=batches, settings=settings)
    assert receipt.rows == 48
    for stage_id, path in int8.items():
        assert sum(node.op_type == "QuantizeLinear" for node in onnx.load(path).graph.node) >= 4
        onnx.save(store_weights(onnx.load(path), min_values=64), stored[stage_id])
        assert stored[stage_id].stat().st_size < path.stat().st_size + 2_000
    before, *after = (final_outputs(stages, graphs, batches) for graphs in (fp32, int8, stored))
    for found in after:
        assert np.corrcoef(before[:, 0], found[:, 0])[0, 1] > 0.98


def test_a_graph_may_keep_what_the_first_one_wrote(exported: tuple[ExportedStage, ...]) -> None:
    stages, graphs = [item.stage for item in exported], {item.stage.id: item.path for item in exported}
    known = StageRunner(stages[:1], graphs)(feeds(QUERY, PASSAGE))
    assert known["first:00.state"].shape == (3, 5, 6)
    later = StageRunner(stages[1:], graphs)({**known, "second:input_ids": np.zeros((3, 9), np.int64)})
    np.testing.assert_array_equal(later["01.score"], StageRunner(stages, graphs)(feeds(QUERY, PASSAGE))["01.score"])


def test_stored_weights_are_folded_when_a_graph_is_loaded(exported: tuple[ExportedStage, ...], tmp_path: Path) -> None:
    stored = store_weights(onnx.load(exported[1].path), min_values=64)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "loaded.onnx")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    onnxruntime.InferenceSession(stored.SerializeToString(), options, providers=["CPUExecutionProvider"])
    written = [node for node in onnx.load(tmp_path / "loaded.onnx").graph.node if node.op_type == "Cast"]
    assert not [node for node in written if node.input[0].endswith("/stored/levels")]

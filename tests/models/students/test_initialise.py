"""What a student starts from: principal parts of the teacher's embeddings, and the teacher's layers."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from models.errors import RecipeInvalid
from models.students.encoder import EncoderConfig, EncoderStudent
from models.students.initialise import from_teacher_embeddings, from_teacher_layers, principal_parts

KEPT = np.array([0, 3, 4, 7, 8, 9, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31])
CONFIG = EncoderConfig(
    vocabulary=len(KEPT),
    width=3,
    layers=2,
    hidden=16,
    heads=2,
    feed_forward=32,
    exits=(0, 2),
    max_tokens=10,
    activation="gelu",
)


@pytest.fixture(scope="module")
def teacher() -> BertModel:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=12,
    )
    model = BertModel(config, add_pooling_layer=False).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def state(teacher):
    return {name: tensor.detach() for name, tensor in teacher.state_dict().items()}


def test_principal_parts_of_full_width_keep_every_distance():
    torch.manual_seed(0)
    table = torch.randn(30, 6, dtype=torch.float64)
    found = principal_parts(table, 6, weights=torch.ones(30, dtype=torch.float64))
    torch.testing.assert_close(torch.cdist(found.rows, found.rows), torch.cdist(table, table), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.rows @ found.axes + found.mean, table, atol=1e-5, rtol=1e-5)


def test_principal_parts_come_by_falling_variance_and_do_not_change_sign():
    torch.manual_seed(0)
    table = torch.randn(200, 5) * torch.tensor([1.0, 5.0, 2.0, 0.1, 3.0])
    found = principal_parts(table, 3)
    assert found.axes.abs().argmax(1).tolist() == [1, 4, 2]
    assert (found.axes.gather(1, found.axes.abs().argmax(1, keepdim=True)) > 0).all()


def test_rows_count_by_their_weight():
    table = torch.tensor([[10.0, 0.0], [-10.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    rare = principal_parts(table, 1, weights=torch.tensor([0.0, 0.0, 1.0, 1.0]))
    torch.testing.assert_close(rare.axes, torch.tensor([[0.0, 1.0]]))


def test_copying_everything_reproduces_the_teacher(teacher, state):
    """Same width, both layers: the student's states are the teacher's after its layer 2."""
    student = EncoderStudent(CONFIG).eval()
    from_teacher_embeddings(student, state, KEPT, whole=True)
    from_teacher_layers(student, state, (0, 1))
    ids = torch.tensor([[1, 5, 6, 2], [3, 9, 4, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    with torch.no_grad():
        theirs = teacher(torch.from_numpy(KEPT)[ids], attention_mask=mask, output_hidden_states=True).hidden_states
        ours = student(ids, mask).hidden
    for number in range(3):
        torch.testing.assert_close(ours[number][0], theirs[number][0], atol=1e-5, rtol=1e-4)


def test_a_narrow_table_is_the_nearest_of_its_rank(state):
    student = EncoderStudent(replace(CONFIG, token_width=4))
    from_teacher_embeddings(student, state, KEPT, whole=True)
    embeddings = student.embeddings
    made = embeddings.projection(embeddings.tokens.weight)
    words = state["embeddings.word_embeddings.weight"][torch.from_numpy(KEPT)]
    left = torch.linalg.svdvals(words - words.mean(0))[4:].norm()
    assert (made - words).norm().item() == pytest.approx(left.item(), rel=1e-3)


@pytest.mark.parametrize("token_width", [None, 4])
def test_a_smaller_student_gets_principal_parts_of_unit_variance(state, token_width):
    student = EncoderStudent(replace(CONFIG, hidden=8, token_width=token_width))
    from_teacher_embeddings(student, state, KEPT, whole=False)
    embeddings = student.embeddings
    rows = (
        embeddings.tokens.weight if embeddings.projection is None else embeddings.projection(embeddings.tokens.weight)
    )
    assert rows.shape == (len(KEPT), 8)
    assert rows.std().item() == pytest.approx(1, abs=0.2)
    assert embeddings.positions.abs().sum() > 0


def test_a_narrower_feed_forward_keeps_the_largest_neurons(state):
    student = EncoderStudent(replace(CONFIG, feed_forward=5))
    from_teacher_layers(student, state, (3, 1))
    up = state["encoder.layer.3.intermediate.dense.weight"]
    down = state["encoder.layer.3.output.dense.weight"]
    size = up.norm(dim=1) * down.norm(dim=0)
    kept = size.topk(5).indices.sort().values
    torch.testing.assert_close(student.layers[0].up.weight, up[kept])
    torch.testing.assert_close(student.layers[0].down.weight, down[:, kept])


@pytest.mark.parametrize(
    ("config", "whole", "message"),
    [
        (replace(CONFIG, hidden=8), True, "needs the same width"),
        (replace(CONFIG, hidden=32), False, "at most it"),
        (replace(CONFIG, max_tokens=13), True, "12 positions"),
    ],
)
def test_embeddings_that_do_not_fit_are_refused(state, config, whole, message):
    with pytest.raises(RecipeInvalid, match=message):
        from_teacher_embeddings(EncoderStudent(config), state, KEPT, whole=whole)


@pytest.mark.parametrize(
    ("config", "layers", "message"),
    [
        (CONFIG, (0, 4), "no layer 4"),
        (replace(CONFIG, hidden=8), (0, 1), "to be the teacher's"),
        (replace(CONFIG, feed_forward=64), (0, 1), "more than the teacher's 32"),
        (replace(CONFIG, attention_width=8), (0, 1), "student.heads: 2 of width 4 from the teacher's 2 of width 8"),
    ],
)
def test_layers_that_do_not_fit_are_refused(state, config, layers, message):
    with pytest.raises(RecipeInvalid, match=message):
        from_teacher_layers(EncoderStudent(config), state, layers)


def sizes_of_heads(state, number: int) -> torch.Tensor:
    """float32 [2], how much each of the teacher's heads can write into its layer's output."""
    value = state[f"encoder.layer.{number}.attention.self.value.weight"]
    output = state[f"encoder.layer.{number}.attention.output.dense.weight"]
    return torch.stack([(value[at : at + 8].norm(dim=1) * output[:, at : at + 8].norm(dim=0)).sum() for at in (0, 8)])


@pytest.mark.parametrize("number", range(4))
def test_the_largest_head_is_kept_whole(state, number):
    student = EncoderStudent(replace(CONFIG, heads=1, attention_width=8, layers=1, exits=(1,)))
    from_teacher_layers(student, state, (number,), teacher_heads=2)
    best = int(sizes_of_heads(state, number).argmax())
    rows, layer, of = slice(8 * best, 8 * best + 8), student.layers[0], f"encoder.layer.{number}.attention"
    for part in ("query", "key", "value"):
        torch.testing.assert_close(getattr(layer, part).weight, state[f"{of}.self.{part}.weight"][rows])
        torch.testing.assert_close(getattr(layer, part).bias, state[f"{of}.self.{part}.bias"][rows])
    torch.testing.assert_close(layer.output.weight, state[f"{of}.output.dense.weight"][:, rows])
    torch.testing.assert_close(layer.output.bias, state[f"{of}.output.dense.bias"])


def test_a_head_that_writes_nothing_is_not_missed(teacher, state):
    """The second of two heads silenced, the student has the first alone: it computes what the teacher does."""
    silenced = dict(state)
    for number in range(2):
        weight = state[f"encoder.layer.{number}.attention.output.dense.weight"].clone()
        weight[:, 8:] = 0
        silenced[f"encoder.layer.{number}.attention.output.dense.weight"] = weight
    whole, pruned = EncoderStudent(CONFIG).eval(), EncoderStudent(replace(CONFIG, heads=1, attention_width=8)).eval()
    ids, mask = torch.tensor([[1, 5, 6, 2], [3, 9, 4, 0]]), torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    for student in (whole, pruned):
        from_teacher_embeddings(student, silenced, KEPT, whole=True)
        from_teacher_layers(student, silenced, (0, 1), teacher_heads=2)
    with torch.no_grad():
        for ours, theirs in zip(pruned(ids, mask).hidden, whole(ids, mask).hidden, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_more_heads_than_the_teachers_are_refused(state):
    student = EncoderStudent(replace(CONFIG, heads=3, attention_width=24))
    with pytest.raises(RecipeInvalid, match="3 of width 8 from the teacher's 2 of width 8"):
        from_teacher_layers(student, state, (0, 1), teacher_heads=2)

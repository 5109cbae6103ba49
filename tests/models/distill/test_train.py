"""Distillation of a small student: it comes to agree with its teacher at every exit, resumably, by seed."""

import itertools

import numpy as np
import pytest
import torch

from models.distill.train import TransferSet, distil, exit_weights, inside_of, logits_of, matched_layer
from models.recipe.distil import Distil
from models.students.cascade import CascadeConfig, CascadeStudent
from models.students.encoder import EncoderConfig, EncoderStudent
from models.students.ngram import NgramConfig, NgramStudent
from models.teachers.teacher import States
from models.teachers.tokens import Padded, Tokens

CONFIG = EncoderConfig(
    vocabulary=20,
    width=3,
    layers=2,
    hidden=16,
    heads=2,
    feed_forward=32,
    exits=(0, 1, 2),
    max_tokens=12,
    head_width=16,
)


def data(rows: int = 120) -> TransferSet:
    """Texts of 3 to 9 tokens; the teacher's answer is by which of the tokens 1, 2, 3 occurs most."""
    random = np.random.default_rng(0)
    lengths = random.integers(3, 10, size=rows)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    ids = random.integers(1, 20, size=int(starts[-1])).astype(np.int32)
    counts = np.stack([[(ids[a:b] == k).sum() for k in (1, 2, 3)] for a, b in itertools.pairwise(starts)])
    logits = (2.0 * counts + [0.5, 0.0, 0.0]).astype(np.float32)
    return TransferSet(Tokens(ids, np.zeros(len(ids), np.int8), starts), logits, np.full(rows, -1))


DATA = data()


def settings(**more) -> Distil:
    plain = {"objectives": [{"soft_labels": {}}], "epochs": 12, "batch_items": 16, "learning_rate": 0.01}
    return Distil.model_validate(plain | more)


def student(seed: int = 0, config: EncoderConfig = CONFIG) -> EncoderStudent:
    torch.manual_seed(seed)
    return EncoderStudent(config)


def trained(recipe: Distil, *, seed: int = 0, **more) -> EncoderStudent:
    model = student()
    distil(model, DATA, recipe, seed=seed, bf16=False, **more)
    return model


def agreement(model: EncoderStudent) -> list[float]:
    return [float((logits.argmax(1) == DATA.logits.argmax(1)).mean()) for logits in logits_of(model, DATA.tokens)]


@pytest.mark.parametrize("objective", [{"soft_labels": {"temperature": 2}}, {"logit_mse": {}}])
@pytest.mark.parametrize("average", ["none", "swa", "ema"])
def test_every_exit_comes_to_agree_with_the_teacher(objective, average):
    model = trained(settings(objectives=[objective], average=average, epochs=20))
    assert min(agreement(model)) > 0.85
    assert not model.training


BAG = NgramConfig(vocabulary=20, width=3, orders=2, buckets=101, rows=8, hidden=16, max_tokens=12, feature_dropout=0.1)


@pytest.mark.parametrize("make", [NgramStudent, lambda bag: CascadeStudent(CascadeConfig(bag, CONFIG))])
def test_students_with_ngrams_come_to_agree_at_every_exit_and_are_functions_of_their_seed(make):
    def once():
        torch.manual_seed(0)
        model = make(BAG)
        distil(model, DATA, settings(epochs=20), seed=0, table_factor=5.0, bf16=False)
        return model

    model = once()
    assert min(agreement(model)) > 0.8
    again = once()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_gold_labels_pull_where_they_are():
    gold = np.zeros(len(DATA.gold), np.int64)
    model = student()
    distil(model, TransferSet(DATA.tokens, DATA.logits, gold), settings(gold_weight=1.0), seed=0, bf16=False)
    assert all((logits.argmax(1) == 0).mean() > 0.95 for logits in logits_of(model, DATA.tokens))


def test_a_student_is_a_function_of_the_seed():
    recipe = settings(epochs=2)
    first, again, other = (trained(recipe, seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_a_killed_run_continues_to_the_same_student(tmp_path):
    def kill(done, total, note):
        if done >= 550:
            raise KeyboardInterrupt

    recipe = settings(epochs=80, average="ema")
    whole = trained(recipe).state_dict()
    model = student()
    with pytest.raises(KeyboardInterrupt):
        distil(model, DATA, recipe, seed=0, bf16=False, checkpoint=tmp_path / "c", progress=kill)
    again = trained(recipe, checkpoint=tmp_path / "c").state_dict()
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def inside(batch: Padded) -> States:
    """A teacher of four layers, four heads and width 24, whose every token looks at the first one mostly."""
    items, tokens = batch.input_ids.shape
    hidden = torch.linspace(-1, 1, 24).expand(items, tokens, 24)
    scores = torch.where(torch.arange(tokens) == 0, 3.0, 0.0) - 1e4 * (1 - batch.attention_mask)
    attention = torch.softmax(scores, -1)[:, None, None, :].expand(items, 4, tokens, tokens)
    return States((hidden,) * 5, (attention,) * 4)


@pytest.mark.parametrize("objective", [{"hidden": {}}, {"attention": {}}])
def test_states_and_attention_come_to_match(objective):
    notes = []
    recipe = settings(objectives=[objective], epochs=30, average="none")
    trained(recipe, inside=inside, teacher_hidden=24, progress=lambda done, total, note: notes.append(note))
    first, *_, last = (float(note.removeprefix("loss ")) for note in notes)
    assert last < 0.3 * first


def test_an_objective_that_looks_inside_needs_the_teacher():
    with pytest.raises(ValueError, match="inside"):
        trained(settings(objectives=[{"hidden": {}}]))


def test_the_teacher_sees_its_own_ids():
    class Seen:
        def states(self, batch):
            self.ids = batch.input_ids
            return States((), ())

    seen = Seen()
    inside_of(seen, np.array([0, 7, 9]))(DATA.tokens.padded([0]).__class__(torch.tensor([[1, 2, 0]]), None, None))
    assert seen.ids.tolist() == [[7, 9, 0]]


@pytest.mark.parametrize(
    ("rule", "expected"), [("depth", [1 / 6, 2 / 6, 3 / 6]), ("equal", [1 / 3] * 3), ("last-heavy", [0.25, 0.25, 0.5])]
)
def test_exit_weights_sum_to_one(rule, expected):
    assert exit_weights(rule, 3) == pytest.approx(expected)
    assert exit_weights(rule, 1) == (1.0,)


def test_alternating_exit_weights():
    assert [exit_weights("alternating", 2, step=step) for step in range(3)] == [(0, 1), (0.5, 0.5), (0, 1)]
    assert exit_weights("alternating", 1, step=0) == (1.0,)


def test_alternating_trains_inner_exits_at_every_other_step():
    recipe = settings(exit_weights="alternating", average="none", weight_decay=0.0, warm_up=0.0)
    inner = []

    def note(model):
        inner.append([value.clone() for name, value in model.state_dict().items() if name.startswith("exits.0.")])

    for steps in (1, 2):
        model = student()
        note(model)
        distil(model, DATA, recipe.model_copy(update={"epochs": steps / 15, "batch_items": 8}), seed=0, bf16=False)
        note(model)
    begun, after_one, _, after_two = inner
    assert all(torch.equal(one, other) for one, other in zip(begun, after_one, strict=True))
    assert not all(torch.equal(one, other) for one, other in zip(begun, after_two, strict=True))


def test_layers_are_matched_evenly():
    assert [matched_layer(at, 2, 6) for at in range(3)] == [0, 3, 6]


def test_logits_do_not_depend_on_the_order_of_rows():
    model = student()
    whole = logits_of(model, DATA.tokens)[-1]
    batch = DATA.tokens.padded([5, 2])
    with torch.no_grad():
        some = model.eval()(batch.input_ids, batch.attention_mask).exits[-1].numpy()
    np.testing.assert_allclose(whole[[5, 2]], some, atol=1e-5)

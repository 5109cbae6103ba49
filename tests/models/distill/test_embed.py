"""Distillation of an embedder: the rotation, the loss, and a student that comes to agree with its teacher."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.distill.embed import (
    EmbedTransfer,
    cosine_distance,
    distil_embedder,
    embed_loss,
    rotation,
    similarity_kl,
)
from models.recipe.embed import EmbedDistil
from models.students.encoder import EncoderConfig, EncoderStudent
from models.teachers.tokens import Tokens

# B items, N texts, D dimensions, P of a prefix

SEEDS = st.integers(0, 2**32 - 1)
CONFIG = EncoderConfig(
    vocabulary=20,
    width=8,
    layers=1,
    hidden=16,
    heads=2,
    feed_forward=16,
    exits=(1,),
    max_tokens=12,
    output="embedding",
    attention_width=8,
)


def unit(rows: int, dimensions: int, *, seed: int, fade: float = 1.0) -> np.ndarray:
    """float16 [N, D], unit rows; each dimension is `fade` times as wide as the one before, then all are mixed."""
    random = np.random.default_rng(seed)
    plain = random.standard_normal((rows, dimensions)) * fade ** np.arange(dimensions)
    mixed = plain @ np.linalg.qr(random.standard_normal((dimensions, dimensions)))[0]
    return (mixed / np.linalg.norm(mixed, axis=1, keepdims=True)).astype(np.float16)


@st.composite
def spaces(draw: st.DrawFn) -> tuple[np.ndarray, list[int]]:
    """Targets (also fewer texts than dimensions), and prefixes below D."""
    dimensions = draw(st.integers(2, 12))
    rows = draw(st.sampled_from([1, 3, 40]))
    prefixes = draw(st.lists(st.integers(1, dimensions - 1), unique=True, max_size=4))
    return unit(rows, dimensions, seed=draw(SEEDS), fade=draw(st.sampled_from([1.0, 0.5]))), prefixes


def variance(targets: np.ndarray, axes: np.ndarray) -> float:
    """How much of the targets' squared length lies on these axes."""
    return float(((targets.astype(np.float64) @ axes.T) ** 2).sum())


@given(spaces(), SEEDS)
def test_a_rotation_is_orthogonal_and_keeps_every_cosine(space: tuple[np.ndarray, list[int]], seed: int) -> None:
    targets, prefixes = space
    turned = rotation(targets, prefixes, seed=seed)
    assert (turned.dtype, turned.shape) == (np.float32, (targets.shape[1],) * 2)
    np.testing.assert_allclose(turned @ turned.T, np.eye(targets.shape[1]), atol=1e-5)
    before, after = targets.astype(np.float32), targets.astype(np.float32) @ turned.T
    np.testing.assert_allclose(after @ after.T, before @ before.T, atol=1e-4)


@given(spaces(), SEEDS)
def test_no_other_directions_hold_more_than_a_prefix(space: tuple[np.ndarray, list[int]], seed: int) -> None:
    targets, prefixes = space
    turned = rotation(targets, prefixes, seed=seed)
    values = np.linalg.svd(targets.astype(np.float64), compute_uv=False) ** 2
    for length in prefixes:
        assert variance(targets, turned[:length]) == pytest.approx(values[:length].sum(), rel=1e-4)


def test_inside_a_block_the_directions_are_mixed() -> None:
    """Principal directions alone would leave the last numbers of a block almost constant."""
    targets = unit(400, 16, seed=0, fade=0.6)
    turned = rotation(targets, [8], seed=0)
    spread = (targets.astype(np.float64) @ turned.T).std(axis=0)
    principal = np.sqrt(np.linalg.svd(targets.astype(np.float64), compute_uv=False) ** 2 / 400)
    assert spread[:8].min() > 3 * principal[7]
    assert spread[:8].min() > spread[8:].max()


def test_a_rotation_is_decided_by_its_seed() -> None:
    targets = unit(50, 8, seed=0)
    np.testing.assert_array_equal(rotation(targets, [4], seed=3), rotation(targets, [4], seed=3))
    assert np.abs(rotation(targets, [4], seed=3) - rotation(targets, [4], seed=4)).max() > 0.1


def test_the_order_in_which_prefixes_are_named_does_not_matter() -> None:
    targets = unit(50, 8, seed=0)
    np.testing.assert_array_equal(rotation(targets, [6, 2], seed=0), rotation(targets, [2, 6], seed=0))


def test_without_prefixes_nothing_turns() -> None:
    np.testing.assert_array_equal(rotation(unit(5, 4, seed=0), [], seed=9), np.eye(4, dtype=np.float32))


def tensor(seed: int, *, items: int = 6, dimensions: int = 8) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((items, dimensions)).astype(np.float32))


def distil_settings(**more: Any) -> EmbedDistil:
    plain = {"objectives": [{"cosine": {}}, {"similarities": {}}], "prefixes": [{"dimensions": 4}]}
    return EmbedDistil.model_validate(plain | {"epochs": 20, "batch_items": 16, "learning_rate": 0.01} | more)


@given(SEEDS, st.floats(0.01, 2))
def test_equal_vectors_cost_nothing_and_others_something(seed: int, temperature: float) -> None:
    theirs = tensor(seed)
    settings = distil_settings(objectives=[{"cosine": {}}, {"similarities": {"temperature": temperature}}])
    assert abs(float(embed_loss(theirs, theirs, settings))) < 1e-5
    assert float(embed_loss(tensor(seed + 1), theirs, settings)) > 1e-3


@given(SEEDS, st.floats(1e-2, 1e2))
def test_the_length_of_the_students_vectors_does_not_matter(seed: int, factor: float) -> None:
    ours, theirs, settings = tensor(seed), tensor(seed + 1), distil_settings()
    # each text's by itself, too
    factors = torch.linspace(1, factor, len(ours))[:, None]
    wanted = float(embed_loss(ours, theirs, settings))
    assert float(embed_loss(ours * factors, theirs, settings)) == pytest.approx(wanted, rel=1e-3, abs=1e-4)
    assert float(embed_loss(ours, theirs * factors, settings)) == pytest.approx(wanted, rel=1e-3, abs=1e-4)


@given(SEEDS, st.integers(2, 9), st.floats(0.05, 1))
def test_similarities_are_those_to_the_others_only(seed: int, items: int, temperature: float) -> None:
    """Against numpy, row by row, the text itself left out."""
    ours, theirs = tensor(seed, items=items).double(), tensor(seed + 1, items=items).double()
    found = similarity_kl(ours, theirs, temperature=temperature).numpy()

    def shares(vectors: np.ndarray, row: int) -> np.ndarray:
        units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        powers = np.exp(np.delete(units @ units[row], row) / temperature)
        return powers / powers.sum()

    for row in range(items):
        p, q = shares(theirs.numpy(), row), shares(ours.numpy(), row)
        assert found[row] == pytest.approx(temperature * (p * np.log(p / q)).sum(), rel=1e-6, abs=1e-9)


@given(SEEDS)
def test_similarities_do_not_see_which_way_a_space_is_turned(seed: int) -> None:
    ours, theirs = tensor(seed), tensor(seed + 1)
    turned = torch.linalg.qr(tensor(seed + 2, items=8))[0]
    torch.testing.assert_close(
        similarity_kl(ours @ turned, theirs, temperature=0.1),
        similarity_kl(ours, theirs, temperature=0.1),
        atol=1e-3,
        rtol=1e-3,
    )


def test_two_texts_have_only_each_other() -> None:
    assert similarity_kl(tensor(0, items=2), tensor(1, items=2), temperature=0.05).tolist() == [0.0, 0.0]


@given(SEEDS)
def test_the_cosine_distance_is_half_the_squared_distance_of_unit_vectors(seed: int) -> None:
    ours, theirs = tensor(seed), tensor(seed + 1)
    units = [torch.nn.functional.normalize(each, dim=-1) for each in (ours, theirs)]
    wanted = ((units[0] - units[1]) ** 2).sum(-1) / 2
    torch.testing.assert_close(cosine_distance(ours, theirs), wanted, atol=1e-5, rtol=1e-4)


def test_the_loss_is_the_weighted_mean_over_the_prefixes() -> None:
    ours, theirs = tensor(0), tensor(1)
    settings = distil_settings(
        objectives=[{"cosine": {"weight": 2}}], prefixes=[{"dimensions": 4, "weight": 0.5}, {"dimensions": 2}]
    )
    parts = {length: float(cosine_distance(ours[:, :length], theirs[:, :length]).mean()) for length in (8, 4, 2)}
    wanted = 2 * (parts[8] + 0.5 * parts[4] + parts[2]) / 2.5
    assert float(embed_loss(ours, theirs, settings)) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("objectives", [[{"similarities": {}}], [{"cosine": {}}, {"similarities": {}}]])
def test_a_last_batch_of_one_text_can_be_learned_from(objectives: list[dict]) -> None:
    """It has nobody to be similar to; its term is 0, and its gradient is, too."""
    ours = tensor(0, items=1).requires_grad_()
    theirs = ours.detach().clone()
    loss = embed_loss(ours, theirs, distil_settings(objectives=objectives))
    loss.backward()
    assert abs(loss.item()) < 1e-6
    assert ours.grad is not None
    assert float(ours.grad.abs().max()) < 1e-5


def data(rows: int = 129) -> EmbedTransfer:
    """Texts of 3 to 9 tokens; the teacher's vector is the mean of fixed vectors of its tokens.

    One more text than whole batches, so that the last batch has one.
    """
    random = np.random.default_rng(0)
    lengths = random.integers(3, 10, size=rows)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    ids = random.integers(1, 20, size=int(starts[-1])).astype(np.int32)
    table = random.standard_normal((20, 8))
    means = np.stack([table[ids[a:b]].mean(0) for a, b in itertools.pairwise(starts)])
    targets = (means / np.linalg.norm(means, axis=1, keepdims=True)).astype(np.float16)
    return EmbedTransfer(Tokens(ids, np.zeros(len(ids), np.int8), starts), targets)


DATA = data()
TURNED = rotation(DATA.targets, [4], seed=0)


def student(seed: int = 0) -> EncoderStudent:
    torch.manual_seed(seed)
    return EncoderStudent(CONFIG)


def trained(settings: EmbedDistil, *, seed: int = 0, **more: Any) -> EncoderStudent:
    model = student()
    distil_embedder(model, DATA, settings, turned=TURNED, seed=seed, **more)
    return model


def vectors(model: EncoderStudent) -> np.ndarray:
    batch = DATA.tokens.padded(np.arange(len(DATA.tokens)))
    with torch.no_grad():
        found = model.eval()(batch.input_ids, batch.attention_mask).exits[0].numpy()
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def test_a_student_comes_to_agree_with_its_teacher_in_the_turned_space() -> None:
    model = trained(distil_settings())
    ours, theirs = vectors(model), DATA.targets.astype(np.float32) @ TURNED.T
    assert (ours * theirs).sum(1).mean() > 0.95
    assert not model.training
    cut = [each[:, :4] / np.linalg.norm(each[:, :4], axis=1, keepdims=True) for each in (ours, theirs)]
    assert (cut[0] * cut[1]).sum(1).mean() > 0.95


def test_similarities_alone_teach_how_near_texts_are() -> None:
    """Not where they lie: that objective does not see the axes."""
    model = trained(distil_settings(objectives=[{"similarities": {"temperature": 0.2}}], prefixes=[], epochs=40))
    theirs = DATA.targets.astype(np.float32)
    above = np.triu_indices(len(theirs), k=1)

    def alike(model: EncoderStudent) -> float:
        ours = vectors(model)
        return float(np.corrcoef((ours @ ours.T)[above], (theirs @ theirs.T)[above])[0, 1])

    assert alike(model) > 0.9 > 0.5 > alike(student())


def test_a_student_is_a_function_of_the_seed() -> None:
    settings = distil_settings(epochs=2)
    first, again, other = (trained(settings, seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_a_killed_run_continues_to_the_same_student(tmp_path) -> None:
    def kill(done: int, total: int, note: str) -> None:
        if done >= 550:
            raise KeyboardInterrupt

    settings = distil_settings(epochs=66)
    whole = trained(settings).state_dict()
    with pytest.raises(KeyboardInterrupt):
        trained(settings, checkpoint=tmp_path / "c", progress=kill)
    assert (tmp_path / "c").exists()
    again = trained(settings, checkpoint=tmp_path / "c").state_dict()
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_a_training_that_diverges_says_so() -> None:
    broken = DATA.targets.copy()
    broken[7] = np.nan
    with pytest.raises(FloatingPointError, match="not finite at step"):
        distil_embedder(student(), EmbedTransfer(DATA.tokens, broken), distil_settings(), turned=TURNED, seed=0)


def test_tables_learn_at_their_own_rate() -> None:
    """A rate of next to nothing leaves them as they were, while the layers move."""
    before = student().state_dict()
    after = trained(distil_settings(epochs=2, embedding_learning_rate_factor=1e-12, average="none")).state_dict()
    moved = {name: float((after[name] - before[name]).abs().max()) for name in before}
    assert moved["embeddings.tokens.weight"] < 1e-8
    assert moved["embeddings.positions"] < 1e-8
    assert moved["layers.0.up.weight"] > 1e-3

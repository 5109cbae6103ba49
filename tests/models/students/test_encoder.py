"""The encoder student: cut or whole it computes the same, alone or in company, padded or not."""

from dataclasses import replace

import pytest
import torch

from models.students.encoder import EncoderConfig, EncoderStudent

CONFIG = EncoderConfig(
    vocabulary=50,
    width=5,
    layers=4,
    hidden=16,
    heads=2,
    feed_forward=32,
    exits=(0, 2, 4),
    max_tokens=20,
    head_width=8,
)
SHAPES = {
    "plain": CONFIG,
    "one exit": replace(CONFIG, exits=(4,)),
    "no exit at the embeddings": replace(CONFIG, exits=(1, 4)),
    "every layer": replace(CONFIG, exits=(0, 1, 2, 3, 4)),
    "narrow table": replace(CONFIG, token_width=6),
    "local features": replace(CONFIG, local_features=12),
    "gelu": replace(CONFIG, activation="gelu"),
    "dropout": replace(CONFIG, dropout=0.5),
    "narrow attention": replace(CONFIG, heads=3, attention_width=12),
    "wide attention": replace(CONFIG, attention_width=40),
}


def student(config=CONFIG) -> EncoderStudent:
    torch.manual_seed(0)
    return EncoderStudent(config).eval()


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    lengths = torch.tensor([3, 9, 6])
    mask = (torch.arange(9)[None, :] < lengths[:, None]).to(torch.int64)
    return torch.randint(1, 50, (3, 9)) * mask, mask


@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES.keys())
def test_the_stages_one_after_another_are_the_whole(config):
    model = student(config)
    ids, mask = batch()
    whole = model(ids, mask)
    source, seen = ids, []
    for stage in model.stages():
        stage.eval()
        outputs = dict(zip(stage.output_names, stage(source, mask), strict=True))
        seen.append(outputs["logits"])
        source = outputs.get("hidden")
    assert source is None
    for ours, theirs in zip(seen, whole.exits, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES.keys())
def test_an_answer_depends_neither_on_company_nor_on_padding(config):
    model = student(config)
    ids, mask = batch()
    together = model(ids, mask).exits
    for row in range(3):
        length = int(mask[row].sum())
        alone = model(ids[row : row + 1, :length], mask[row : row + 1, :length]).exits
        for ours, theirs in zip(alone, together, strict=True):
            torch.testing.assert_close(ours[0], theirs[row], atol=1e-5, rtol=1e-5)


def test_what_stands_in_padding_changes_nothing():
    """The engine pads the states between stages with zeros, not with what a longer neighbour left there."""
    model = student()
    ids, mask = batch()
    first, second, _ = model.stages()
    hidden, _ = first(ids, mask)
    kept = hidden * mask[:, :, None]
    torch.testing.assert_close(second(hidden, mask)[1], second(kept, mask)[1])


def test_the_stages_name_their_tensors_and_share_the_students_parameters():
    model = student()
    stages = model.stages()
    assert [stage.stage_id for stage in stages] == ["00", "01", "02"]
    assert [stage.input_names for stage in stages] == [
        ("input_ids", "attention_mask"),
        ("hidden", "attention_mask"),
        ("hidden", "attention_mask"),
    ]
    assert [stage.output_names for stage in stages] == [("hidden", "logits"), ("hidden", "logits"), ("logits",)]
    assert [len(stage.layers) for stage in stages] == [0, 2, 2]
    ours = {id(parameter) for stage in stages for parameter in stage.parameters()}
    assert ours == {id(parameter) for parameter in model.parameters()}


def test_a_single_exit_is_one_stage_from_ids_to_logits():
    (stage,) = student(SHAPES["one exit"]).stages()
    assert stage.input_names == ("input_ids", "attention_mask")
    assert stage.output_names == ("logits",)


def test_depths_rise_to_one_and_the_embedding_exit_costs_next_to_nothing():
    config = replace(CONFIG, hidden=128, feed_forward=512, vocabulary=500)
    depths = student(config).depths()
    assert depths[0] < 0.01
    assert depths[1] == pytest.approx(0.5, abs=0.01)
    assert depths[-1] == 1.0


def test_the_shapes_of_what_a_pass_gives():
    outputs = student()(*batch())
    assert [tuple(logits.shape) for logits in outputs.exits] == [(3, 5)] * 3
    assert [tuple(hidden.shape) for hidden in outputs.hidden] == [(3, 9, 16)] * 5
    assert [tuple(attention.shape) for attention in outputs.attention] == [(3, 2, 9, 9)] * 4


def test_nothing_attends_to_padding():
    _, mask = batch()
    attention = student()(*batch()).attention[0]
    assert (attention * (1 - mask)[:, None, None, :]).abs().max() == 0


def test_gradients_reach_every_parameter():
    model = student(SHAPES["local features"])
    sum(logits.sum() for logits in model(*batch()).exits).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_heads_share_the_attentions_own_width():
    config = replace(CONFIG, heads=3, attention_width=12)
    outputs = student(config)(*batch())
    layer = student(config).layers[0]
    assert (layer.width, tuple(layer.query.weight.shape), tuple(layer.output.weight.shape)) == (4, (12, 16), (16, 12))
    assert tuple(outputs.attention[0].shape) == (3, 3, 9, 9)
    assert tuple(outputs.hidden[-1].shape) == (3, 9, 16)


def test_attention_as_wide_as_hidden_is_the_plain_layer():
    plain, named = student(), student(replace(CONFIG, attention_width=16))
    for ours, theirs in zip(named(*batch()).exits, plain(*batch()).exits, strict=True):
        assert torch.equal(ours, theirs)


def test_multiply_adds_count_the_attentions_width():
    """By the sizes of the matrices: every weight of a layer once a token, and both products of the attention."""
    for width in (None, 12, 40):
        config = replace(CONFIG, heads=4, attention_width=width, exits=(4,))
        (stage,) = student(config).stages()
        weights = sum(p.numel() for name, p in stage.layers.named_parameters() if p.ndim == 2)
        products = 4 * 2 * 7 * (width or 16)
        assert stage.multiply_adds(7) == 7 * (weights + products) + stage.exit.multiply_adds(7)


EMBEDDER = replace(CONFIG, output="embedding", exits=(4,), width=6)


def test_an_embedding_is_the_mean_state_mapped_once():
    model = student(EMBEDDER)
    ids, mask = batch()
    outputs = model(ids, mask)
    last, head = outputs.hidden[-1], model.exit_head(0).embedding
    for row in range(3):
        mean = last[row, : int(mask[row].sum())].mean(0)
        torch.testing.assert_close(outputs.exits[0][row], head(mean), atol=1e-5, rtol=1e-5)


def test_an_embedding_depends_neither_on_company_nor_on_padding():
    model = student(replace(EMBEDDER, heads=1, attention_width=4))
    ids, mask = batch()
    together = model(ids, mask).exits[0]
    for row in range(3):
        length = int(mask[row].sum())
        alone = model(ids[row : row + 1, :length], mask[row : row + 1, :length]).exits[0]
        torch.testing.assert_close(alone[0], together[row], atol=1e-5, rtol=1e-5)


def test_token_types_tell_the_texts_of_a_pair_apart():
    model = student(replace(CONFIG, pairs=True))
    with torch.no_grad():
        model.embeddings.second.normal_()
    ids, mask = batch()
    types = torch.zeros_like(ids)
    types[:, ids.shape[1] // 2 :] = 1
    first, second = model(ids, mask, types).exits[-1], model(ids, mask, 1 - types).exits[-1]
    assert not torch.allclose(first, second, atol=1e-3)
    stages = model.stages()
    assert stages[0].input_names == ("input_ids", "attention_mask", "token_type_ids")
    assert stages[1].input_names == ("hidden", "attention_mask")
    hidden, _ = stages[0](ids, mask, types)
    torch.testing.assert_close(hidden, model(ids, mask, types).hidden[0])


def test_without_pairs_token_types_are_not_looked_at():
    model = student()
    ids, mask = batch()
    torch.testing.assert_close(model(ids, mask, torch.ones_like(ids)).exits, model(ids, mask).exits)

"""The card of an embedder says what was measured, of which form and precision, and leaves out what was not given."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from models.evaluate.embedding import EmbedQuality, NeighbourAccuracy, PairQuality, TeacherLikeness
from models.report.card import GateResult
from models.report.embed_card import EmbedCard, EmbedSeed, quality_for_manifest, render_embed_card, write_embed_card
from models.report.plots import plot_forms
from service.bundle.load import load_bundle
from service.bundle.manifest import DataSource, Manifest

FORMS = (
    PairQuality("full", 0.8012, 0.7801, 0.8203, 1.0, 0.9711),
    PairQuality("first 4", 0.7512, 0.7301, 0.7703, 0.9376, 0.9105),
    PairQuality("int8", 0.8001, 0.7791, 0.8193, 0.9986, 0.9698),
    PairQuality("binary", 0.7012, 0.6801, 0.7203, 0.8752, 0.8499),
)
QUALITY = EmbedQuality(
    precision="int8",
    pairs=1379,
    teacher=0.8250,
    forms=FORMS,
    likeness=TeacherLikeness(rows=2500, cosine=0.9123, worst=0.7654, similarities=0.8888, overlap=0.6123),
    neighbours=NeighbourAccuracy(rows=3080, student=0.9012, teacher=0.9234),
)
FP32 = replace(QUALITY, precision="fp32", forms=(replace(FORMS[0], spearman=0.8100), *FORMS[1:]))


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory, build_bundle: Callable[..., Path]) -> Manifest:
    """Of the toy embedder."""
    return load_bundle(build_bundle(tmp_path_factory.mktemp("bundles") / "embed", task="embed")).manifest


@pytest.fixture
def card(manifest: Manifest) -> EmbedCard:
    """With measurements only."""
    return EmbedCard(manifest, (QUALITY, FP32))


def with_provenance(card: EmbedCard, **fields: object) -> EmbedCard:
    provenance = card.manifest.provenance.model_copy(update=fields)
    return replace(card, manifest=card.manifest.model_copy(update={"provenance": provenance}))


def test_the_card_and_its_plot_are_written_and_named(card: EmbedCard, tmp_path: Path) -> None:
    written = write_embed_card(card, tmp_path / "new" / "folder")
    assert written == ("card.md", "card/forms.png")
    text = (tmp_path / "new" / "folder" / "card.md").read_text()
    assert "](card/forms.png)" in text
    assert (tmp_path / "new" / "folder" / "card" / "forms.png").read_bytes().startswith(b"\x89PNG")


def test_the_summary_is_of_the_default_precision(card: EmbedCard) -> None:
    text = render_embed_card(card)
    head = text.split("## Quality")[0]
    assert head.startswith("# toy-embed\n")
    assert "An embed student of 6 dimensions, up to 32 tokens; teacher: not stated." in head
    assert (
        "Spearman correlation with people's scores on 1,379 test pairs (int8): 0.8012 (95% bootstrap interval "
        "0.7801 to 0.8203); teacher 0.8250, retention 0.9711."
    ) in head


def test_every_form_of_every_precision_has_its_row(card: EmbedCard) -> None:
    text = render_embed_card(card)
    assert "| full | 0.8012 | 0.7801 to 0.8203 | 1.0000 | 0.9711 |" in text
    assert "| first 4 | 0.7512 | 0.7301 to 0.7703 | 0.9376 | 0.9105 |" in text
    sections = text.split("### fp32")
    assert "### int8" in sections[0]
    assert "| full | 0.8100 |" in sections[1]
    assert text.count("| binary | 0.7012 |") == 2


def test_likeness_and_neighbours_are_told_where_they_were_measured(card: EmbedCard) -> None:
    text = render_embed_card(card)
    assert "on 2,500 texts nobody trained on: mean cosine 0.9123 (0.7654 at the first percentile)" in text
    assert "0.8888; of a text's ten nearest others 61.2% are the teacher's ten." in text
    assert "3,080 test rows: 90.12% right, with the teacher's vectors 92.34%." in text
    bare = replace(QUALITY, likeness=None, neighbours=None)
    text = render_embed_card(replace(card, qualities=(bare,)))
    assert "nobody trained on" not in text
    assert "ten nearest labelled" not in text


def test_optional_sections_are_left_out_without_a_trace(card: EmbedCard) -> None:
    text = render_embed_card(card)
    for title in ("Plots", "Other seeds", "Gates"):
        assert f"## {title}" not in text
    assert "\n\n\n" not in text
    gates = (GateResult("cosine, int8", ">= 0.8", "0.9123", True), GateResult("bytes", "<= 10", "12", False))
    full = render_embed_card(replace(card, gates=gates))
    assert "| cosine, int8 | >= 0.8 | 0.9123 | passed |" in full
    assert "| bytes | <= 10 | 12 | FAILED |" in full


def test_one_seed_is_no_comparison(card: EmbedCard) -> None:
    seeds = (EmbedSeed.of(0, QUALITY), EmbedSeed.of(7, FP32))
    assert "## Other seeds" not in render_embed_card(replace(card, seeds=seeds[:1]))
    text = render_embed_card(replace(card, seeds=seeds))
    assert "| 0 | 0.8012 | 0.9711 | 0.9123 |" in text
    assert "| 7 | 0.8100 | 0.9711 | 0.9123 |" in text


def test_a_seed_without_likeness_has_no_cosine() -> None:
    assert math.isnan(EmbedSeed.of(0, replace(QUALITY, likeness=None)).cosine)


def test_size_data_and_making_are_told(card: EmbedCard) -> None:
    source = DataSource(role="train", name="set/texts.jsonl", sha256="a" * 64, rows=9, licence="CC BY-NC 4.0")
    recipe = {"description": "Vectors of short texts."}
    total = sum(entry.bytes for entry in card.manifest.files.values())
    text = render_embed_card(
        replace(
            with_provenance(card, data=(source,), recipe=recipe, recipe_sha256="d" * 64, teacher="a teacher"),
            teacher_bytes=4 * total,
            data_notes=("9 texts read",),
            receipts=("static int8: 10 -> 5 bytes",),
            commands=("understudy refresh near.yaml",),
            costs=("embedder: 60 s",),
        )
    )
    for words in (
        "Vectors of short texts.",
        "teacher: a teacher.",
        "(4.0 times as much)",
        "| train | set/texts.jsonl | 9 | CC BY-NC 4.0 |",
        "**Restricted to non-commercial use or research by its data:** CC BY-NC 4.0.",
        "- 9 texts read",
        "static int8: 10 -> 5 bytes",
        f"- recipe digest: `{'d' * 64}`",
        "understudy refresh near.yaml",
        "embedder: 60 s",
    ):
        assert words in text


def test_the_limits_hold_for_any_recipe(card: EmbedCard) -> None:
    """What the card does not say names no data set or language, which are the recipe's."""
    limits = render_embed_card(card).split("## What this card does not say")[1]
    assert "space_id" in limits
    assert "Cosines are not probabilities" in limits
    assert "English" not in limits


def test_the_manifest_gets_the_numbers_of_each_precision() -> None:
    found = quality_for_manifest((QUALITY, FP32))
    assert (found.split, found.rows, found.teacher) == ("test", 1379, {"spearman": 0.8250})
    assert {name: shares[0].metrics["spearman"] for name, shares in found.by_precision.items()} == {
        "int8": 0.8012,
        "fp32": 0.81,
    }
    (shares,) = found.by_precision["int8"]
    assert (shares.risk, shares.exit_shares, shares.mean_depth) == (None, (1.0,), 1.0)
    assert shares.metrics == {
        "spearman": 0.8012,
        "retention": 0.9711,
        "spearman_first_4": 0.7512,
        "spearman_int8": 0.8001,
        "spearman_binary": 0.7012,
        "cosine_teacher": 0.9123,
    }
    (bare,) = quality_for_manifest((replace(QUALITY, likeness=None),)).by_precision["int8"]
    assert "cosine_teacher" not in bare.metrics


def test_the_plot_is_a_small_png_and_repeatable(tmp_path: Path) -> None:
    plot_forms(tmp_path / "first.png", QUALITY)
    plot_forms(tmp_path / "second.png", QUALITY)
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "second.png").read_bytes()
    assert 1_000 < (tmp_path / "first.png").stat().st_size < 60_000
    plot_forms(tmp_path / "other.png", FP32)
    assert (tmp_path / "first.png").read_bytes() != (tmp_path / "other.png").read_bytes()


@pytest.mark.parametrize(("low", "high"), [(0.81, 0.9), (0.7, 0.79), (math.nan, math.nan)])
def test_an_interval_beside_its_value_is_plotted_too(tmp_path: Path, low: float, high: float) -> None:
    odd = replace(FORMS[0], low=low, high=high)
    plot_forms(tmp_path / "odd.png", replace(QUALITY, forms=(odd, *FORMS[1:])))
    assert (tmp_path / "odd.png").stat().st_size > 1_000

"""The report card of a ranker: card.md and its picture, from measurements that were made elsewhere."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from models.evaluate.metrics import Interval
from models.evaluate.rank_tables import rankers_table, spanned
from models.evaluate.ranking import RankComparison, RankQuality
from models.evaluate.tables import markdown
from models.report.card import FILE, FOLDER, GateResult, data_section, gates_table, made_section, size_section
from service.bundle.manifest import ExitShares, Manifest, Quality

COMPARED = ("ndcg@10", "mrr@10", "map")
"""The measures that are compared with the teacher's and the baselines'."""

_SIZE, _DOTS_PER_INCH = (7.0, 3.6), 80
_LEGEND = (
    "Means over the queries with a relevant passage, on the passages of a query's list, with 95% bootstrap intervals "
    "over the queries. What is relevant and in no list counts as not found, in every measure. `given` is the order in "
    "which the candidates came, `bm25` that of a BM25 (k1 0.9, b 0.4) over the lists' passages, `bi-encoder` the "
    "cosine of the teacher's encoder before it was fine-tuned, `teacher` the cross-encoder the student was made of."
)
_LIMITS = """\
- A ranker orders the passages it is given; what the first stage did not find it cannot find either. Other candidates
  than those of these test sets may go otherwise, and so may other languages and longer passages.
- Scores order the passages of one query. Between queries they are not calibrated, and they are no probabilities.
- The teacher's scores were computed with bfloat16 products where the processor has them; the student's are those of
  the exported graphs.
- Where a test set is public, the teacher's own training data may have held similar texts."""


@dataclass(frozen=True, slots=True)
class RankSeed:
    """One seed's student on one test, in the precision served by default; retention is of the teacher's nDCG@10."""

    seed: int
    test: str
    ndcg: float
    mean_average_precision: float
    retention: float


def seed_results(seed: int, comparisons: Sequence[RankComparison]) -> tuple[RankSeed, ...]:
    """The short form of a seed's measurements, one a test."""
    return tuple(
        RankSeed(
            seed=seed,
            test=each.split,
            ndcg=each.students[0].value("ndcg@10"),
            mean_average_precision=each.students[0].value("map"),
            retention=_of_teacher(each.students[0], "ndcg@10").value,
        )
        for each in comparisons
    )


@dataclass(frozen=True, slots=True)
class RankCard:
    """Everything the card says.

    tests: one comparison a test set, the default precision's student first in each.
    data_notes, receipts, commands, costs: one line each, as in the card of a classify student.
    """

    manifest: Manifest
    tests: tuple[RankComparison, ...]
    teacher_bytes: int | None = None
    gates: tuple[GateResult, ...] = ()
    data_notes: tuple[str, ...] = ()
    receipts: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()
    seeds: tuple[RankSeed, ...] = ()
    costs: tuple[str, ...] = ()


def write_rank_card(card: RankCard, folder: Path) -> tuple[str, ...]:
    """Write card.md and card/quality.png into a folder.

    Returns: the paths written, relative to `folder`.
    Raises: OSError: the folder cannot be written.
    """
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    plot_rankers(folder / FOLDER / "quality.png", card.tests)
    (folder / FILE).write_text(render_rank_card(card, plots=(f"{FOLDER}/quality.png",)), encoding="utf-8")
    return (FILE, f"{FOLDER}/quality.png")


def render_rank_card(card: RankCard, *, plots: Sequence[str] = ()) -> str:
    """card.md as text."""
    manifest = card.manifest
    quality = [f"{_LEGEND} Each test set was opened once.", *(comparison_section(each) for each in card.tests)]
    sections = [
        ("", _summary(card)),
        ("Quality", "\n\n".join(quality)),
        ("Plots", "\n".join(f"![{Path(plot).stem}]({plot})" for plot in plots)),
        ("Other seeds", _seeds(card.seeds)),
        ("Gates", gates_table(card.gates)),
        ("Size", size_section(manifest, teacher_bytes=card.teacher_bytes, receipts=card.receipts)),
        ("Data", data_section(manifest, notes=card.data_notes)),
        ("How it was made", made_section(manifest, commands=card.commands, costs=card.costs)),
        ("What this card does not say", _LIMITS),
    ]
    body = "\n\n".join(f"## {title}\n\n{text}" if title else text for title, text in sections if text)
    return body + "\n"


def comparison_section(comparison: RankComparison) -> str:
    """One split: every ranker's measures, and the students against the others."""
    rankers = (*comparison.students, comparison.teacher, *comparison.baselines)
    first = rankers[0]
    return "\n\n".join(
        [
            f"### {comparison.split}: {first.queries:,} queries, {first.answered:,} with a relevant passage",
            rankers_table(rankers),
            "The student against the others: ratio (for the teacher: retention) and difference of the means, paired.",
            _versus_table(comparison),
        ]
    )


def _versus_table(comparison: RankComparison) -> str:
    head = ["student, against", *(f"{name}, {kind}" for name in COMPARED for kind in ("ratio", "difference"))]
    rows = []
    for student in comparison.students:
        for other, versus in (student.versus or {}).items():
            cells = [(versus.ratio[name], versus.difference[name]) for name in COMPARED]
            rows.append([f"{student.ranker}, {other}", *(spanned(cell) for pair in cells for cell in pair)])
    return markdown(head, rows)


def _of_teacher(student: RankQuality, measure: str) -> Interval:
    assert student.versus is not None, "a student is always compared with its teacher"
    return student.versus["teacher"].ratio[measure]


def _summary(card: RankCard) -> str:
    manifest = card.manifest
    description = str(manifest.provenance.recipe.get("description", "")).strip()
    lines = [
        f"# {manifest.name}",
        "",
        *([description, ""] if description else []),
        f"A rank student that reads {_reading(manifest)}; teacher: {manifest.provenance.teacher or 'not stated'}.",
        "",
    ]
    for each in card.tests:
        student, others = each.students[0], (each.teacher, *each.baselines)
        beside = ", ".join(f"{other.ranker} {other.value('ndcg@10'):.4f}" for other in others)
        kept = _of_teacher(student, "ndcg@10")
        lines.append(
            f"- {each.split}: nDCG@10 {student.value('ndcg@10'):.4f} ({student.ranker}), {kept.value:.4f} of the "
            f"teacher's (95% interval {kept.low:.4f} to {kept.high:.4f}); {beside}."
        )
    return "\n".join(lines)


def _reading(manifest: Manifest) -> str:
    if manifest.apart:
        return f"query and passage apart, up to {manifest.max_tokens} tokens of each, and joins them"
    return f"query and passage together, up to {manifest.max_tokens} tokens"


def _seeds(seeds: Sequence[RankSeed]) -> str:
    if len({each.seed for each in seeds}) < 2:
        return ""
    head = ["test", "seed", "nDCG@10", "MAP", "÷ teacher's nDCG@10"]
    rows = [
        [s.test, str(s.seed), f"{s.ndcg:.4f}", f"{s.mean_average_precision:.4f}", f"{s.retention:.4f}"] for s in seeds
    ]
    spreads = []
    for test in dict.fromkeys(each.test for each in seeds):
        kept = [each.retention for each in seeds if each.test == test]
        spreads.append(f"{test}: retention {fmean(kept):.4f}, standard deviation {stdev(kept):.4f}")
    text = "The same recipe with other seeds; the first is this version."
    return f"{text} Over the seeds: {'; '.join(spreads)}.\n\n{markdown(head, rows)}"


def plot_rankers(path: Path, tests: Sequence[RankComparison]) -> None:
    """nDCG@10 of every ranker on every test, with intervals."""
    figure = Figure(figsize=_SIZE)
    panels = figure.subplots(1, len(tests), squeeze=False)[0]
    for panel, each in zip(panels, tests, strict=True):
        rankers = (*each.students, each.teacher, *each.baselines)
        found = [ranker.measures["ndcg@10"] for ranker in rankers]
        # subtle: a bootstrap interval of few queries need not hold the value itself
        spans = [[max(0.0, f.value - f.low) for f in found], [max(0.0, f.high - f.value) for f in found]]
        names = [ranker.ranker for ranker in rankers]
        panel.errorbar(names, [f.value for f in found], yerr=spans, fmt="o", color="#4477aa", capsize=4)
        panel.set_title(each.split, fontsize=9)
        panel.tick_params(axis="x", rotation=60, labelsize=8)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("nDCG@10")
    figure.set_layout_engine("tight")
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=_DOTS_PER_INCH, metadata={"Software": None})


def rank_quality_for_manifest(comparisons: Sequence[RankComparison]) -> Quality:
    """The manifest's short form: measures by `TEST.MEASURE`, one entry per precision."""
    students = len(comparisons[0].students)
    return Quality(
        split=", ".join(each.split for each in comparisons),
        rows=sum(each.teacher.answered for each in comparisons),
        teacher={f"{c.split}.{name}": c.teacher.value(name) for c in comparisons for name in COMPARED},
        by_precision={
            comparisons[0].students[at].ranker: (_short([c.students[at] for c in comparisons], comparisons),)
            for at in range(students)
        },
    )


def _short(students: Sequence[RankQuality], comparisons: Sequence[RankComparison]) -> ExitShares:
    found: dict[str, float] = {}
    for student, comparison in zip(students, comparisons, strict=True):
        for name in COMPARED:
            found[f"{comparison.split}.{name}"] = student.value(name)
            found[f"{comparison.split}.{name}_retention"] = _of_teacher(student, name).value
    return ExitShares(risk=None, exit_shares=(1.0,), mean_depth=1.0, metrics=found)

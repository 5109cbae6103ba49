"""A certificate for a further backend: same graphs and rows, own thresholds, nothing published when in doubt."""

import io
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import typer
import yaml
from click.testing import Result
from typer.testing import CliRunner

from models.data.cuts import prepare
from models.errors import GateFailed, OfflineError
from models.evaluate.exits import exit_taken
from models.evaluate.quality import layers_of
from models.evaluate.scores import exit_logits, exit_rows, labels_of
from models.evaluate.variants import BackendRefused, Variant, backend_libraries, require_backends
from models.recipe.read import read_recipe
from models.refresh import certify as job
from models.refresh.card_files import replace_card_files
from models.refresh.certify import NotCertifiable, Wish, certify
from models.refresh.certify_command import command
from models.refresh.job import Published
from models.refresh.progress import Reporter
from models.refresh.proving import certificates_of
from models.report.frontier_section import with_frontier
from service.bundle.load import Bundle
from service.bundle.manifest import dump_manifest
from service.errors import GoldenMismatch, UnknownVersion
from service.runtime.student import Student
from service.store.store import Store

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


class Place:
    """A store of this test's own, and the verb in it."""

    def __init__(self, refreshed: Path, store: Path) -> None:
        shutil.copytree(refreshed / "store", store)
        self.recipe, self.store = refreshed / "recipe.yaml", store
        self.said = io.StringIO()

    def certify(self, backend: str, **wish: object) -> Published:
        asked = {"student": "toy-intent@1", "backend": backend, "store": self.store, **wish}
        return certify(Wish(**asked), Reporter(self.said))

    def open(self, version: int) -> Bundle:
        return Store(self.store).open("toy-intent", version)

    def versions(self) -> list[int]:
        return Store(self.store).versions("toy-intent")

    def edit(self, change: Callable[[dict], None]) -> None:
        """Rewrite version 1's manifest."""
        path = self.store / "toy-intent" / "1" / "manifest.json"
        document = json.loads(path.read_text())
        change(document)
        path.write_text(json.dumps(document))


@pytest.fixture
def place(refreshed: Path, tmp_path: Path) -> Place:
    return Place(refreshed, tmp_path / "store")


def test_the_next_version_is_the_same_student_with_one_more_certificate(place: Place, louder: str) -> None:
    aliases = (place.store / "toy-intent" / "aliases.json").read_bytes()
    published = place.certify(louder)
    assert (published.version, published.alias, published.new) == (2, None, True)
    before, after = place.open(1).manifest, place.open(2).manifest
    files = set(before.files) - {"card.md"}
    assert {file: after.files[file] for file in files} == {file: before.files[file] for file in files}
    assert after.certificates[: len(before.certificates)] == before.certificates
    (added,) = after.certificates[len(before.certificates) :]
    assert (added.backend, added.precision) == ("louder", "int8")
    first = before.certificate(backend="onnxruntime", precision="int8")
    assert first is not None
    said = ("confidence", "delta", "population", "population_digest", "reference", "input_policy")
    assert [getattr(added, name) for name in said] == [getattr(first, name) for name in said]
    assert [point.risk for point in added.points] == [0.05, 0.1]
    assert after.exits == before.exits
    assert after.default_risk == before.default_risk
    assert (place.store / "toy-intent" / "aliases.json").read_bytes() == aliases


def test_exits_are_on_where_the_new_certificate_says_so(place: Place, louder: str) -> None:
    place.certify(louder)
    assert Student(place.open(1), backend=louder).policy().risk_applied is None
    assert Student(place.open(2), backend=louder).policy().risk_applied == 0.1
    assert Student(place.open(2), backend=louder, precision="fp32").policy().risk_applied is None


def test_quality_provenance_and_card_say_what_was_added(place: Place, louder: str) -> None:
    place.certify(louder)
    before, after = place.open(1), place.open(2)
    quality = after.manifest.quality
    assert quality is not None
    assert before.manifest.quality is not None
    assert quality.by_precision["int8"] == before.manifest.quality.by_precision["int8"]
    added = quality.by_precision["int8 on louder"]
    assert [setting.risk for setting in added] == [None, 0.05, 0.1]
    teacher = quality.teacher["accuracy"]
    assert added[0].metrics["retention"] == pytest.approx(added[0].metrics["accuracy"] / teacher)
    notes = after.manifest.provenance.notes
    assert notes[:-1] == before.manifest.provenance.notes
    assert notes[-1].startswith("Certificate for int8 on louder: added to version 1 by `certify` on ")
    card = (after.path / "card.md").read_text()
    assert card.index("## What the exits promise") < card.index("## Also certified: int8 on louder")
    assert card.index("## Also certified: int8 on louder") < card.index("## Quality")
    assert "**int8 on louder.** For this version, precision, backend and input policy" in card
    assert "| risk 0.1, int8 on louder |" in card
    assert layers_of(after.manifest) == (0, 1)
    assert "gate: company, int8 on louder" in place.said.getvalue()


def test_a_frontier_on_the_card_says_which_version_it_was_measured_as(place: Place, louder: str) -> None:
    bundle = place.open(1)
    card = with_frontier((bundle.path / "card.md").read_text(), "## Frontier\n\nThis version beside others.")
    assert replace_card_files(bundle, {"card.md": card.encode()})
    place.certify(louder)
    copied = (place.open(2).path / "card.md").read_text()
    assert "## Frontier\n\nMeasured as version 1, which has the same graphs and exits.\n\nThis version" in copied
    assert "Measured as version" not in (place.open(1).path / "card.md").read_text()


def test_what_the_refresh_certified_is_certified_alike_later(place: Place) -> None:
    before = place.open(1).manifest.certificate(backend="onnxruntime", precision="fp32")
    place.edit(lambda manifest: manifest["certificates"].pop(0))
    assert place.open(1).manifest.certificate(backend="onnxruntime", precision="fp32") is None
    place.certify("onnxruntime", precisions=("fp32",))
    assert place.open(2).manifest.certificate(backend="onnxruntime", precision="fp32") == before


def test_several_precisions_are_added_at_once_and_the_alias_moves(place: Place, louder: str) -> None:
    published = place.certify(louder, precisions=("fp32", "int8"), alias="canary")
    assert Store(place.store).resolve("toy-intent@canary").version == published.version == 2
    after = place.open(2).manifest
    assert {c.precision for c in after.certificates if c.backend == louder} == {"fp32", "int8"}
    card = (place.open(2).path / "card.md").read_text()
    assert card.index("## Also certified: fp32 on louder") < card.index("## Also certified: int8 on louder")


def test_the_reference_is_full_depth_on_the_same_backend(place: Place, wrong: str) -> None:
    bundle, recipe = place.open(1), read_recipe(place.recipe)
    splits = prepare(recipe)
    temperatures = [leave.temperature for leave in bundle.manifest.exits]
    rows = (splits.dev, splits.calibration)
    (found,) = certificates_of(bundle, [Variant(wrong, "int8")], recipe, temperatures=temperatures, splits=rows)
    student = Student(bundle, backend=wrong)
    logits = exit_logits(student, student.encoder.encode([row.text for row in splits.calibration]))
    seen = exit_rows(logits, temperatures=temperatures, rule=found.confidence)
    ours = Student(bundle)
    other = labels_of(exit_logits(ours, ours.encoder.encode([row.text for row in splits.calibration])))
    assert (seen.labels[:, -1] != other[:, -1]).any()
    for point in found.points:
        taken = exit_taken(seen, point.thresholds)
        answered = seen.labels[np.arange(seen.rows), taken]
        assert point.errors == (answered != seen.labels[:, -1]).sum()
    assert len(found.points) == 2


def test_doing_it_again_publishes_nothing_new(place: Place, louder: str) -> None:
    place.certify(louder)
    again = place.certify(louder, alias="canary")
    assert (again.version, again.new) == (2, False)
    assert place.versions() == [1, 2]
    assert Store(place.store).resolve("toy-intent@canary").version == 2
    assert place.certify(louder).alias is None


def test_a_version_without_a_card_or_quality_gets_both(place: Place, louder: str) -> None:
    def bare(manifest: dict) -> None:
        manifest["quality"] = None
        for file in ("card.md", "card/quality.png", "card/exits.png", "card/calibration.png"):
            manifest["files"].pop(file)

    place.edit(bare)
    place.certify(louder)
    after = place.open(2)
    assert (after.path / "card.md").read_text().startswith("# toy-intent\n\n## Also certified")
    assert after.manifest.quality is not None
    assert list(after.manifest.quality.by_precision) == ["int8 on louder"]


@pytest.mark.parametrize(
    ("change", "kept"),
    [({"rows": 7}, True), ({"teacher": {}}, False)],
    ids=["quality of other rows stays as it is", "without a teacher there is no retention"],
)
def test_quality_has_room_only_for_the_same_rows(place: Place, louder: str, change: dict, kept: bool) -> None:
    place.edit(lambda manifest: manifest["quality"].update(change))
    place.certify(louder)
    quality = place.open(2).manifest.quality
    assert quality is not None
    assert ("int8 on louder" not in quality.by_precision) is kept
    assert kept or "retention" not in quality.by_precision["int8 on louder"][0].metrics


def refused(place: Place, backend: str, error: type[Exception] = OfflineError, **wish: object) -> str:
    """The one-line message; nothing was published."""
    before = place.versions()
    with pytest.raises(error) as caught:
        place.certify(backend, **wish)
    assert place.versions() == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_rows_certify_once(place: Place) -> None:
    says = refused(place, "onnxruntime", NotCertifiable)
    assert says == "student toy-intent: int8 on onnxruntime: it has a certificate, and rows certify once"


def test_a_backend_that_does_not_compute_the_golden_samples(place: Place, wrong: str) -> None:
    assert "golden sample 0" in refused(place, wrong, GoldenMismatch)


@pytest.mark.parametrize(
    ("backend", "says"), [("auto", "--backend: auto: a certificate is for one backend"), ("abacus", "'abacus'")]
)
def test_a_backend_that_is_none(place: Place, backend: str, says: str) -> None:
    assert says in refused(place, backend, BackendRefused)


def test_a_precision_or_version_that_is_not_there(place: Place, louder: str) -> None:
    assert "no precision 'int4', only fp32, int8" in refused(place, louder, precisions=("int4",))
    assert "no version 7" in refused(place, louder, UnknownVersion, student="toy-intent@7")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: m.update(format="1.99"), "newer format"),
        (lambda m: m["provenance"].update(recipe={}), "holds no recipe"),
        (lambda m: m["provenance"].update(data=[]), "does not say which rows"),
        (lambda m: m["certificates"][0].update(population_digest="0" * 64), "calibration rows: "),
        (lambda m: m["provenance"]["data"][0].update(sha256="0" * 64), "data.train: "),
        (lambda m: m["provenance"]["data"].pop(1), "data.test: "),
        (lambda m: _source(m, "dev rows").update(sha256="0" * 64), "dev rows: "),
        (lambda m: _source(m, "gate rows").update(sha256="0" * 64), "gate rows: "),
    ],
    ids=["newer", "no recipe", "no data", "other B", "other train file", "unknown test file", "other A", "other gate"],
)
def test_what_was_not_made_from_these_rows_is_refused(
    place: Place, louder: str, change: Callable[[dict], None], says: str
) -> None:
    place.edit(change)
    assert says in refused(place, louder)


def _source(manifest: dict, role: str) -> dict:
    return next(source for source in manifest["provenance"]["data"] if source["role"] == role)


def test_an_embed_student_is_refused(store_dir: Path, louder: str) -> None:
    with pytest.raises(NotCertifiable, match="its task is embed, not classify"):
        certify(Wish("toy-embed", louder, store_dir), Reporter(io.StringIO()))


def test_one_exit_has_nothing_to_certify(place: Place) -> None:
    manifest = place.open(1).manifest
    single = manifest.model_copy(update={"exits": manifest.exits[-1:], "certificates": ()})
    with pytest.raises(NotCertifiable, match="one exit"):
        job._may_be_certified(single, [Variant("onnxruntime", "int8")])


def other_recipe(place: Place, tmp_path: Path, change: Callable[[dict], None]) -> Path:
    recipe = yaml.safe_load(place.recipe.read_text())
    change(recipe)
    path = tmp_path / "other.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda r: r.update(name="other"), "name: the recipe makes 'other', not 'toy-intent'"),
        (lambda r: r["student"].update(max_tokens=20), "student.max_tokens: 20, the version was made with 16"),
        (
            lambda r: r["data"].update(calibration={"cut": 0.3}),
            "data.calibration: a cut of 0.3, the version was made with a cut of 0.25",
        ),
        (lambda r: r["data"].update(parts="substrings"), "data.parts: substrings, the version was made with none"),
    ],
)
def test_a_recipe_of_other_rows_is_refused(
    place: Place, louder: str, tmp_path: Path, change: Callable[[dict], None], says: str
) -> None:
    recipe = read_recipe(other_recipe(place, tmp_path, change))
    assert refused(place, louder, recipe=recipe) == says


def test_data_that_changed_is_named(place: Place, louder: str, tmp_path: Path) -> None:
    data = tmp_path / "moved"
    shutil.copytree(place.recipe.parent / "data", data)

    def moved(recipe: dict) -> None:
        recipe["data"] |= {"train": str(data / "train.jsonl"), "test": str(data / "test.jsonl")}

    recipe = read_recipe(other_recipe(place, tmp_path, moved))
    with (data / "test.jsonl").open("a") as opened:
        opened.write('{"text": "the card was lost", "label": "lost_card"}\n')
    says = refused(place, louder, recipe=recipe)
    assert says.startswith(f"data.test: {data}/test.jsonl: its sha256 is ")
    assert "the version was made from data/test.jsonl" in says
    shutil.copy(place.recipe.parent / "data" / "test.jsonl", data / "test.jsonl")
    assert place.certify(louder, recipe=recipe).version == 2


def test_a_recipe_in_the_provenance_that_cannot_be_read(place: Place, louder: str) -> None:
    recipe = read_recipe(place.recipe)
    place.edit(lambda manifest: manifest["provenance"]["recipe"].update(data={"train": 7}))
    assert "cannot be read: data" in refused(place, louder, recipe=recipe)
    place.edit(lambda manifest: manifest["provenance"]["recipe"].pop("data"))
    assert place.certify(louder, recipe=recipe).version == 2


def test_no_point_means_no_version(place: Place, louder: str, tmp_path: Path) -> None:
    tight = other_recipe(place, tmp_path, lambda r: r.update(exits={"risks": [0.0001], "default_risk": 0.0001}))
    says = refused(place, louder, GateFailed, recipe=read_recipe(tight))
    assert says == "int8 on louder: nothing was published: no risk could be certified on these rows"


def test_a_gate_that_fails_publishes_nothing(place: Place, louder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "KEEPS_ACCURACY", 1.5)
    says = refused(place, louder, GateFailed)
    assert "nothing was published: accuracy at full depth, int8 on louder: " in says
    assert "required >= 1.5 of int8 on onnxruntime" in says


def run(arguments: Sequence[object]) -> Result:
    app = typer.Typer()
    app.command()(command)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_verb(place: Place, louder: str) -> None:
    arguments = ["toy-intent@canary", "--backend", louder, "--store", place.store, "--recipe", place.recipe]
    done = run([*arguments, "--alias", "production"])
    assert done.exit_code == 0, done.stderr
    assert done.stdout == f"published toy-intent@2 as toy-intent@production in {place.store}\n"
    again = run(["toy-intent", "--backend", louder, "--store", place.store, "--precision", "fp32"])
    assert again.stdout == f"published toy-intent@3 in {place.store}\n"
    twice = run(["toy-intent@1", "--backend", louder, "--store", place.store])
    assert twice.stdout == f"already published toy-intent@2 in {place.store}\n"


def test_openvino_gets_a_certificate(place: Place) -> None:
    pytest.importorskip("openvino", reason="no wheel of openvino here")
    try:
        require_backends(["openvino"], where="test")
    except BackendRefused as error:
        pytest.skip(str(error))
    place.certify("openvino")
    after = place.open(2)
    assert after.manifest.certificate(backend="openvino", precision="int8") is not None
    assert after.manifest.provenance.libraries["openvino"] == backend_libraries(["openvino"])["openvino"]
    student = Student(after, backend="openvino")
    assert student.policy().risk_applied == 0.1
    assert dump_manifest(after.manifest) == (after.path / "manifest.json").read_bytes()


def test_only_installed_libraries_are_named() -> None:
    assert set(backend_libraries(["onnxruntime", "abacus"])) == {"onnxruntime"}

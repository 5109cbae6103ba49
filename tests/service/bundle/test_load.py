"""A directory becomes a bundle, or one named error says why not."""

import hashlib
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service.bundle import load
from service.bundle.load import Bundle, file_entry, load_bundle, load_manifest
from service.errors import BundleError, DigestMismatch, FileMissing, FileTooLarge, FormatTooNew, ManifestInvalid

BuildBundle = Callable[..., Path]
GRAPH = "stages/00.fp32.onnx"


def relist(bundle: Path, file: str) -> None:
    """Write a file's present size and digest into the manifest."""
    document = json.loads((bundle / "manifest.json").read_text())
    raw = (bundle / file).read_bytes()
    document["files"][file] = {"sha256": hashlib.sha256(raw).hexdigest(), "bytes": len(raw)}
    (bundle / "manifest.json").write_text(json.dumps(document))


def change_manifest(bundle: Path, change: Callable[[dict[str, Any]], None]) -> None:
    document = json.loads((bundle / "manifest.json").read_text())
    change(document)
    (bundle / "manifest.json").write_text(json.dumps(document))


def test_loads_a_classify_bundle(classify_bundle: Path) -> None:
    bundle = load_bundle(classify_bundle)
    assert bundle.manifest.name == "toy"
    assert bundle.tokenizer_path.is_file()
    assert bundle.graph_path("int8", "01") == bundle.path / "stages" / "01.int8.onnx"
    sample = bundle.golden.samples[0]
    assert sample.text == "this film is great"
    assert sample.text_pair is None
    assert set(sample.outputs) == {"fp32", "int8"}
    assert [len(sample.outputs["fp32"][exit_id]) for exit_id in ("early", "full")] == [3, 3]


def test_loads_an_embed_bundle(embed_bundle: Path) -> None:
    assert len(load_bundle(embed_bundle).golden.samples[0].outputs["fp32"]["full"]) == 6


def test_loads_a_pair_bundle(tmp_path: Path, build_bundle: BuildBundle) -> None:
    bundle = load_bundle(build_bundle(tmp_path / "b", pairs="joint"))
    assert bundle.golden.samples[0].text_pair == "is it good?"


def test_files_that_are_not_listed_are_left_alone(classify_bundle: Path) -> None:
    (classify_bundle / "notes").symlink_to("/etc/passwd")
    os.mkfifo(classify_bundle / "pipe")
    assert "notes" not in load_bundle(classify_bundle).manifest.files


def test_no_such_graph(classify_bundle: Path) -> None:
    bundle = load_bundle(classify_bundle)
    with pytest.raises(KeyError):
        bundle.graph_path("int4", "00")
    with pytest.raises(KeyError):
        bundle.graph_path("fp32", "07")


def test_a_bundle_reached_by_a_link_is_read(classify_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(classify_bundle)
    assert load_bundle(tmp_path / "link").path == classify_bundle.resolve()


def test_a_link_inside_the_bundle_is_followed(classify_bundle: Path) -> None:
    (classify_bundle / GRAPH).rename(classify_bundle / "stages" / "real.onnx")
    (classify_bundle / GRAPH).symlink_to("real.onnx")
    assert load_bundle(classify_bundle)


def escaping_link(path: Path) -> None:
    outside = path.parents[2] / "outside"
    path.rename(outside)
    path.symlink_to(outside)


def dangling_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def link_to_itself(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("file", [GRAPH, "tokenizer.json", "golden.json", "manifest.json"])
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (Path.unlink, "not in the bundle"),
        (escaping_link, "leads outside the bundle"),
        (dangling_link, "not in the bundle"),
        (link_to_itself, "not in the bundle"),
        (directory, "not a regular file"),
        (fifo, "not a regular file"),
    ],
)
def test_a_listed_file_that_is_not_a_file_inside(
    classify_bundle: Path, file: str, damage: Callable[[Path], None], said: str
) -> None:
    damage(classify_bundle / file)
    with pytest.raises(FileMissing, match=f"^{file}: {said}"):
        load_bundle(classify_bundle)


def test_a_parent_folder_that_leads_outside(classify_bundle: Path, tmp_path: Path) -> None:
    (classify_bundle / "stages").rename(tmp_path / "elsewhere")
    (classify_bundle / "stages").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileMissing, match="leads outside"):
        load_bundle(classify_bundle)


def test_a_socket_is_not_a_file(classify_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (classify_bundle / "tokenizer.json").unlink()
    monkeypatch.chdir(classify_bundle)  # a socket's path is bounded to about 100 characters
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("tokenizer.json")
        with pytest.raises(FileMissing, match="not a regular file"):
            load_bundle(classify_bundle)


@pytest.mark.parametrize("path", ["nowhere", "manifest.json"])
def test_no_directory_there(classify_bundle: Path, path: str) -> None:
    with pytest.raises(FileMissing):
        load_bundle(classify_bundle / path)


@pytest.mark.parametrize("file", [GRAPH, "tokenizer.json", "golden.json"])
def test_one_flipped_bit(classify_bundle: Path, file: str) -> None:
    raw = bytearray((classify_bundle / file).read_bytes())
    raw[len(raw) // 2] ^= 1
    (classify_bundle / file).write_bytes(raw)
    with pytest.raises(DigestMismatch, match=f"^{file}: sha256 is"):
        load_bundle(classify_bundle)


def test_a_file_cut_short(classify_bundle: Path) -> None:
    raw = (classify_bundle / GRAPH).read_bytes()
    (classify_bundle / GRAPH).write_bytes(raw[:-1])
    with pytest.raises(DigestMismatch, match=f"^{GRAPH}: {len(raw) - 1} bytes, the manifest says {len(raw)}"):
        load_bundle(classify_bundle)


def test_a_file_longer_than_listed(classify_bundle: Path) -> None:
    with (classify_bundle / GRAPH).open("ab") as opened:
        opened.write(b"x")
    with pytest.raises(FileTooLarge, match=f"^{GRAPH}: "):
        load_bundle(classify_bundle)


def test_a_file_listed_as_over_the_bound(classify_bundle: Path) -> None:
    change_manifest(classify_bundle, lambda m: m["files"][GRAPH].update(bytes=load.MAX_FILE_BYTES + 1))
    with pytest.raises(FileTooLarge, match=f"^{GRAPH}: .* over the bound"):
        load_bundle(classify_bundle)


def test_all_files_together_over_the_bound(classify_bundle: Path) -> None:
    def listed(document: dict[str, Any]) -> None:
        for i in range(load.MAX_BUNDLE_BYTES // load.MAX_FILE_BYTES):
            document["files"][f"large{i}"] = {"sha256": "0" * 64, "bytes": load.MAX_FILE_BYTES}

    change_manifest(classify_bundle, listed)
    with pytest.raises(FileTooLarge, match=r"^all files together"):
        load_bundle(classify_bundle)


def test_a_huge_manifest_is_not_read(classify_bundle: Path) -> None:
    with (classify_bundle / "manifest.json").open("ab") as opened:
        opened.truncate(load.MAX_MANIFEST_BYTES + 1)
    with pytest.raises(FileTooLarge, match=r"^manifest\.json: "):
        load_bundle(classify_bundle)


def test_a_huge_golden_file_is_not_read(classify_bundle: Path) -> None:
    with (classify_bundle / "golden.json").open("ab") as opened:
        opened.truncate(load.MAX_GOLDEN_BYTES + 1)
    relist(classify_bundle, "golden.json")
    with pytest.raises(FileTooLarge, match=r"^golden\.json: "):
        load_bundle(classify_bundle)


def sample(document: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = document["samples"][0]
    return found


GOLDEN_WRONG: list[tuple[str, Callable[[dict[str, Any]], object], str]] = [
    ("no samples", lambda g: g.update(samples=[]), "/samples: "),
    ("no schema", lambda g: g.pop("schema"), "/schema: must be 1"),
    ("schema 0", lambda g: g.update(schema=0), "/schema: must be 1"),
    ("schema as text", lambda g: g.update(schema="1"), "/schema: must be 1"),
    ("unknown field", lambda g: g.update(colour=1), "/colour: "),
    ("unknown field of a sample", lambda g: sample(g).update(colour=1), "/samples/0/colour: "),
    ("no text", lambda g: sample(g).pop("text"), "/samples/0/text: "),
    ("a pair for a student of single texts", lambda g: sample(g).update(text_pair="x"), "takes no pairs"),
    ("no ids", lambda g: sample(g).update(input_ids=[]), "/samples/0/input_ids: "),
    ("negative id", lambda g: sample(g).update(input_ids=[2, -1, 3]), "/samples/0/input_ids/1: "),
    ("too many ids", lambda g: sample(g).update(input_ids=[2] * 33), "33 ids, over max_tokens 32"),
    ("no such precision", lambda g: sample(g)["outputs"].update(int4={}), "unknown precision 'int4'"),
    ("precision missing", lambda g: sample(g)["outputs"].pop("int8"), "no precision 'int8'"),
    ("no such exit", lambda g: sample(g)["outputs"]["int8"].update(x=[1.0]), "unknown exit 'x'"),
    ("exit missing", lambda g: sample(g)["outputs"]["int8"].pop("full"), "no exit 'full'"),
    ("too few values", lambda g: sample(g)["outputs"]["int8"]["full"].pop(), "int8/full: 2 values, not 3"),
    ("a value as text", lambda g: sample(g)["outputs"]["int8"].update(full=["1", "2", "3"]), "/int8/full/0: "),
]


@pytest.mark.parametrize(("change", "said"), [g[1:] for g in GOLDEN_WRONG], ids=[g[0] for g in GOLDEN_WRONG])
def test_golden_samples_that_are_wrong(classify_bundle: Path, change: Callable[[Any], object], said: str) -> None:
    document = json.loads((classify_bundle / "golden.json").read_text())
    change(document)
    (classify_bundle / "golden.json").write_text(json.dumps(document))
    relist(classify_bundle, "golden.json")
    with pytest.raises(ManifestInvalid, match=rf"^golden\.json: .*{said}"):
        load_bundle(classify_bundle)


def test_golden_samples_that_are_not_json(classify_bundle: Path) -> None:
    (classify_bundle / "golden.json").write_bytes(b"{")
    relist(classify_bundle, "golden.json")
    with pytest.raises(ManifestInvalid, match=r"^golden\.json: not JSON"):
        load_bundle(classify_bundle)


def test_golden_values_that_are_not_finite(classify_bundle: Path) -> None:
    text = (classify_bundle / "golden.json").read_text().replace('"full": [', '"full": [NaN, ', 1)
    (classify_bundle / "golden.json").write_text(text)
    relist(classify_bundle, "golden.json")
    with pytest.raises(ManifestInvalid, match="NaN"):
        load_bundle(classify_bundle)


def test_a_newer_golden_schema(classify_bundle: Path) -> None:
    text = (classify_bundle / "golden.json").read_text().replace('"schema": 1', '"schema": 2', 1)
    (classify_bundle / "golden.json").write_text(text)
    relist(classify_bundle, "golden.json")
    with pytest.raises(FormatTooNew, match=r"^golden\.json: "):
        load_bundle(classify_bundle)


def test_a_newer_minor_may_add_to_the_golden_samples(classify_bundle: Path) -> None:
    document = json.loads((classify_bundle / "golden.json").read_text())
    document["samples"][0]["added"] = 1
    (classify_bundle / "golden.json").write_text(json.dumps(document))
    relist(classify_bundle, "golden.json")
    change_manifest(classify_bundle, lambda m: m.update(format="1.9"))
    assert load_bundle(classify_bundle).manifest.format == "1.9"


def test_the_manifest_alone_can_be_read_when_another_file_is_broken(classify_bundle: Path) -> None:
    (classify_bundle / GRAPH).unlink()
    assert load_manifest(classify_bundle).name == "toy"


def test_a_file_entry_is_its_size_and_digest(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    entry = file_entry(tmp_path / "f")
    assert (entry.bytes, entry.sha256) == (3, hashlib.sha256(b"abc").hexdigest())


def test_every_refusal_is_a_bundle_error_and_has_its_own_code() -> None:
    kinds = [ManifestInvalid, FormatTooNew, FileMissing, FileTooLarge, DigestMismatch]
    assert all(issubclass(kind, BundleError) for kind in kinds)
    assert len({kind.code for kind in kinds}) == len(kinds)
    assert Bundle.__doc__

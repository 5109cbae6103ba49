"""The command line: what the verbs print, and how everything that goes wrong ends."""

import json
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from service import cli
from service.bundle.manifest import parse_manifest
from service.store.store import Store

BuildBundle = Callable[..., Path]

VERBS = '''
from typing import Annotated
import typer
class GateFailed(Exception):
    exit_status = 3
def refresh(recipe: str, dry_run: Annotated[bool, typer.Option("--dry-run", help="Only look.")] = False) -> None:
    """Make a student.

    Args:
        recipe: a file.
    """
    if recipe == "gate":
        raise GateFailed("gate retention:\\n 0.9 is below 0.985")
    if recipe == "interrupt":
        raise KeyboardInterrupt
    if recipe == "bug":
        raise RuntimeError("a bug")
    if recipe == "late":
        import a_library_that_is_not_installed
    if recipe == "missed":
        raise typer.Exit(1)
    typer.echo(f"{recipe} {dry_run}")
'''


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command line: its status, standard output and standard error."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        status = cli.run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


Said = Callable[..., tuple[int, str, str]]


@pytest.fixture
def verbs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two installed verbs: `refresh`, and `broken`, whose libraries are missing."""
    (tmp_path / "toy_verbs.py").write_text(VERBS)
    (tmp_path / "toy_broken_verb.py").write_text("import a_library_that_is_not_installed")
    monkeypatch.syspath_prepend(tmp_path)
    points = [
        EntryPoint("refresh", "toy_verbs:refresh", cli.ENTRY_POINTS),
        EntryPoint("broken", "toy_broken_verb:verb", cli.ENTRY_POINTS),
    ]
    monkeypatch.setattr(cli, "entry_points", lambda group: points)
    monkeypatch.delitem(sys.modules, "toy_verbs", raising=False)


def test_lists_versions_with_aliases(said: Said, store_dir: Path, build_bundle: BuildBundle) -> None:
    build_bundle(store_dir / "toy" / "2")
    Store(store_dir).set_alias("toy", "a-canary", 1)
    status, out, err = said("models", "list", "--store", store_dir)
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].startswith("toy@1 [production, a-canary]  classify, 2 exits, fp32 0.0 MB, int8 0.0 MB")
    assert lines[1].startswith("toy@2  classify")
    assert lines[2].startswith("toy-embed@1 [production]  embed, 1 exits")


def test_lists_what_is_broken_beside_what_is_not(said: Said, store_dir: Path, build_bundle: BuildBundle) -> None:
    build_bundle(store_dir / "other" / "1", name="other")
    (store_dir / "other" / "aliases.json").write_text("{")
    (store_dir / "toy" / "1" / "manifest.json").write_text("[]")
    status, out, _ = said("models", "list", "--store", store_dir)
    assert status == 0
    assert out.splitlines()[0].startswith("other  broken: other/aliases.json: not JSON")
    assert out.splitlines()[1] == "toy@1 [production]  broken: manifest.json: not an object"
    assert out.splitlines()[2].startswith("toy-embed@1 [production]  embed")


def test_shows_a_version(said: Said, store_dir: Path) -> None:
    status, out, _ = said("models", "show", "toy", "--store", store_dir)
    assert status == 0
    assert out.startswith("toy@1 [production]\n  format 1.0, task classify, at most 32 tokens, pairs none\n")
    for line in (
        "3 labels: negative, neutral, positive",
        "exit early after stage 00: depth 0.250",
        "precision int8 (default)",
        "certified on onnxruntime, fp32, max_probability: risk 0.01 (delta 0.05): 3 of 1000 rows differed",
        "made by test, 2025-01-01T00:00:00Z",
    ):
        assert f"  {line}" in out
    assert "space toy-space-1, 6 dimensions" in said("models", "show", "toy-embed@1", "--store", store_dir)[1]


def test_shows_measured_quality(said: Said, store_dir: Path, build_bundle: BuildBundle) -> None:
    shares = {"exit_shares": [0.6, 0.4], "mean_depth": 0.55}
    settings = [{"risk": None, "metrics": {"accuracy": 0.92}, **shares}, {"risk": 0.01, "metrics": {}, **shares}]
    quality = {"split": "test", "rows": 10, "by_precision": {"int8": settings}}
    build_bundle(store_dir / "toy" / "2", change=lambda manifest: manifest.update(quality=quality))
    out = said("models", "show", "toy@2", "--store", store_dir)[1]
    assert "  test (10 rows), int8, full depth: accuracy 0.9200\n" in out


def test_shows_the_manifest_as_json(said: Said, store_dir: Path) -> None:
    out = said("models", "show", "toy", "--json", "--store", store_dir)[1]
    assert parse_manifest(out.encode()) == Store(store_dir).open("toy", 1).manifest


def test_verifies_every_precision(said: Said, store_dir: Path) -> None:
    assert said("models", "verify", "toy", "--store", store_dir) == (
        0,
        "toy@1 fp32 on onnxruntime: OK\ntoy@1 int8 on onnxruntime: OK\n",
        "",
    )
    assert said("models", "verify", "toy-embed@1", "--store", store_dir)[0] == 0


def test_verify_refuses_other_golden_outputs_in_one_line(said: Said, tmp_path: Path, build_bundle: BuildBundle) -> None:
    first, second = build_bundle(tmp_path / "store/toy/1"), build_bundle(tmp_path / "second", seed=9)
    document = json.loads((first / "manifest.json").read_text())
    other = json.loads((second / "manifest.json").read_text())
    (first / "golden.json").write_bytes((second / "golden.json").read_bytes())
    document["files"]["golden.json"] = other["files"]["golden.json"]
    (first / "manifest.json").write_text(json.dumps(document))
    status, out, err = said("models", "verify", "toy@1", "--store", tmp_path / "store")
    assert (status, out) == (2, "")
    assert err.startswith("understudy: toy fp32 on onnxruntime: golden sample 0")
    assert err.count("\n") == 1


def test_verify_refuses_a_damaged_file(said: Said, store_dir: Path) -> None:
    path = store_dir / "toy" / "1" / "tokenizer.json"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    status, _, err = said("models", "verify", "toy", "--store", store_dir)
    assert status == 2
    assert err.startswith("understudy: tokenizer.json: sha256 is ")


def test_moves_an_alias(said: Said, store_dir: Path, build_bundle: BuildBundle) -> None:
    build_bundle(store_dir / "toy" / "2")
    done = said("models", "alias", "toy@2", "canary", "--weight", "0.05", "--store", store_dir)
    assert done == (0, "toy@canary -> version 2\n", "")
    assert said("models", "alias", "toy@canary", "production", "--store", store_dir)[0] == 0
    assert Store(store_dir).resolve("toy").version == 2
    assert Store(store_dir).aliases("toy").aliases["canary"].weight == 0.05


def test_moves_an_alias_to_another_space_only_when_told(said: Said, store_dir: Path, build_bundle: BuildBundle) -> None:
    build_bundle(store_dir / "toy-embed" / "2", task="embed", space_id="toy-space-2")
    command = ("models", "alias", "toy-embed@2", "production", "--store", store_dir)
    status, _, err = said(*command)
    assert (status, "embedding space" in err) == (2, True)
    assert said(*command, "--allow-new-space")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("models show nobody", "no student 'nobody'"),
        ("models show toy@9", "no version 9"),
        ("models verify toy@canary", "no alias 'canary'"),
        ("models alias toy 7", "'7' cannot be an alias"),
        ("models alias toy canary --weight 2", "weight 2.0"),
        ("models verify toy --backend abacus", "abacus"),
    ],
)
def test_what_the_user_can_mend_is_one_line_and_status_2(
    said: Said, store_dir: Path, arguments: str, message: str
) -> None:
    status, out, err = said(*arguments.split(), "--store", store_dir)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("understudy: ")
    assert message in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "Missing command"),
        ("modles", "No such command"),
        ("models show", "Missing argument"),
        ("models list --colour", "--colour"),
        ("models list --store nowhere", "nowhere: no such store"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_status_2(said: Said, arguments: str, message: str) -> None:
    status, out, err = said(*arguments.split())
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert message in err


def test_the_store_may_come_from_the_environment(said: Said, store_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDERSTUDY_STORE", str(store_dir))
    assert said("models", "show", "toy")[0] == 0


@pytest.mark.usefixtures("verbs")
class TestVerbsOfOtherPackages:
    def test_help_lists_them_without_importing_them(self, said: Said) -> None:
        status, out, _ = said("--help")
        assert status == 0
        assert "refresh" in out
        assert "broken" in out
        assert "toy_verbs" not in sys.modules

    def test_their_own_help_shows_their_options(self, said: Said) -> None:
        status, out, _ = said("refresh", "--help")
        assert status == 0
        assert "Make a student." in out
        assert "--dry-run" in out
        assert "Args:" not in out

    def test_they_run(self, said: Said) -> None:
        assert said("refresh", "r.yaml", "--dry-run") == (0, "r.yaml True\n", "")

    def test_their_errors_carry_their_status(self, said: Said) -> None:
        assert said("refresh", "gate") == (3, "", "understudy: gate retention: 0.9 is below 0.985\n")

    def test_they_may_exit_with_a_status(self, said: Said) -> None:
        assert said("refresh", "missed")[0] == 1

    def test_an_interrupt_is_130(self, said: Said) -> None:
        assert said("refresh", "interrupt")[0] == 130

    def test_a_bug_keeps_its_traceback(self, said: Said) -> None:
        with pytest.raises(RuntimeError, match="a bug"):
            said("refresh", "bug")

    @pytest.mark.parametrize("arguments", [("broken",), ("broken", "--help"), ("refresh", "late")])
    def test_a_missing_offline_half_is_named(self, said: Said, arguments: tuple[str, ...]) -> None:
        status, out, err = said(*arguments)
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert "pip install 'understudy[offline]'" in err
        assert "make install-offline" in err


def in_another_process(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False, timeout=60)


def test_help_needs_neither_the_runtime_nor_the_service() -> None:
    heavy = "'onnxruntime', 'numpy', 'tokenizers', 'fastapi', 'uvicorn', 'torch', 'models'"
    script = (
        f"import sys; from service.cli import run; run(['--help']); print([m for m in ({heavy}) if m in sys.modules])"
    )
    ended = in_another_process("-c", script)
    assert ended.returncode == 0, ended.stderr
    assert "serve" in ended.stdout
    assert ended.stdout.endswith("[]\n")


def test_runs_as_a_module(store_dir: Path) -> None:
    ended = in_another_process("-m", "service.cli", "models", "list", "--store", str(store_dir))
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "toy@1 [production]" in ended.stdout
    ended = in_another_process("-m", "service.cli", "models", "show", "nobody", "--store", str(store_dir))
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("understudy: no student 'nobody'")


def test_serve_is_registered() -> None:
    assert cli.lazy_verbs()["serve"].target == "service.api.serve_command:serve"

"""`understudy models promote | rollback | gc` and `understudy keys new`."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from service import cli
from service.api.keys import digest_of, read_keys
from service.store.store import Store

Said = Callable[..., tuple[int, str, str]]


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str], store_dir: Path, build_bundle: Callable[..., Path]) -> Said:
    """Run a command line on a store whose `toy` has four versions: its status, standard output and standard error."""
    for version in (2, 3, 4):
        build_bundle(store_dir / "toy" / str(version), seed=version)

    def run(*arguments: str, store: Path | None = store_dir) -> tuple[int, str, str]:
        status = cli.run([*arguments, *(() if store is None else ("--store", str(store)))])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def test_promotes_the_canary_and_rolls_back(said: Said, store_dir: Path) -> None:
    Store(store_dir).set_alias("toy", "canary", 3)
    assert said("models", "promote", "toy") == (0, "toy@production -> version 3\n", "")
    Store(store_dir).set_alias("toy", "next", 4)
    assert said("models", "promote", "toy", "--from", "next") == (0, "toy@production -> version 4\n", "")
    assert said("models", "rollback", "toy") == (0, "toy@production -> version 3\n", "")
    assert said("models", "rollback", "toy") == (0, "toy@production -> version 1\n", "")
    assert said("models", "rollback", "toy")[::2] == (
        2,
        "understudy: toy@production: no version before 1 is known\n",
    )


def test_rolls_another_alias_back(said: Said, store_dir: Path) -> None:
    for version in (3, 4):
        Store(store_dir).set_alias("toy", "canary", version)
    assert said("models", "rollback", "toy", "--alias", "canary") == (0, "toy@canary -> version 3\n", "")


def test_another_space_must_be_asked_for(said: Said, store_dir: Path, build_bundle: Callable[..., Path]) -> None:
    build_bundle(store_dir / "toy-embed" / "2", task="embed", space_id="toy-space-2")
    Store(store_dir).set_alias("toy-embed", "canary", 2)
    status, _, err = said("models", "promote", "toy-embed")
    assert (status, "embedding space" in err) == (2, True)
    assert said("models", "promote", "toy-embed", "--allow-new-space")[0] == 0
    assert said("models", "rollback", "toy-embed")[0] == 2
    assert said("models", "rollback", "toy-embed", "--allow-new-space")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("models promote toy", "no alias 'canary'"),
        ("models promote nobody", "no student 'nobody'"),
        ("models rollback nobody", "no student 'nobody'"),
        ("models gc nobody", "no student 'nobody'"),
        ("models gc --keep 0", "--keep"),
    ],
)
def test_what_the_user_can_mend_is_one_line(said: Said, arguments: str, message: str) -> None:
    status, out, err = said(*arguments.split())
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert message in err


def test_deletes_old_versions_of_every_student(said: Said, store_dir: Path) -> None:
    assert said("models", "gc", "--dry-run", "--keep", "1") == (
        0,
        "toy@2 would be deleted\ntoy@3 would be deleted\n",
        "",
    )
    assert Store(store_dir).versions("toy") == [1, 2, 3, 4]
    assert said("models", "gc") == (0, "", "")
    assert said("models", "gc", "toy", "--keep", "2") == (0, "toy@2 deleted\n", "")
    assert Store(store_dir).versions("toy") == [1, 3, 4]


def test_a_new_key_is_told_once_beside_its_entry(said: Said, tmp_path: Path) -> None:
    status, out, err = said("keys", "new", "web", store=None)
    assert status == 0
    key = re.fullmatch(r"key \(told this once\): (\S+)\n", err)
    assert key is not None
    assert json.loads(out) == {"name": "web", "sha256": digest_of(key[1])}
    (tmp_path / "keys.json").write_text(json.dumps({"schema": 1, "keys": [json.loads(out)]}))
    assert [entry.name for entry in read_keys(tmp_path / "keys.json")] == ["web"]


def test_a_key_needs_a_plain_name(said: Said) -> None:
    status, out, err = said("keys", "new", "no spaces", store=None)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("understudy: 'no spaces' cannot be a key's name: /name: ")

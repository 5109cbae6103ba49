"""Steps run once for each digest of their inputs; unfinished ones are continued or redone."""

from pathlib import Path

import pytest

from models.refresh.cache import RunsBusy, StepCache, sole_user


def test_a_finished_step_is_not_run_again(tmp_path: Path):
    calls: list[Path] = []
    for _ in range(2):
        cache = StepCache(tmp_path)
        folder = cache.run("train", {"seed": 0}, calls.append)
    assert calls == [folder]
    assert [receipt.cached for receipt in cache.receipts] == [True]


def test_other_inputs_are_another_step(tmp_path: Path):
    cache = StepCache(tmp_path)
    first = cache.run("train", {"seed": 0}, lambda folder: None)
    assert cache.run("train", {"seed": 1}, lambda folder: None) != first


@pytest.mark.parametrize("resume", [True, False])
def test_an_unfinished_step_keeps_its_checkpoint_only_when_resumed(tmp_path: Path, resume: bool):
    def interrupted(folder: Path) -> None:
        (folder / "checkpoint").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        StepCache(tmp_path).run("train", {}, interrupted)
    found: list[bool] = []
    StepCache(tmp_path, resume=resume).run("train", {}, lambda folder: found.append((folder / "checkpoint").exists()))
    assert found == [resume]


def test_two_refreshes_do_not_share_a_runs_folder(tmp_path: Path):
    with sole_user(tmp_path), pytest.raises(RunsBusy, match="another refresh"), sole_user(tmp_path):
        raise AssertionError("entered twice")
    with sole_user(tmp_path):
        assert (tmp_path / ".lock").exists()

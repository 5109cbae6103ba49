"""Arrays to files."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.refresh.arrays import save_array


@pytest.mark.parametrize("array", [np.arange(6, dtype=np.int64), np.ones((3, 2), np.float16), np.zeros((0, 4))])
def test_an_array_is_written_as_numpy_does(tmp_path: Path, array: np.ndarray) -> None:
    save_array(tmp_path / "a.npy", array)
    own = io.BytesIO()
    np.save(own, array)
    assert (tmp_path / "a.npy").read_bytes() == own.getvalue()
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy", mmap_mode="r" if array.size else None), array)


def test_an_interrupt_while_it_is_written_stays_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.arange(6)

    class Interrupted(io.FileIO):
        def write(self, data: Any) -> int:
            if len(data) == array.nbytes:
                raise KeyboardInterrupt
            return super().write(data)

    # what numpy takes for a file it writes behind our back, and makes of an interrupt what it likes
    with Interrupted(tmp_path / "a.npy", "wb") as file:
        np.save(file, array)
    monkeypatch.setattr(Path, "open", lambda self, mode: Interrupted(self, mode))
    with pytest.raises(KeyboardInterrupt):
        save_array(tmp_path / "a.npy", array)

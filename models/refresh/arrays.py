"""Arrays to files, so that an interrupt stays one."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt


def save_array(path: Path, array: npt.NDArray[Any]) -> None:
    """Write an array as `numpy.save` does.

    Raises: OSError: the disk is full, or does not take it.
    """
    with path.open("wb") as file:
        # subtle: to what is a file for certain numpy writes by `tofile`, which turns Ctrl-C into a TypeError
        np.save(SimpleNamespace(write=file.write), array)

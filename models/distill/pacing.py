"""Self-paced weights: lists that the teacher is sure of count first, the others more and more, and all in the end."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.recipe.dark_examples import SelfPaced
from models.teachers.tokens import Indices

# L lists, G passages of the longest list, B lists of a batch


def confidence(teacher: Tensor, known: Tensor) -> Tensor:
    """How sure the teacher is of each list: 1 - H / log n, of the softmax of its scores of the list's n passages.

    Args:
        teacher: float32 [L, G], raw scores.
        known: bool [L, G], which passages count; those made for training should not.
    Returns: float32 [L], 0 where it scores all alike, 1 where one passage has all, or there is but one.
    Source: Tao et al. 2022 (ADAM), arXiv:2212.10192, weigh by the teacher's confidence; the entropy is a choice made
    here, since it needs no relevant passage.
    """
    logs = torch.log_softmax(teacher.masked_fill(~known, -torch.inf), dim=-1).masked_fill(~known, 0)
    entropy = -(logs.exp() * logs * known).sum(-1)
    most = known.sum(-1).clamp_min(1).float().log()
    return (1 - entropy / most.clamp_min(1e-9)).clamp(0, 1)


def difficulties(confidences: Tensor) -> npt.NDArray[np.float32]:
    """float32 [L]: the share of the other lists that are surer; 0 is the surest one, equal ones have one difficulty."""
    unsure = -confidences.numpy()
    surer = np.searchsorted(np.sort(unsure), unsure, side="left")
    return (surer / max(1, len(unsure) - 1)).astype(np.float32)


@dataclass(slots=True)
class Pace:
    """The weights of a training's lists at the step that is being done.

    The weight of a list of difficulty d at progress p = min(1, step / (end * (steps - 1))) is

        v = min(1, p + (1 - d) / (1 - start))

    so that at first the share `start` of the lists counts in full and the others linearly less, down to 0; each weight
    rises linearly over the steps, and from the share `end` of them on, the last step at the latest, all are 1.

    Source: after the linear soft weights of Jiang et al. 2014 (Easy Samples First, ACM Multimedia), whose
    v = max(0, 1 - loss / age) grows with an age; here the difficulty is the teacher's and fixed, the age the progress.

    Owner: `distil_ranker`; `fit` tells it the step.

    difficulties: float32 [L], within 0 and 1. steps: of the whole training, 1 or more.
    """

    difficulties: npt.NDArray[np.float32]
    settings: SelfPaced
    steps: int
    step: int = 0

    def begin(self, step: int) -> None:
        """Go to `step`, 0 being the first; a training that is continued does not begin there."""
        self.step = step

    def weights(self, rows: Indices) -> Tensor:
        """float32 [B], within 0 and 1: those of the lists `rows`."""
        last = self.settings.end * (self.steps - 1)
        progress = min(1.0, self.step / last) if last else 1.0
        easy = (1 - torch.from_numpy(self.difficulties[rows])) / (1 - self.settings.start)
        return (progress + easy).clamp(0, 1)

"""One training loop for teachers and students: AdamW, warm-up, weight averaging, resumable to the step.

Everything random is a function of (seed, step), so a run that was killed and resumed at a checkpoint ends with
the same weights as one that was not.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from models.teachers.tokens import Indices, shuffled_batches

Progress = Callable[[int, int, str], None]
"""Called with (steps done, steps in all, a note such as the mean loss)."""

KEPT_BYTES = (1 << 31) - 1
"""Of freed memory that a training process keeps: the activations of a step come again in the next one. Measured with
`keep_freed`: a step of a 3x384 student in bfloat16, 64 x 64 tokens, takes 15% to 20% less time."""

_SWA_SHARE = 0.3
_SWA_LEARNING_RATE = 0.25
_EMA_WINDOW = 0.05
_NOTE_STEPS = 50
_BETAS = (0.9, 0.98)
_EPS = 1e-6


@dataclass(frozen=True, slots=True)
class Group:
    """Parameters that share a learning rate (per step, before the schedule) and a weight decay.

    `sparse`: their gradients are sparse, and a step moves the rows of its batch alone; no decay, and no part in
    clipping, which Adam's own scale makes up for.
    """

    parameters: tuple[nn.Parameter, ...]
    learning_rate: float
    weight_decay: float
    sparse: bool = False


@dataclass(frozen=True, slots=True)
class Fit:
    """How to run: see `fit`. `warm_up` is a share of all steps; `average` is over the weights' path."""

    epochs: float
    batch_items: int
    warm_up: float
    average: Literal["none", "swa", "ema"]
    seed: int
    clip_norm: float = 1.0
    checkpoint_steps: int = 500


def has_fast_bf16() -> bool:
    """Whether this processor multiplies bfloat16 natively (AVX512-BF16 or AMX)."""
    checks = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(check() for check in checks if check is not None)


@contextmanager
def fast_matmul(enabled: bool = True) -> Iterator[None]:
    """bfloat16 autocast inside, where the processor is faster with it and `enabled`."""
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled and has_fast_bf16()):
        yield


def all_batches(lengths: Indices, *, settings: Fit) -> list[Indices]:
    """The batches of the whole run, epoch after epoch; a last part of an epoch where `epochs` is not whole."""
    batches: list[Indices] = []
    per_epoch = -(-len(lengths) // settings.batch_items)
    total = max(1, round(settings.epochs * per_epoch))
    epoch = 0
    while len(batches) < total:
        batches += shuffled_batches(lengths, batch_items=settings.batch_items, seed=settings.seed, epoch=epoch)
        epoch += 1
    return batches[:total]


def scheduled(step: int, *, steps: int, settings: Fit) -> float:
    """The factor on the learning rate at `step`: linear up over `warm_up`, then linear down.

    Down to 0, but with `average: swa` down to a quarter at the start of the averaged tail and constant there.
    """
    warm = max(1, round(settings.warm_up * steps))
    if step < warm:
        return (step + 1) / warm
    if settings.average != "swa":
        return max(0.0, (steps - step) / max(1, steps - warm))
    tail = _tail(steps)
    if step >= tail:
        return _SWA_LEARNING_RATE
    return 1 - (1 - _SWA_LEARNING_RATE) * (step - warm) / max(1, tail - warm)


def _tail(steps: int) -> int:
    return round(steps * (1 - _SWA_SHARE))


def fit(
    model: nn.Module,
    groups: Sequence[Group],
    loss: Callable[[Indices], Tensor],
    batches: Sequence[Indices],
    *,
    settings: Fit,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
    before_step: Callable[[int], None] | None = None,
    after_step: Callable[[int], None] | None = None,
) -> None:
    """Train `model` in place and leave the averaged weights in it.

    Args:
        model: what is trained; its whole state is checkpointed.
        groups: the trained parameters.
        loss: batch (row indices) -> float32 scalar to minimise, finite.
        batches: the row indices of every step, from `all_batches`.
        settings: see `Fit`.
        checkpoint: file written (atomically) each `checkpoint_steps`, and continued from where it exists.
        progress: told now and then.
        before_step: called with the number of steps done; for losses that change from step to step.
        after_step: called with the number of steps done; for per-epoch reports.
    Raises: FloatingPointError: the loss is not finite.
    """
    run = _Run(model, groups, settings, len(batches))
    done = run.resume(checkpoint) if checkpoint is not None and checkpoint.exists() else 0
    for step in range(done, len(batches)):
        if step % settings.checkpoint_steps == 0:
            if checkpoint is not None and step > done:
                run.save(checkpoint, step)
            torch.manual_seed(settings.seed * 1_000_003 + step)
        if before_step is not None:
            before_step(step)
        run.advance(step, loss(batches[step]))
        if after_step is not None:
            after_step(step + 1)
        if progress is not None and ((step + 1) % _NOTE_STEPS == 0 or step + 1 == len(batches)):
            progress(step + 1, len(batches), f"loss {run.recent_loss():.4f}")
    run.finish()


class _Run:
    """The state of a training: model, optimiser, averaged weights. Owner: `fit`."""

    def __init__(self, model: nn.Module, groups: Sequence[Group], settings: Fit, steps: int) -> None:
        self._model, self._settings, self._steps = model, settings, steps
        self._optimizers = _optimizers(groups)
        self._parameters = [p for group in groups for p in group.parameters]
        self._dense = [p for group in groups if not group.sparse for p in group.parameters]
        self._averaged = self._new_average()
        self._losses: list[Tensor] = []

    def _new_average(self) -> AveragedModel | None:
        if self._settings.average == "none":
            return None
        if self._settings.average == "swa":
            return AveragedModel(self._model)
        decay = 1 - 1 / max(2.0, _EMA_WINDOW * self._steps)
        return AveragedModel(self._model, multi_avg_fn=get_ema_multi_avg_fn(decay))  # type: ignore[no-untyped-call]

    def advance(self, step: int, loss: Tensor) -> None:
        factor = scheduled(step, steps=self._steps, settings=self._settings)
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["whole_rate"] * factor
            optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self._dense, self._settings.clip_norm)
        if not torch.isfinite(norm) or not torch.isfinite(loss):
            raise FloatingPointError(f"the loss or its gradient is not finite at step {step}")
        for optimizer in self._optimizers:
            optimizer.step()
        self._losses.append(loss.detach())
        averaging = self._settings.average == "ema" or step >= _tail(self._steps)
        if self._averaged is not None and averaging:
            self._averaged.update_parameters(self._model)

    def recent_loss(self) -> float:
        mean = float(torch.stack(self._losses).mean())
        self._losses.clear()
        return mean

    def finish(self) -> None:
        if self._averaged is not None and int(self._averaged.n_averaged) > 0:
            self._model.load_state_dict(self._averaged.module.state_dict())

    def save(self, path: Path, step: int) -> None:
        tensors = {f"model.{name}": value for name, value in self._model.state_dict().items()}
        for index, parameter in enumerate(self._parameters):
            for name, value in self._state_of(parameter).items():
                tensors[f"optimizer.{index}.{name}"] = torch.as_tensor(value)
        if self._averaged is not None:
            tensors |= {f"average.{name}": value for name, value in self._averaged.state_dict().items()}
        # subtle: clones, since safetensors refuses tensors that share memory
        whole = {name: value.detach().clone().contiguous() for name, value in tensors.items()}
        aside = path.with_suffix(".partial")
        save_file(whole, aside, metadata={"step": str(step), "steps": str(self._steps)})
        aside.replace(path)

    def _state_of(self, parameter: nn.Parameter) -> dict[str, Any]:
        """What its optimiser remembers of it; to be changed in place."""
        for optimizer in self._optimizers:
            if any(parameter is each for group in optimizer.param_groups for each in group["params"]):
                state: dict[str, Any] = optimizer.state[parameter]
                return state
        raise AssertionError("a parameter without an optimiser")

    def resume(self, path: Path) -> int:
        tensors = load_file(path)
        self._model.load_state_dict(_below(tensors, "model."))
        for index, parameter in enumerate(self._parameters):
            known = _below(tensors, f"optimizer.{index}.")
            # subtle: SparseAdam counts its steps in an int, and computes in another precision with a tensor
            whole = {name: int(value) if value.dtype == torch.int64 else value for name, value in known.items()}
            self._state_of(parameter).update(whole)
        if self._averaged is not None:
            self._averaged.load_state_dict(_below(tensors, "average."))
        return _step_of(path)


def _optimizers(groups: Sequence[Group]) -> list[torch.optim.Optimizer]:
    """One for all dense groups, one for all sparse ones; `whole_rate` is a group's rate before the schedule."""
    dense = [
        {"params": list(g.parameters), "lr": g.learning_rate, "weight_decay": g.weight_decay, **_whole_rate(g)}
        for g in groups
        if not g.sparse
    ]
    made: list[torch.optim.Optimizer] = [torch.optim.AdamW(dense, betas=_BETAS, eps=_EPS, fused=True)]
    sparse = [{"params": list(g.parameters), "lr": g.learning_rate, **_whole_rate(g)} for g in groups if g.sparse]
    return [*made, torch.optim.SparseAdam(sparse, betas=_BETAS, eps=_EPS)] if sparse else made


def _whole_rate(group: Group) -> dict[str, float]:
    return {"whole_rate": group.learning_rate}


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _step_of(path: Path) -> int:
    with safe_open(path, framework="numpy") as opened:
        return int(opened.metadata()["step"])


def accuracy(logits: np.ndarray[tuple[int, ...], np.dtype[np.float32]], gold: Indices) -> float:
    """Share of rows whose largest logit is the gold label's."""
    return float((logits.argmax(-1) == gold).mean())

"""What the engine tells whoever counts; the metrics implement it."""

from collections.abc import Sequence
from typing import Literal, Protocol

from service.engine.item import ServedStudent

Dropped = Literal["cancelled", "deadline", "overloaded", "late", "draining"]


class EngineObserver(Protocol):
    """Told on the event loop; must return at once and not raise."""

    def queue_items(self, student: ServedStudent, stage: str, items: int) -> None:
        """So many items wait for the stage now."""

    def queued(self, student: ServedStudent, seconds: Sequence[float]) -> None:
        """Items begin; each waited so long since its admission."""

    def batch(
        self, student: ServedStudent, stage: str, *, items: int, padded_tokens: int, real_tokens: int, seconds: float
    ) -> None:
        """A stage ran once; `seconds` inside the graph."""

    def exit(self, student: ServedStudent, exit_id: str, depth: float, items: int) -> None:
        """So many items were answered at this exit."""

    def failed(self, student: ServedStudent) -> None:
        """An item failed alone."""

    def dropped(self, student: ServedStudent, reason: Dropped, items: int) -> None:
        """So many items were refused ("late": they could not have ended in time), expired, or left by their client."""


class SilentObserver:
    """Counts nothing."""

    def queue_items(self, student: ServedStudent, stage: str, items: int) -> None:
        """Nothing."""

    def queued(self, student: ServedStudent, seconds: Sequence[float]) -> None:
        """Nothing."""

    def batch(
        self, student: ServedStudent, stage: str, *, items: int, padded_tokens: int, real_tokens: int, seconds: float
    ) -> None:
        """Nothing."""

    def exit(self, student: ServedStudent, exit_id: str, depth: float, items: int) -> None:
        """Nothing."""

    def failed(self, student: ServedStudent) -> None:
        """Nothing."""

    def dropped(self, student: ServedStudent, reason: Dropped, items: int) -> None:
        """Nothing."""

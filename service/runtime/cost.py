"""What a run of a stage costs, as a function of its shape. n items, T tokens of the longest."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StageCost:
    """Seconds of one stage run: `base_s + token_s * n * T + square_s * n * T * T`."""

    base_s: float
    token_s: float
    square_s: float = 0.0

    def seconds(self, items: int, longest: int) -> float:
        """Predicted seconds of one run.

        Args:
            items: n, how many items are in the batch.
            longest: T, the tokens each is padded to.

        >>> StageCost(base_s=1.0, token_s=0.5).seconds(2, 3)
        4.0
        """
        return self.base_s + (self.token_s + self.square_s * longest) * items * longest

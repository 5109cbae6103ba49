"""What a rank recipe says of passages made for the teacher to score, and of which lists are learned from first."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from models.recipe.parts import Count, Less, Part, Share


class DarkExamples(Part):
    """Passages of moderate relevance, made of those that are relevant; the teacher scores them like any other's.

    `of_list`: of each list with a relevant passage, at most. `mix`: share of them that join a run of a relevant
    passage's words to a run of a hard negative's; the others leave out each word of a relevant passage with the chance
    `mask`, those that the query has too with `mask_shared`.
    """

    of_list: Count = 2
    mix: Share = 0.5
    mask: Less = 0.3
    mask_shared: Share = 0.6

    @model_validator(mode="after")
    def _make_something_else(self) -> Self:
        if self.mix < 1 and not self.mask and not self.mask_shared:
            raise ValueError("mask and mask_shared are both 0: what is not mixed would be the passage itself")
        return self


class SelfPaced(Part):
    """Lists that the teacher is sure of are learned from first, and all of them in the end.

    `start`: share of the lists, the surest first, that count in full from the first step on. `end`: share of the
    steps after which all lists do.
    """

    start: Less = 0.5
    end: Annotated[float, Field(gt=0, le=1)] = 0.5

"""How a classify student is trained: objectives, augmentation, schedule."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from models.recipe.parts import Count, GrownPart, Part, Positive, Seed, Share, one_set


class SoftLabels(Part):
    """KL to the teacher's softened labels, times temperature squared."""

    temperature: Positive = 1.0


class Weighted(Part):
    """An objective with nothing to set but its weight."""

    weight: Positive = 1.0


class Objective(Part):
    """One term of the loss; exactly one key is set."""

    soft_labels: SoftLabels | None = None
    logit_mse: Weighted | None = None
    hidden: Weighted | None = None
    attention: Weighted | None = None

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        one_set(self)
        return self


class Augment(GrownPart):
    """Augmentation without a language model: `rows` variants for each training text, labelled by the teacher.

    Texts of fewer than `min_words` words (split at spaces) get none. `partners`: of pairs, so many new ones for each
    text on either side and each text of a pool, with those of other pairs that are nearest by words.
    """

    LATER: ClassVar[frozenset[str]] = frozenset({"partners"})

    rows: Annotated[int, Field(ge=0)] = 9
    partners: Annotated[int, Field(ge=0)] = 0
    min_words: Annotated[int, Field(ge=0)] = 0
    drop: Share = 0.1
    replace: Share = 0.1
    window: Share = 0.25
    mix: Share = 0.0
    seed: Seed = 0

    @model_validator(mode="after")
    def _leaves_words(self) -> Self:
        if self.drop + self.replace > 1:
            raise ValueError("drop and replace must not exceed 1 together")
        return self


ExitWeights = Literal["depth", "equal", "last-heavy", "alternating"]


class Distil(Part):
    """How the student is trained."""

    objectives: Annotated[tuple[Objective, ...], Field(min_length=1)]
    gold_weight: Share = 0.3
    augment: Augment = Augment()
    epochs: Positive = 4
    batch_items: Count = 64
    learning_rate: Positive = 1e-3
    embedding_learning_rate_factor: Positive = 1.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    warm_up: Share = 0.06
    exit_weights: ExitWeights = "depth"
    average: Literal["none", "swa", "ema"] = "swa"

"""Every error of the offline half. The command line turns each into one line and its exit status.

OfflineError              status 2 unless said otherwise
├─ RecipeInvalid          the recipe: file, key and what is wrong
├─ DataInvalid            a data file: file, line, field and what is wrong
├─ DataLeak               held-out rows occur among training rows above the allowed share
├─ TeacherInvalid         a teacher that does not load, gives NaN, or another number of labels
├─ ParityFailed           an exported graph does not compute what torch computes
├─ GateFailed             status 3: a gate failed and nothing was published
└─ AliasKept              status 4: a version was published, and its alias stays where it is
"""


class OfflineError(Exception):
    """An error the user of the offline half can act on; the message is one line."""

    exit_status = 2


class RecipeInvalid(OfflineError):
    """The recipe cannot be used as it stands."""


class DataInvalid(OfflineError):
    """A row, or a file of rows, is refused; the message says file, line and field."""


class DataLeak(OfflineError):
    """More than the allowed share of a held-out split occurs in train."""


class TeacherInvalid(OfflineError):
    """The teacher does not load, or its outputs are not usable."""


class ParityFailed(OfflineError):
    """An exported graph differs from the torch module by more than the tolerance."""


class GateFailed(OfflineError):
    """A gate of the recipe was not met; nothing was published."""

    exit_status = 3


class AliasKept(OfflineError):
    """A version was published, but the recipe's alias stays: its embeddings are of another space."""

    exit_status = 4

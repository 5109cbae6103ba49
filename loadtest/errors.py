"""Every error of the load tests; the command line turns each into one line and exit status 2.

LoadtestError
├─ ScenarioInvalid   the scenario: file, key and what is wrong
├─ TextsInvalid      a file of texts: file, line and what is wrong
├─ TargetFailed      the target cannot be reached, did not start, or answers with what cannot be used
└─ OutputFailed      a result cannot be written
"""


class LoadtestError(Exception):
    """An error the user can act on; the message is one line."""

    exit_status = 2


class ScenarioInvalid(LoadtestError):
    """The scenario cannot be used as it stands."""


class TextsInvalid(LoadtestError):
    """A file of texts, or a row of one, is refused."""


class TargetFailed(LoadtestError):
    """The server under test cannot be used."""


class OutputFailed(LoadtestError):
    """A result file cannot be written."""

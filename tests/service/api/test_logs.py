"""Log lines in both styles."""

import json
import logging
import logging.config
import sys
from typing import Any

import pytest

from service.api.logs import JsonFormatter, Rationed, TextFormatter, log_config, log_event


def _record(**fields: Any) -> logging.LogRecord:
    record = logging.LogRecord("understudy", logging.INFO, __file__, 1, "student_served", None, None)
    record.created, record.msecs = 1735689600.0, 7.0
    record.fields = fields
    return record


def test_json() -> None:
    line = JsonFormatter().format(_record(model="toy", served={"toy": [1]}, path=logging))
    assert "\n" not in line
    document = json.loads(line)
    assert document["time"] == "2025-01-01T00:00:00.007Z"
    assert (document["level"], document["event"], document["model"]) == ("info", "student_served", "toy")
    assert document["served"] == {"toy": [1]}


def test_text() -> None:
    line = TextFormatter().format(_record(model="toy", detail="two words", empty="", version=1))
    assert line == "2025-01-01T00:00:00.007Z info    student_served model=toy detail='two words' empty='' version=1"


def test_a_newline_in_a_field_does_not_forge_a_line() -> None:
    assert "\n" not in TextFormatter().format(_record(detail="a\nb"))
    assert "\n" not in JsonFormatter().format(_record(detail="a\nb"))


@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter()])
def test_tracebacks_are_told(formatter: logging.Formatter) -> None:
    record = _record()
    try:
        raise ZeroDivisionError("why")
    except ZeroDivisionError:
        record.exc_info = sys.exc_info()
    assert "ZeroDivisionError: why" in formatter.format(record)


def test_a_level_that_is_off_costs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "understudy"):
        log_event(logging.INFO, "quiet")
        log_event(logging.WARNING, "loud")
    assert [record.getMessage() for record in caplog.records] == ["loud"]


@pytest.mark.parametrize("style", ["json", "text"])
def test_the_configuration_is_one_that_logging_takes(style: Any) -> None:
    config = log_config(level="debug", style=style)
    assert logging.config.DictConfigurator(config).config["loggers"]["understudy"]["level"] == "DEBUG"


def test_what_happens_often_is_counted_and_told_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    moments = iter([0.0, 1.0, 9.9, 9.9, 10.0, 11.0, 30.0])
    rationed = Rationed("requests_refused", every_s=10, clock=lambda: next(moments))
    with caplog.at_level(logging.WARNING, "understudy"):
        for status in (429, 429, 429, 503, 429, 429, 429):
            rationed.tell(logging.WARNING, status=status)
    told = [(record.fields["status"], record.fields["times"]) for record in caplog.records]  # type: ignore[attr-defined]
    assert told == [(429, 1), (503, 1), (429, 3), (429, 2)]

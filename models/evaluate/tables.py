"""Measurements as Markdown tables, for the terminal and the report card."""

from collections.abc import Sequence

from models.evaluate.quality import ExitQuality, SettingQuality, StudentQuality
from models.evaluate.speed import Timing


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose first column is text and whose others are right-aligned; cells are escaped."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def percent(value: float | None, *, digits: int = 2) -> str:
    """A share as per cent, or a dash for None."""
    return "–" if value is None else f"{100 * value:.{digits}f}%"


def number(value: float | None, *, digits: int = 3) -> str:
    """A number, or a dash for None."""
    return "–" if value is None else f"{value:.{digits}f}"


def setting_name(setting: SettingQuality) -> str:
    """ "full depth" or "risk R"."""
    return "full depth" if setting.risk is None else f"risk {setting.risk:g}"


def exits_table(quality: StudentQuality) -> str:
    """Each exit, if everybody left there."""
    head = [
        "exit",
        "depth",
        "layers",
        "accuracy",
        "macro F1",
        "same as full depth",
        "temperature",
        "of scores",
        "ECE before",
        "ECE",
    ]
    return markdown(head, [_exit_row(leave) for leave in quality.exits])


def _exit_row(leave: ExitQuality) -> list[str]:
    return [
        leave.exit,
        percent(leave.depth, digits=1),
        "–" if leave.layers is None else str(leave.layers),
        percent(leave.accuracy),
        percent(leave.macro_f1),
        percent(leave.agreement),
        number(leave.temperature),
        number(leave.score_temperature),
        number(leave.calibration_error_raw),
        number(leave.calibration_error),
    ]


def settings_table(quality: StudentQuality) -> str:
    """Full depth and each operating point."""
    names = [leave.exit for leave in quality.exits]
    head = [
        "setting",
        "accuracy",
        "macro F1",
        "differs from full depth",
        "p",
        *names,
        "mean depth",
        "mean layers",
        "ECE",
    ]
    return markdown(head, [_setting_row(setting) for setting in quality.settings])


def _setting_row(setting: SettingQuality) -> list[str]:
    test = setting.disagreement
    return [
        setting_name(setting),
        percent(setting.accuracy),
        percent(setting.macro_f1),
        "–" if test is None else f"{test.errors} of {test.rows:,} ({percent(test.errors / test.rows)})",
        "–" if test is None else number(test.p_value),
        *(percent(share, digits=1) for share in setting.exit_shares),
        percent(setting.mean_depth, digits=1),
        number(setting.mean_layers, digits=2),
        number(setting.calibration_error),
    ]


def quality_table(quality: StudentQuality) -> str:
    """Both tables under a line that says what was measured."""
    title = f"{quality.student} {quality.precision} on {quality.backend}: {quality.rows:,} rows"
    return f"{title}\n\n{exits_table(quality)}\n\n{settings_table(quality)}\n"


def speed_table(timings: Sequence[Timing]) -> str:
    """One line per contender and mode."""
    head = ["contender", "input", "batch", "texts", "texts/s", "ms a text", "spread"]
    return markdown(head, [_timing_row(timing) for timing in timings])


def _timing_row(timing: Timing) -> list[str]:
    return [
        timing.contender,
        "ids" if timing.mode == "ids" else "texts (tokenizing timed)",
        str(timing.batch_items),
        f"{timing.rows:,}",
        f"{timing.texts_per_s:,.0f}",
        f"{timing.ms_per_text:.4f}",
        percent(timing.spread, digits=0),
    ]

"""docs/settings.md holds the table that the settings generate, and nothing else that looks like one."""

from pathlib import Path

from service.settings import settings_table

DOCUMENT = Path(__file__).parents[2] / "docs" / "settings.md"


def test_the_table_is_the_generated_one() -> None:
    lines = [line for line in DOCUMENT.read_text().splitlines() if line.startswith("|")]
    assert "\n".join(lines) + "\n" == settings_table(), "run the command in docs/settings.md and paste its output"

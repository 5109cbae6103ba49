"""The verb `understudy loadtest SCENARIO`."""

import os
from pathlib import Path
from typing import Annotated

import typer

from loadtest.plot import plot
from loadtest.report import document, scenario_lines, write_json
from loadtest.run import run_scenario
from loadtest.scenario import read_scenario

MISSED = 1


def command(
    scenario: Annotated[Path, typer.Argument(help="The scenario, a YAML file.")],
    overrides: Annotated[list[str] | None, typer.Option("--set", help="KEY.KEY=VALUE: override one key.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the result: NAME.json and NAME.png.")] = Path("runs/loadtest"),
    with_cost: Annotated[bool, typer.Option("--cost/--no-cost", help="Measure the generator's own cost.")] = True,
) -> None:
    """Send a scenario's load to a server and hold what comes back against its service level.

    Exit status: 0 the level was kept, 1 it was missed or the generator could not keep up, 2 the scenario is wrong.
    """
    wanted = read_scenario(scenario, overrides=tuple(overrides or ()))
    result = run_scenario(wanted, os.environ, say=typer.echo, with_cost=with_cost)
    for line in scenario_lines(result):
        typer.echo(line)
    json_file, png_file = out / f"{wanted.name}.json", out / f"{wanted.name}.png"
    write_json(json_file, document(result))
    plot(png_file, result)
    typer.echo(f"\nwritten: {json_file}, {png_file}")
    if not result.holds:
        raise typer.Exit(MISSED)

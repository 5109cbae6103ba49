"""Command line options that the benchmarks share."""

from pathlib import Path
from typing import Annotated

import typer

StoreOption = Annotated[Path, typer.Option("--store", envvar="UNDERSTUDY_STORE", help="The store to serve.")]
PairsOption = Annotated[int, typer.Option("--pairs", min=1, help="Interleaved pairs; a published figure needs 10.")]
SecondsOption = Annotated[float, typer.Option("--seconds", min=0.1, help="Seconds of one measurement.")]
WarmUpOption = Annotated[float, typer.Option("--warm-up", min=0.0, help="Seconds before each that do not count.")]
OutOption = Annotated[Path, typer.Option("--out", help="Folder for the result, NAME.json.")]

STORE = Path("models/store")
OUT = Path("runs/loadtest")
# `auto` would measure the other backends meanwhile
ENGINE = ("--backend", "onnxruntime")

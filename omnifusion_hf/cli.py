# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""The `omnifusion` command: its sub-commands (commands/), its version, and how it reports errors."""

import re
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Annotated

import typer

from . import __version__
from .commands import make, publish, use
from .io import is_mistake, reason_of
from .options import SETTINGS, repeat_options


# setup.py installs conversion/ inside this package; in a clone it lies beside the package.
installed = find_spec(f"{__package__}.conversion") is not None
converters = import_module(f"{__package__}.conversion.command_line" if installed else "conversion.command_line")

app = typer.Typer(help="OmniFusion: images and questions in, text out.", **SETTINGS)
app.add_typer(converters.app, name="convert", help="Convert published weights to folders that load here.")
for commands in (make, use, publish):
    app.add_typer(commands.app)


def show_version(given: bool):
    if given:
        print(f"omnifusion_hf {__version__}")
        raise typer.Exit


@app.callback()
def omnifusion(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
):
    pass


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status. User errors (`io.is_mistake`) print one line to stderr and give 2,
    Ctrl-C gives 130; a fault of this package shows its traceback."""
    words = repeat_options(sys.argv[1:] if argv is None else list(argv))
    try:
        status = app(words, prog_name="omnifusion", standalone_mode=False) or 0
        said = "interrupted" if status == 130 else None
    except typer.TyperException as error:
        path = error.ctx.command_path if getattr(error, "ctx", None) else "omnifusion"
        said, status = f"error: {error.format_message()} See `{path} --help`.", 2
    except Exception as error:
        if not is_mistake(error):
            raise
        worker = re.split(r"\n[\w.]+Error: ", str(error))  # a data loader's worker adds its stack trace
        said, status = f"error: {reason_of(error) if len(worker) == 1 else ' '.join(worker[-1].split())}", 2
    if said:  # printed here, after the progress bar of a failed run is closed
        print(f"omnifusion: {said}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())

# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""The `omnifusion` command: one function a sub-command, each a thin call of the package (imported when it is used)."""

import argparse
import sys
from collections.abc import Sequence


def train(options: argparse.Namespace):
    """Trains one stage as a recipe says."""
    from .training.train import parse_recipe, train

    train(*parse_recipe(options.recipe, options.overrides))


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="omnifusion", description="OmniFusion: pictures and questions in, text out.")
    commands = parser.add_subparsers(required=True, metavar="command")

    command = commands.add_parser("train", help="train one stage as a recipe says")
    command.add_argument("recipe", help="YAML file, such as recipes/pretrain.yaml")
    command.add_argument("overrides", nargs="*", metavar="key=value", help="fields that win over the recipe's")
    command.set_defaults(run=train)

    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; mistakes of the user end in one line on stderr and exit code 2."""
    options = build_parser().parse_args(argv)
    try:
        options.run(options)
    except (ValueError, FileNotFoundError) as error:
        print(f"omnifusion: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What the converters' command lines have in common: --source, --output, --dtype, one line for a mistake."""

import argparse
import sys

import torch


def parser(program: str, description: str, source: str) -> argparse.ArgumentParser:
    """A parser with the common options; `source` is the help of --source."""
    parser = argparse.ArgumentParser(prog=program, description=description)
    parser.add_argument("--source", required=True, help=source)
    parser.add_argument("--output", required=True, help="folder to write")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="default: as stored")
    return parser


def run(parser: argparse.ArgumentParser, convert, argv=None) -> int:
    """Calls `convert` with the options by name; exit status 2 and one line on stderr where it raises."""
    options = vars(parser.parse_args(argv))
    options["dtype"] = options["dtype"] and getattr(torch, options["dtype"])
    try:
        folder = convert(**options)
    except (ValueError, OSError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {folder}")
    return 0

# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""Markdown of reports and model cards: whatever stands in it shows as it is, for names and settings are others' text.

Text is escaped unless it is of the type [`Markdown`], which the functions here return.
"""

import re

from jinja2 import Environment


# What is markup wherever it stands (an underscore inside a word is none; # at the end of a heading is), and what is at
# the beginning alone.
ANYWHERE = re.compile(r"[\\`*\[\]<|~$]|&(?=#?\w+;)|(?<![^\W_])_|_(?![^\W_])|#$")
AT_START = re.compile(r"^(#+|[-+=]+|>|\d+[.)])(?=\s|$)|^>")


class Markdown(str):
    """Text that is Markdown already."""


def one_line(text) -> str:
    """Without line ends, and without what is not to be seen (such as marks that turn the direction of writing)."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in str(text)).split())


def plain(text) -> Markdown:
    """Text of one line that shows as it is."""
    if isinstance(text, Markdown):
        return text
    text = ANYWHERE.sub(r"\\\g<0>", one_line(text))
    return Markdown(AT_START.sub(lambda start: f"{start[0][:-1]}\\{start[0][-1]}", text))


def code(text) -> Markdown:
    """Text of one line in the type of code."""
    text = one_line(text)
    fence = "`" * (max(map(len, re.findall("`+", text)), default=0) + 1)
    space = " " * ("`" in (text[:1], text[-1:]))
    return Markdown(f"{fence}{space}{text}{space}{fence}")


def table(header: list, rows: list[list]) -> Markdown:
    lines = [[re.sub(r"(?<!\\)\|", r"\|", plain(cell)) for cell in line] for line in (header, *rows)]
    lines.insert(1, ["---"] * len(header))
    return Markdown("\n".join(f"| {' | '.join(line)} |" for line in lines))


def fill(template: str, **values) -> Markdown:
    """A Jinja template of Markdown with its values in it."""
    return Markdown(Environment(finalize=plain).from_string(template).render(**values))

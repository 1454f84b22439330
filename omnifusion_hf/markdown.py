# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""Markdown of reports and model cards, with names and settings escaped, since these come from others.

Text is escaped unless it is of the type [`Markdown`], which these functions return.
"""

import re

from jinja2 import Environment


# Markup anywhere in a line (but not an underscore inside a word; # at the end of a heading), and at its start only.
ANYWHERE = re.compile(r"[\\`*\[\]<|~$]|&(?=#?\w+;)|(?<![^\W_])_|_(?![^\W_])|#$")
AT_START = re.compile(r"^(#+|[-+=]+|>|\d+[.)])(?=\s|$)|^>")


class Markdown(str):
    """Text that is already Markdown."""


def one_line(text) -> str:
    """The text without line ends and invisible characters (such as marks of the writing direction)."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in str(text)).split())


def plain(text) -> Markdown:
    """One line of text, escaped."""
    if isinstance(text, Markdown):
        return text
    text = ANYWHERE.sub(r"\\\g<0>", one_line(text))
    return Markdown(AT_START.sub(lambda start: f"{start[0][:-1]}\\{start[0][-1]}", text))


def code(text) -> Markdown:
    """One line of text as inline code."""
    text = one_line(text)
    fence = "`" * (max(map(len, re.findall("`+", text)), default=0) + 1)
    space = " " * ("`" in (text[:1], text[-1:]))
    return Markdown(f"{fence}{space}{text}{space}{fence}")


def table(header: list, rows: list[list]) -> Markdown:
    lines = [[re.sub(r"(?<!\\)\|", r"\|", plain(cell)) for cell in line] for line in (header, *rows)]
    lines.insert(1, ["---"] * len(header))
    return Markdown("\n".join(f"| {' | '.join(line)} |" for line in lines))


def fill(template: str, **values) -> Markdown:
    """Renders a Jinja template of Markdown; values are escaped."""
    return Markdown(Environment(finalize=plain).from_string(template).render(**values))

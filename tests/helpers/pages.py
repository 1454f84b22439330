"""Runs the pages' own code: blocks of Markdown, in a folder that looks like a clone and takes what they write.

A `python` block is run in the names that earlier blocks of its page left. In an `sh` or `bash` block every command is
`omnifusion …` or `python …`. A block that cannot be run says why, in the line before its fence:
`<!-- not run: REASON -->`. A block with a title is written to the file of that name, which later blocks can import.
"""

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

import pytest

from omnifusion_hf.cli import main


ROOT = Path(__file__).parents[2]
HEAD = r"""^(?:(?P<mark><!-- not run[^\n]*)\n)?```(?P<language>\w+)(?: title="(?P<file>[^"]+)")?\n"""
FENCE = re.compile(HEAD + r"(?P<code>.*?)^```$", re.M | re.S)
# TRL 1.16 and PEFT 0.21 use names that transformers has deprecated.
DEPRECATED = "`(is_gradient_checkpointing|gradient_checkpointing(_(en|dis)able)?)` is deprecated"
OTHERS_DEPRECATIONS = [pytest.mark.filterwarnings(f"ignore:{DEPRECATED}:FutureWarning")]
MARK = re.compile(r"<!-- not run: \S.* -->")


@dataclass(frozen=True)
class Block:
    """line: that of its first line in the page, from 1. runs: whether it is not marked."""

    language: str
    code: str
    line: int
    runs: bool
    file: str | None = None


@dataclass
class Run:
    """names: what Python blocks left, after each of them. printed: what each block printed. folder: where they ran."""

    folder: Path
    names: list[dict] = field(default_factory=list)
    printed: list[str] = field(default_factory=list)


def blocks(text: str) -> list[Block]:
    """The Python and shell blocks of a page, and its files. Raises `ValueError` for a mark without a reason or without
    a block, and for an indented fence."""
    found, marks = [], 0
    for match in FENCE.finditer(text):
        mark, language = match["mark"], match["language"]
        line = text.count("\n", 0, match.start("code")) + 1
        if mark is not None:
            marks += 1
            if not MARK.fullmatch(mark):
                raise ValueError(f"line {line - 2}: {mark!r}; write `<!-- not run: REASON -->`.")
        if language in ("python", "sh", "bash") or match["file"]:
            found.append(Block(language, match["code"], line, mark is None, match["file"]))
    if marks != len(re.findall("^ *<!-- not run", text, re.M)):
        raise ValueError("a `<!-- not run: … -->` is not in the line before a fence.")
    if re.search(r"^ +```(python|sh|bash)$", text, re.M):
        raise ValueError("a fence is indented, so that its block would not be run.")
    return found


def run_page(page: Path, folder: Path) -> Run:
    """Runs a page's blocks in `folder`, which gets links to all that a clone holds."""
    for path in ROOT.iterdir():
        if not path.name.startswith("."):
            (folder / path.name).symlink_to(path)
    run, names = Run(folder), {"__name__": "__main__"}
    offline = patch("socket.getaddrinfo", side_effect=RuntimeError("code of pages is run offline"))
    own_files = patch.object(sys, "path", [str(folder), *sys.path])
    for block in blocks(page.read_text(encoding="utf-8")):
        if block.runs:
            with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()) as printed, offline, own_files:
                if block.file:
                    (folder / block.file).write_text(block.code, encoding="utf-8")
                elif block.language == "python":
                    code = "\n" * (block.line - 1) + block.code  # tracebacks name the page and its line
                    exec(compile(code, str(page), "exec"), names)
                    run.names.append(dict(names))
                else:
                    run_commands(block, page)
            run.printed.append(printed.getvalue())
    return run


def changed(page: Path, folder: Path, *replacements: tuple[str, str]) -> Path:
    """A copy of the page in `folder` with other settings; each piece of text that is replaced must be there once."""
    text = page.read_text(encoding="utf-8")
    for old, new in replacements:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    copy = folder / page.name
    copy.write_text(text, encoding="utf-8")
    return copy


def run_commands(block: Block, page: Path):
    for line in block.code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if not words:
            continue
        if words[0] == "omnifusion":
            done = main(words[1:])
        elif words[0] == "python":
            offline = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
            done = subprocess.run([sys.executable, *words[1:]], env=offline, check=False).returncode
        else:
            raise ValueError(f"{page.name}, line {block.line}: cannot run `{line}`; mark it `not run`, and why.")
        assert done == 0, f"{page.name}, line {block.line}: `{line}` ended with {done}"

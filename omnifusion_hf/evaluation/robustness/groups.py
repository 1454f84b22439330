# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""Answer rates and accuracy compared across groups of pictures that the user names in a CSV: who is answered worse?"""

import csv
import re
from dataclasses import dataclass
from io import StringIO
from pathlib import Path, PurePath

from ...io import read_text
from ...markdown import code, plain, table
from ..answers import Answer
from ..metrics import difference_interval, wilson_interval


PICTURE = "picture"
# How answers begin that decline to answer; VizWiz's annotators and models trained on it say "unanswerable".
REFUSAL = re.compile(
    r"(i['’]m|i am) (sorry|unable|not able|not sure)|sorry|i (cannot|can['’]t|can not|do not|don['’]t)|as an ai\b"
    r"|(it is |it['’]s )?(not possible|impossible) to|unanswerable|unsuitable|unknown\b|no answer|n/a\b"
    r"|извините|к сожалению|я не (могу|знаю|вижу)",
    re.IGNORECASE,
)


def is_answered(answer: Answer) -> bool:
    """False for an empty answer and for one that declines."""
    return bool(answer.answer.strip()) and not REFUSAL.match(answer.answer.strip())


def read_groups(path: str | Path) -> dict[str, dict[str, str]]:
    """Column -> picture -> group, of a CSV with a column `picture` and others that each divide pictures into groups.

    An empty cell: this picture is in no group of that column. Raises `ValueError` that names the file and the line for
    another form, or a picture that comes twice.
    """
    (_, first), *rows = _numbered_rows(path)
    names = [" ".join(name.split()) for name in first]
    columns = [name for name in names if name != PICTURE]
    if not rows or not columns or PICTURE not in names:
        raise ValueError(
            f"{path} must have a first line with `{PICTURE}` and names of groupings, separated by commas, then lines; "
            f"its first line is {','.join(first)!r}."
        )
    if not all(names) or len(set(names)) < len(names):
        raise ValueError(f"{path}: each column needs a name of its own, got {names}.")
    groups = {column: {} for column in columns}
    for number, cells in rows:
        if len(cells) != len(names):
            raise ValueError(f"{path}, line {number} has another number of cells than the first line.")
        row = dict(zip(names, cells))
        if not row[PICTURE]:
            raise ValueError(f"{path}, line {number} names no picture.")
        picture = str(PurePath(row[PICTURE]))  # ./a.png is a.png
        if picture in groups[columns[0]]:
            raise ValueError(f"{path}, line {number}: {picture} comes a second time; give each picture one line.")
        for column in columns:
            groups[column][picture] = " ".join(row[column].split())
    return groups


def _numbered_rows(path: str | Path) -> list[tuple[int, list[str]]]:
    """Cells of each line that is not blank, with its number; a file without any has one empty line."""
    reader = csv.reader(StringIO(read_text(path), newline=""), strict=True)
    try:
        rows = [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num} is no CSV ({error}); look at its quotes.") from None
    return rows or [(1, [])]


@dataclass(frozen=True)
class Matches:
    """Which line of the CSV a picture that was asked about has; `unlisted` have none, `unasked` lines no question."""

    line_of: dict[str, str]
    unlisted: list[str]
    unasked: list[str]


def match_pictures(listed: list[str], answers: list[Answer]) -> Matches:
    """Lines name pictures by their path or its end: `a/1.png` is `data/a/1.png`, whole names of folders.

    Raises `ValueError` for a line that is the end of two asked pictures.
    """
    line_of, taken, known = {}, {}, set(listed)
    asked = list(dict.fromkeys(picture for answer in answers for picture in answer.pictures))
    for picture in asked:
        parts = PurePath(picture).parts
        names = (str(PurePath(*parts[start:])) for start in range(len(parts)))
        line = next((name for name in names if name in known), None)  # the longest
        if line is None:
            continue
        if (first := taken.setdefault(line, picture)) != picture:
            raise ValueError(f"{line} of the CSV is the end of both {first} and {picture}; write more of its path.")
        line_of[picture] = line
    unlisted = [picture for picture in asked if picture not in line_of]
    return Matches(line_of, unlisted, [name for name in listed if name not in taken])


def compare_groups(groups: dict[str, dict[str, str]], answers: list[Answer]) -> dict:
    """For each column a row per group, the pictures that are in none, and the lines that nobody asked about.

    A question about several pictures counts in the group of each. Perturbed answers do not count. Raises `ValueError`
    for a column in which no question has a group.
    """
    answers = [answer for answer in answers if answer.perturbation is None and answer.pictures]
    listed = next(iter(groups.values()))
    matches = match_pictures(list(listed), answers)
    if not matches.line_of:
        raise ValueError(
            f"no picture of the CSV was asked about: it names {_some(list(listed))}, asked were "
            f"{_some(matches.unlisted)}; name pictures by their path or its end."
        )
    columns = {}
    for column, group_of in groups.items():
        members = [_groups_of(answer, matches, group_of) for answer in answers]
        names = sorted(set().union(*members))
        if not names:
            raise ValueError(f"no picture that was asked about has a group in the column {column!r}; leave it out.")
        columns[column] = {
            "groups": [_row(name, answers, members) for name in names],
            "questions_in_no_group": sum(not groups_of for groups_of in members),
        }
    return {"columns": columns, "pictures_not_in_csv": matches.unlisted, "pictures_not_asked_about": matches.unasked}


def _groups_of(answer: Answer, matches: Matches, group_of: dict[str, str]) -> set[str]:
    lines = (matches.line_of.get(picture) for picture in answer.pictures)
    return {group_of[line] for line in lines if line is not None and group_of[line]}


def _row(name: str, answers: list[Answer], members: list[set[str]]) -> dict:
    """A group's figures; `difference`: to all questions that are in another group of the column and not in this."""
    inside = [answer for answer, groups in zip(answers, members) if name in groups]
    rest = [answer for answer, groups in zip(answers, members) if groups and name not in groups]
    pictures = {picture for answer in inside for picture in answer.pictures}
    answered = _compared([float(is_answered(answer)) for answer in inside], [float(is_answered(a)) for a in rest])
    right = _compared([answer.score for answer in inside], [answer.score for answer in rest])
    return {"group": name, "n": len(inside), "pictures": len(pictures), "answer_rate": answered, "accuracy": right}


def _compared(inside: list[float], rest: list[float]) -> dict:
    """Mean of the values, its 95% interval, and the difference to the rest with one (none without a rest)."""
    row = {"value": sum(inside) / len(inside), "interval": list(wilson_interval(sum(inside), len(inside)))}
    if not rest:
        return row | {"difference": None, "difference_interval": None}
    bounds = difference_interval(sum(inside), len(inside), sum(rest), len(rest))
    return row | {"difference": row["value"] - sum(rest) / len(rest), "difference_interval": list(bounds)}


def as_markdown(comparison: dict) -> str:
    """groups.md."""
    parts = ["# Groups of pictures", _told(comparison)]
    for column, content in comparison["columns"].items():
        heads = ["group", "questions", "pictures", "answered", "accuracy", "difference to the rest"]
        rows = table(heads, [_cells(row) for row in content["groups"]])
        apart = content["questions_in_no_group"]
        parts += [f"## {plain(column)}", rows, f"Questions in no group of this column: {apart}."]
    return "\n\n".join(parts) + "\n"


def _told(comparison: dict) -> str:
    unlisted, unasked = comparison["pictures_not_in_csv"], comparison["pictures_not_asked_about"]
    return (
        "Intervals are 95%: Wilson's, for differences Newcombe's. Answered: neither empty nor declined. Pictures that "
        f"were asked about and are not in the CSV: {_some(unlisted)}. Pictures in the CSV that were not asked about: "
        f"{_some(unasked)}."
    )


def _some(names: list[str], most: int = 3) -> str:
    shown = ", ".join(map(code, names[:most]))
    return f"{len(names)}" + (f" ({shown}{', …' if len(names) > most else ''})" if names else "")


def _cells(row: dict) -> list[str]:
    answered, right = row["answer_rate"], row["accuracy"]
    cells = [row["group"], row["n"], row["pictures"], _share(answered), _share(right)]
    if right["difference"] is None:
        return [*cells, "–"]
    low, high = right["difference_interval"]
    return [*cells, f"{right['difference']:+.3f} ({low:+.3f} to {high:+.3f})"]


def _share(figure: dict) -> str:
    low, high = figure["interval"]
    return f"{figure['value']:.3f} ({low:.3f} to {high:.3f})"

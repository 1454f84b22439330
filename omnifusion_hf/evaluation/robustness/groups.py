# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""Answer rates and accuracy compared across groups of images that a CSV defines."""

import csv
import re
from dataclasses import dataclass
from io import StringIO
from pathlib import Path, PurePath

from ...io import read_text
from ...markdown import code, plain, table
from ..answers import Answer
from ..metrics import difference_interval, wilson_interval


IMAGE = "image"
# The beginnings of refusals; VizWiz's annotators, and models trained on it, write "unanswerable".
REFUSAL = re.compile(
    r"(i['’]m|i am) (sorry|unable|not able|not sure)|sorry|i (cannot|can['’]t|can not|do not|don['’]t)|as an ai\b"
    r"|(it is |it['’]s )?(not possible|impossible) to|unanswerable|unsuitable|unknown\b|no answer|n/a\b"
    r"|извините|к сожалению|я не (могу|знаю|вижу)",
    re.IGNORECASE,
)


def is_answered(answer: Answer) -> bool:
    """False for an empty answer and for a refusal."""
    return bool(answer.answer.strip()) and not REFUSAL.match(answer.answer.strip())


def read_groups(path: str | Path) -> dict[str, dict[str, str]]:
    """Column -> image -> group, from a CSV with a column `image` and one column per grouping.

    An image with an empty cell is in no group of that column. Raises `ValueError` that names the file and the line,
    for another format and for an image that occurs twice.
    """
    (_, first), *rows = _numbered_rows(path)
    names = [" ".join(name.split()) for name in first]
    columns = [name for name in names if name != IMAGE]
    if not rows or not columns or IMAGE not in names:
        raise ValueError(
            f"{path} must have a first line with `{IMAGE}` and names of groupings, separated by commas, and a line "
            f"per image; its first line is {','.join(first)!r}."
        )
    if not all(names) or len(set(names)) < len(names):
        raise ValueError(f"{path}: each column needs a name of its own, got {names}.")
    groups = {column: {} for column in columns}
    for number, cells in rows:
        if len(cells) != len(names):
            raise ValueError(f"{path}, line {number} has another number of cells than the first line.")
        row = dict(zip(names, cells))
        if not row[IMAGE]:
            raise ValueError(f"{path}, line {number} names no image.")
        image = str(PurePath(row[IMAGE]))  # ./a.png is a.png
        if image in groups[columns[0]]:
            raise ValueError(f"{path}, line {number}: {image} occurs a second time; give each image one line.")
        for column in columns:
            groups[column][image] = " ".join(row[column].split())
    return groups


def _numbered_rows(path: str | Path) -> list[tuple[int, list[str]]]:
    """Number and cells of each line that is not blank; an empty file has one empty line."""
    reader = csv.reader(StringIO(read_text(path), newline=""), strict=True)
    try:
        rows = [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num} is not CSV ({error}); check its quotes.") from None
    return rows or [(1, [])]


@dataclass(frozen=True)
class Matches:
    """The CSV line of each image of the answers; `unlisted` images have no line, `unused` lines have no answer."""

    line_of: dict[str, str]
    unlisted: list[str]
    unused: list[str]


def match_images(listed: list[str], answers: list[Answer]) -> Matches:
    """A line matches an image by its full path or a path suffix of whole names: `a/1.png` is `data/a/1.png`.

    Raises `ValueError` for a line that matches two images.
    """
    line_of, taken, known = {}, {}, set(listed)
    images = list(dict.fromkeys(image for answer in answers for image in answer.images))
    for image in images:
        parts = PurePath(image).parts
        names = (str(PurePath(*parts[start:])) for start in range(len(parts)))
        line = next((name for name in names if name in known), None)  # the longest
        if line is None:
            continue
        if (first := taken.setdefault(line, image)) != image:
            raise ValueError(f"{line} of the CSV matches both {first} and {image}; write more of its path.")
        line_of[image] = line
    unlisted = [image for image in images if image not in line_of]
    return Matches(line_of, unlisted, [name for name in listed if name not in taken])


def compare_groups(groups: dict[str, dict[str, str]], answers: list[Answer]) -> dict:
    """For each column a row per group; then the images without a line, and the lines without an answer.

    A question about several images counts in the group of each. Answers about changed images do not count. Raises
    `ValueError` for a column in which no question has a group.
    """
    answers = [answer for answer in answers if answer.perturbation is None and answer.images]
    listed = next(iter(groups.values()))
    matches = match_images(list(listed), answers)
    if not matches.line_of:
        raise ValueError(
            f"no image of the CSV has an answer: the CSV names {_some(list(listed))}, the answers are about "
            f"{_some(matches.unlisted)}; name images by their path or its end."
        )
    columns = {}
    for column, group_of in groups.items():
        members = [_groups_of(answer, matches, group_of) for answer in answers]
        names = sorted(set().union(*members))
        if not names:
            raise ValueError(f"no image with an answer has a group in the column {column!r}; remove the column.")
        columns[column] = {
            "groups": [_row(name, answers, members) for name in names],
            "questions_in_no_group": sum(not groups_of for groups_of in members),
        }
    return {"columns": columns, "images_not_in_csv": matches.unlisted, "images_not_asked_about": matches.unused}


def _groups_of(answer: Answer, matches: Matches, group_of: dict[str, str]) -> set[str]:
    lines = (matches.line_of.get(image) for image in answer.images)
    return {group_of[line] for line in lines if line is not None and group_of[line]}


def _row(name: str, answers: list[Answer], members: list[set[str]]) -> dict:
    """A group's figures; `difference` is to all questions that are only in other groups of the column."""
    inside = [answer for answer, groups in zip(answers, members) if name in groups]
    rest = [answer for answer, groups in zip(answers, members) if groups and name not in groups]
    images = {image for answer in inside for image in answer.images}
    answered = _compared([float(is_answered(answer)) for answer in inside], [float(is_answered(a)) for a in rest])
    right = _compared([answer.score for answer in inside], [answer.score for answer in rest])
    return {"group": name, "n": len(inside), "images": len(images), "answer_rate": answered, "accuracy": right}


def _compared(inside: list[float], rest: list[float]) -> dict:
    """Mean of the values and its difference to the rest (`None` without a rest), with 95% intervals."""
    row = {"value": sum(inside) / len(inside), "interval": list(wilson_interval(sum(inside), len(inside)))}
    if not rest:
        return row | {"difference": None, "difference_interval": None}
    bounds = difference_interval(sum(inside), len(inside), sum(rest), len(rest))
    return row | {"difference": row["value"] - sum(rest) / len(rest), "difference_interval": list(bounds)}


def as_markdown(comparison: dict) -> str:
    """groups.md."""
    parts = ["# Groups of images", _legend(comparison)]
    for column, content in comparison["columns"].items():
        heads = ["group", "questions", "images", "answered", "accuracy", "difference to the rest"]
        rows = table(heads, [_cells(row) for row in content["groups"]])
        ungrouped = content["questions_in_no_group"]
        parts += [f"## {plain(column)}", rows, f"Questions in no group of this column: {ungrouped}."]
    return "\n\n".join(parts) + "\n"


def _legend(comparison: dict) -> str:
    unlisted, unused = comparison["images_not_in_csv"], comparison["images_not_asked_about"]
    return (
        "Intervals are 95%: Wilson's, for differences Newcombe's. Answered: neither empty nor declined. Images with "
        f"answers that are not in the CSV: {_some(unlisted)}. Images in the CSV without answers: {_some(unused)}."
    )


def _some(names: list[str], most: int = 3) -> str:
    shown = ", ".join(map(code, names[:most]))
    return f"{len(names)}" + (f" ({shown}{', …' if len(names) > most else ''})" if names else "")


def _cells(row: dict) -> list[str]:
    answered, right = row["answer_rate"], row["accuracy"]
    cells = [row["group"], row["n"], row["images"], _share(answered), _share(right)]
    if right["difference"] is None:
        return [*cells, "–"]
    low, high = right["difference_interval"]
    return [*cells, f"{right['difference']:+.3f} ({low:+.3f} to {high:+.3f})"]


def _share(figure: dict) -> str:
    low, high = figure["interval"]
    return f"{figure['value']:.3f} ({low:.3f} to {high:.3f})"

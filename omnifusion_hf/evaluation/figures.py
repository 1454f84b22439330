# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""Figures of reports, and the radar plot of benchmarks after the paper's Figure 1: a line per model and paper row."""

import math

from ..figures import new_figure
from .paper_tables import BENCHMARKS, RADAR_COLUMNS, RADAR_ROWS


def radar_columns(models: dict[str, dict[str, float]]) -> list[str]:
    """The axes: the paper's, then every other column in percent that a model has."""
    measured = {column for values in models.values() for column in values}
    more = [b.column for b in BENCHMARKS if b.higher_is_better and b.column in measured]
    return [*RADAR_COLUMNS, *(column for column in more if column not in RADAR_COLUMNS)]


def radar(models: dict[str, dict[str, float]]):
    """A figure of each model's percent by column; a line has a gap at a column that was not measured."""
    columns = radar_columns(models)
    angles = [2 * math.pi * index / len(columns) for index in range(len(columns))]
    figure = new_figure(9, 7)
    axes = figure.add_subplot(projection="polar")
    axes.set_theta_offset(math.pi / 2)
    axes.set_theta_direction(-1)
    axes.set_ylim(0, 100)
    axes.set_rlabel_position(180 / len(columns))  # between two axes
    axes.set_xticks(angles, columns)
    axes.tick_params(axis="x", pad=16)
    lines = {}  # by label
    for (name, values), style in zip(RADAR_ROWS.items(), ("-", "--", ":"), strict=True):
        lines[name] = _line(axes, angles, [values.get(column) for column in columns], linestyle=style, color="0.5")
    for name, values in models.items():
        line = [values.get(column) for column in columns]
        label = f"{name} ({sum(value is not None for value in line)} of {len(columns)} measured)"
        lines[label] = _line(axes, angles, line, marker="o", linewidth=2)
    # Labels are passed to the legend, because matplotlib leaves out lines whose own label begins with "_".
    legend = figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=2, frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


def _line(axes, angles: list[float], values: list[float | None], **style):
    numbers = [math.nan if value is None else value for value in values]
    return axes.plot([*angles, angles[0]], [*numbers, numbers[0]], **style)[0]

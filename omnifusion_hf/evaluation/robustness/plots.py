# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""Plots: accuracy against the strength of perturbations, accuracy by group."""

from pathlib import Path

from ...figures import new_figure, save_figure
from .perturbations import PERTURBATIONS, PGD, RANDOM, REMOVED, SWAPPED


BAND = 0.2  # opacity of confidence bands
DPI = 110


def draw_robustness(path: Path, rows: list[dict]):
    """A panel per perturbation: accuracy against strength with its 95% band, beside clean and image-blind accuracy."""
    panels = panels_of(rows)
    columns = min(len(panels), 4)
    lines = -(-len(panels) // columns)
    figure = new_figure(3.3 * columns, 2.9 * lines + 1)
    all_axes = figure.subplots(lines, columns, sharey=True, squeeze=False).flatten()
    for axes, name in zip(all_axes, panels):
        _panel(axes, name, rows)
    for axes in all_axes[len(panels) :]:
        axes.set_axis_off()
    for axes in all_axes[::columns]:
        axes.set_ylabel("accuracy")
    handles = {label: handle for axes in all_axes for handle, label in zip(*axes.get_legend_handles_labels())}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns, frameon=False)
    save_figure(figure, path, DPI)


def panels_of(rows: list[dict]) -> list[str]:
    """The perturbations with a panel: those with strengths; random signs get one only without PGD."""
    names = [name for name in PERTURBATIONS if PERTURBATIONS[name].strengths and _rows_of(rows, name)]
    return [name for name in names if name != RANDOM or PGD not in names]


def _rows_of(rows: list[dict], name: str | None) -> list[dict]:
    return [row for row in rows if row["perturbation"] == name]


def _panel(axes, name: str, rows: list[dict]):
    curve = _rows_of(rows, name)
    labels = [f"{row['strength']:g}" for row in curve]
    _level(axes, _rows_of(rows, None), "clean", "tab:green")
    _level(axes, _rows_of(rows, SWAPPED), "image-blind (swapped)", "tab:gray")
    _level(axes, _rows_of(rows, REMOVED), "image removed", "tab:brown", linestyle=":", band=False)
    if name == PGD:
        _curve(axes, _rows_of(rows, RANDOM), "random signs of the same size", "tab:orange")
    _curve(axes, curve, "perturbed", "tab:blue")
    axes.set_xticks(range(len(labels)), labels)
    axes.set(title=name.replace("_", " "), ylim=(-0.03, 1.03))  # points at 0 and 1 are fully visible
    axes.set_xlabel(PERTURBATIONS[name].unit, fontsize=8)
    axes.grid(alpha=0.25)


def _level(axes, rows: list[dict], label: str, color: str, linestyle: str = "--", band: bool = True):
    for row in rows:
        axes.axhline(row["accuracy"], label=label, color=color, linestyle=linestyle, linewidth=1.2)
        if band:
            axes.axhspan(*row["interval"], color=color, alpha=BAND, linewidth=0)


def _curve(axes, rows: list[dict], label: str, color: str):
    places = range(len(rows))
    axes.plot(places, [row["accuracy"] for row in rows], label=label, color=color, marker="o", markersize=4)
    axes.fill_between(places, *zip(*(row["interval"] for row in rows)), color=color, alpha=BAND, linewidth=0)


def draw_groups(path: Path, comparison: dict):
    """For each column, the accuracy of its groups with 95% intervals and, dashed, of all its questions."""
    columns = comparison["columns"]
    heights = [len(content["groups"]) + 1.5 for content in columns.values()]
    figure = new_figure(7, 0.32 * sum(heights) + 0.6)
    all_axes = figure.subplots(len(columns), 1, sharex=True, squeeze=False, height_ratios=heights).flatten()
    for axes, (column, content) in zip(all_axes, columns.items()):
        _forest(axes, column, content["groups"])
    all_axes[-1].set_xlabel("accuracy, 95% interval")
    save_figure(figure, path, DPI)


def _forest(axes, column: str, rows: list[dict]):
    places = range(len(rows))
    for place, row in zip(places, rows):
        axes.plot(row["accuracy"]["interval"], [place, place], color="tab:blue", linewidth=2, alpha=0.6)
        axes.plot(row["accuracy"]["value"], place, color="tab:blue", marker="o", markersize=5)
    total = sum(row["n"] for row in rows)
    axes.axvline(sum(row["n"] * row["accuracy"]["value"] for row in rows) / total, color="tab:gray", linestyle="--")
    axes.set_yticks(places, [f"{row['group']} (n = {row['n']})" for row in rows], parse_math=False)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_title(column, loc="left", fontsize=10, parse_math=False)
    axes.grid(axis="x", alpha=0.25)

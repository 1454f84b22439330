# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""Figures of matplotlib, which is imported where one is made."""

from pathlib import Path

from .io import staged_file


def new_figure(width: float, height: float):
    """A matplotlib figure of this size in inches. Raises `ValueError` if matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError("plots need matplotlib: pip install 'omnifusion_hf[plot]'.") from None
    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure, path: Path, dpi: int):
    """Writes a PNG atomically."""
    with staged_file(path) as part:
        figure.savefig(part, format="png", dpi=dpi)

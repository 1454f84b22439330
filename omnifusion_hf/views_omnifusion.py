# Copyright 2026 The omnifusion_hf authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Views of a picture: from its size to boxes, as pure functions (paper section 3.3, image strategies).

A view is what an encoder sees at once: the whole picture or a tile of it, always a square of S pixels. A box is
`(left, top, right, bottom)` in pixels of the *original* picture, as floats; what lies outside the picture is padding.
Boxes are those of "resize to whole pixels, then crop", whose whole-pixel sizes can be read back from them exactly.
"""

from typing import Literal

import numpy as np


Box = tuple[float, float, float, float]
ImageFit = Literal["crop", "pad", "squash"]
ViewStrategy = Literal["whole", "grid"]


def _window(size: tuple[int, int], resized: tuple[int, int], corner: tuple[int, int], side: int) -> Box:
    """The square window of `side` pixels at `corner` (top, left) of a resized picture, in original pixels."""
    (height, width), (resized_height, resized_width), (top, left) = size, resized, corner
    y, x = height / resized_height, width / resized_width
    return (left * x, top * y, (left + side) * x, (top + side) * y)


def whole_view(size: tuple[int, int], fit: ImageFit, side: int) -> Box:
    """The box of the view that shows the whole picture.

    `crop`: shortest edge to `side`, centre crop (CLIP). `pad`: longest edge to `side`, centred. `squash`: no aspect.

    Args: size: (height, width) of the picture. side: S, the view's side in pixels.

    >>> whole_view((100, 200), "crop", 50)
    (50.0, 0.0, 150.0, 100.0)
    >>> whole_view((100, 200), "pad", 50)
    (0.0, -48.0, 200.0, 152.0)
    >>> whole_view((100, 200), "squash", 50)
    (0.0, 0.0, 200.0, 100.0)
    """
    height, width = size
    if fit == "squash":
        return (0.0, 0.0, float(width), float(height))
    if fit == "crop":
        scale_edge = min(size)
        resized = (int(side * height / scale_edge), int(side * width / scale_edge))
    elif fit == "pad":
        resized = fit_inside(size, (side, side))
    else:
        raise ValueError(f"image_fit `{fit}` is unknown; use 'crop', 'pad' or 'squash'.")
    # Rounds towards zero: an odd margin is cut (crop) as CLIP does and padded (pad) as the grid's canvas is.
    corner = (int((resized[0] - side) / 2), int((resized[1] - side) / 2))
    return _window(size, resized, corner, side)


def fit_inside(size: tuple[int, int], canvas: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of the picture scaled, aspect kept, to the largest whole pixels inside the canvas.

    >>> fit_inside((100, 300), (672, 672))
    (224, 672)
    """
    (height, width), (canvas_height, canvas_width) = size, canvas
    scale = min(canvas_height / height, canvas_width / width)
    return max(1, min(canvas_height, round(height * scale))), max(1, min(canvas_width, round(width * scale)))


def best_canvas(size: tuple[int, int], canvases: list[list[int]], side: int) -> tuple[int, int]:
    """The canvas, as (rows, columns) of tiles, that shows most of the picture's own pixels; of equals the smallest.

    >>> best_canvas((400, 1300), [[1, 2], [2, 1], [2, 2], [1, 3], [3, 1]], side=336)
    (1, 3)
    >>> best_canvas((600, 600), [[1, 2], [2, 1], [2, 2], [1, 3], [3, 1]], side=336)
    (2, 2)
    """

    def score(canvas):
        rows, columns = canvas
        height, width = fit_inside(size, (rows * side, columns * side))
        shown = min(height * width, size[0] * size[1])
        return shown, -rows * columns

    rows, columns = max(canvases, key=score)
    return rows, columns


def grid_views(size: tuple[int, int], canvases: list[list[int]], side: int) -> list[Box]:
    """Boxes of the tiles of the best canvas, row by row; the picture is centred on it, aspect kept, and padded.

    >>> grid_views((100, 100), [[1, 2]], side=50)
    [(-50.0, 0.0, 50.0, 100.0), (50.0, 0.0, 150.0, 100.0)]
    """
    rows, columns = best_canvas(size, canvases, side)
    resized = fit_inside(size, (rows * side, columns * side))
    top, left = (rows * side - resized[0]) // 2, (columns * side - resized[1]) // 2
    corners = [(row * side - top, column * side - left) for row in range(rows) for column in range(columns)]
    return [_window(size, resized, corner, side) for corner in corners]


def picture_views(
    size: tuple[int, int], strategy: ViewStrategy, fit: ImageFit, canvases: list[list[int]], side: int
) -> list[Box]:
    """All views of a picture, the whole picture first; the length of this list is V, its number of views.

    Raises `ValueError` for a picture without pixels or an unknown strategy.
    """
    if min(size) < 1:
        raise ValueError(f"A picture of {size[0]} x {size[1]} pixels has no content; remove it from the input.")
    views = [whole_view(size, fit, side)]
    if strategy == "grid":
        views += grid_views(size, canvases, side)
    elif strategy != "whole":
        raise ValueError(f"view_strategy `{strategy}` is unknown; use 'whole' or 'grid'.")
    return views


def views_per_image(image_view_index) -> list[int]:
    """How many views each picture has, from `image_view_index` (ΣV,): 0 for a picture's first view, then counting up.

    >>> views_per_image([0, 1, 2, 0, 0, 1])
    [3, 1, 2]
    """
    image_view_index = np.asarray(image_view_index)
    starts = np.flatnonzero(image_view_index == 0)
    return np.diff(starts, append=len(image_view_index)).tolist()

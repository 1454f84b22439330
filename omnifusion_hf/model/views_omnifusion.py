# Copyright 2026 The omnifusion_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Views of an image (paper section 3.3, image strategies): pure functions from its size to boxes, and the cutting of
boxes.

A view is the square of S pixels that an encoder sees at once: the whole image, a tile of its grid, or a region. A box
is `(left, top, right, bottom)` in pixels of the *original* image; pixels outside the image are padding. Boxes of the
whole image and of tiles give the whole-pixel sizes of the resized image exactly; those of regions are whole pixels.

Provenance: own code. `crop` is CLIP's preprocessing, `pad` LLaVA's, the choice of canvas LLaVA-NeXT's.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import numpy as np
import torch
from PIL import Image
from PIL.Image import Resampling


Box = tuple[float, float, float, float]
ImageFit = Literal["crop", "pad", "squash"]
ViewStrategy = Literal["whole", "grid"]
MAX_RESIZED_PIXELS = 2**24  # a resized image is never larger: 4096 x 4096 pixels, 48 MB


@dataclass(frozen=True)
class ImageViews:
    """The boxes of one image. Iterates in the model's order: whole, tiles, regions. `len` is V."""

    whole: Box
    tiles: list[Box] = field(default_factory=list)
    regions: list[Box] = field(default_factory=list)

    def __iter__(self) -> Iterator[Box]:
        return iter([self.whole, *self.tiles, *self.regions])

    def __len__(self) -> int:
        return 1 + len(self.tiles) + len(self.regions)


def _window(size: tuple[int, int], resized: tuple[int, int], corner: tuple[int, int], side: int) -> Box:
    """The square window of `side` pixels at `corner` (top, left) of a resized image, in original pixels."""
    (height, width), (resized_height, resized_width), (top, left) = size, resized, corner
    y, x = height / resized_height, width / resized_width
    return (left * x, top * y, (left + side) * x, (top + side) * y)


def whole_view(size: tuple[int, int], fit: ImageFit, side: int) -> Box:
    """The box of the view of `side` pixels that shows the whole image, whose size is (height, width).

    `crop`: shortest edge to `side`, centre crop (CLIP). `pad`: longest edge to `side`, centred. `squash`: both edges.
    """
    height, width = size
    if fit == "squash":
        return (0.0, 0.0, float(width), float(height))
    if fit == "pad":
        return grid_views(size, [[1, 1]], side)[0]
    if fit != "crop":
        raise ValueError(f"image_fit `{fit}` is unknown; use 'crop', 'pad' or 'squash'.")
    resized = (int(side * height / min(size)), int(side * width / min(size)))
    return _window(size, resized, ((resized[0] - side) // 2, (resized[1] - side) // 2), side)


def fit_inside(size: tuple[int, int], canvas: tuple[int, int]) -> tuple[int, int]:
    """The largest (height, width) in whole pixels, aspect kept, of an image inside a canvas."""
    (height, width), (canvas_height, canvas_width) = size, canvas
    scale = min(canvas_height / height, canvas_width / width)
    return max(1, min(canvas_height, round(height * scale))), max(1, min(canvas_width, round(width * scale)))


def best_canvas(size: tuple[int, int], canvases: list[list[int]], side: int) -> tuple[int, int]:
    """The canvas, as (rows, columns) of tiles, that shows the most pixels of the image; the smallest of equals."""

    def score(canvas):
        rows, columns = canvas
        shown = math.prod(fit_inside(size, (rows * side, columns * side)))
        return min(shown, math.prod(size)), -rows * columns

    return tuple(max(canvases, key=score))


def grid_views(size: tuple[int, int], canvases: list[list[int]], side: int) -> list[Box]:
    """Boxes of the tiles of the best canvas, row by row; the image is centred on it, aspect kept, and padded."""
    rows, columns = best_canvas(size, canvases, side)
    resized = fit_inside(size, (rows * side, columns * side))
    top, left = (rows * side - resized[0]) // 2, (columns * side - resized[1]) // 2
    corners = [(row * side - top, column * side - left) for row in range(rows) for column in range(columns)]
    return [_window(size, resized, corner, side) for corner in corners]


def read_region(region) -> tuple[Box, float | None]:
    """Box and score of a region: `[left, top, right, bottom]`, or an entry of transformers' detection pipelines."""
    score, corners = None, region
    try:
        if isinstance(region, dict):
            score, corners = region.get("score"), [region["box"][name] for name in ("xmin", "ymin", "xmax", "ymax")]
        left, top, right, bottom = map(float, corners)
        score = None if score is None else float(score)
    except (KeyError, TypeError, ValueError):
        raise ValueError(
            f"{region} is not a box; give [left, top, right, bottom] in pixels or a detection pipeline's "
            '{"score", "label", "box": {"xmin", "ymin", "xmax", "ymax"}}.'
        ) from None
    if not all(map(math.isfinite, (left, top, right, bottom, score or 0.0))):
        raise ValueError(f"{region} is not finite; repair or remove it.")
    return (left, top, right, bottom), score


def clip_region(size: tuple[int, int], box: Box) -> Box:
    """The whole pixels of the image that a box touches. Raises `ValueError` if there are none."""
    height, width = size
    left, top, right, bottom = box
    if left >= right or top >= bottom:
        raise ValueError(f"{list(box)} is empty or reversed; it must have left < right and top < bottom.")
    if 0 <= min(box) and max(box) <= 1 and max(size) > 1:
        raise ValueError(
            f"{list(box)} lies within one pixel and looks like fractions of an image; give pixels: left and right "
            f"times {width}, top and bottom times {height}."
        )
    if left >= width or top >= height or right <= 0 or bottom <= 0:
        raise ValueError(f"{list(box)} is outside the image of {width} x {height} pixels (width x height, upright).")
    right, bottom = min(width, math.ceil(right)), min(height, math.ceil(bottom))
    return (max(0, math.floor(left)), max(0, math.floor(top)), right, bottom)


def square_region(size: tuple[int, int], box: Box, context: float) -> Box:
    """The square of whole pixels around a box, with a margin of `context` / 2 x its longer side: inside the image if
    it fits, else centred on it and padded."""
    left, top, right, bottom = box
    side = round(max(right - left, bottom - top) * (1 + context))

    def start(low: float, high: float, length: int) -> float:
        inside = min(max(round((low + high - side) / 2), 0), length - side)
        return float((length - side) // 2 if side > length else inside)

    left, top = start(left, right, size[1]), start(top, bottom, size[0])
    return (left, top, left + side, top + side)


def region_views(size: tuple[int, int], regions: list, context: float, max_regions: int) -> list[Box]:
    """Views of the first `max_regions` boxes of one image by falling score or, without scores, in reading order (top
    edge, then left edge). Raises `ValueError` that names the first box which is not one or is outside the image."""
    found = []
    for index, region in enumerate(regions):
        try:
            box, score = read_region(region)
            found.append((clip_region(size, box), score))
        except ValueError as error:
            raise ValueError(f"box {index}: {error}") from None
    if len({score is None for _, score in found}) > 1:
        raise ValueError("some boxes have a score and some have none; give a score to all of them, or to none.")
    found.sort(key=lambda region: (region[0][1], region[0][0]) if region[1] is None else -region[1])
    return [square_region(size, box, context) for box, _ in found[:max_regions]]


def image_views(
    size: tuple[int, int], strategy: ViewStrategy, fit: ImageFit, canvases: list[list[int]], side: int, regions=()
) -> ImageViews:
    """All views of an image; `regions` come from [`region_views`]. Raises `ValueError` for an image without pixels."""
    if min(size) < 1:
        raise ValueError(f"An image of {size[0]} x {size[1]} pixels has no content; remove it from the input.")
    if strategy not in ("whole", "grid"):
        raise ValueError(f"view_strategy `{strategy}` is unknown; use 'whole' or 'grid'. Both take regions of a call.")
    tiles = grid_views(size, canvases, side) if strategy == "grid" else []
    return ImageViews(whole_view(size, fit, side), tiles, list(regions))


def regions_per_image(regions, images_per_prompt: list[int]) -> list[list]:
    """One list of boxes per image of a batch, from the boxes of the only image, one list of boxes per image, or such
    lists nested per prompt, as lists, arrays or tensors. `ValueError` if their number is not that of the images."""
    regions, expected = _as_lists(regions), sum(images_per_prompt)
    levels = _levels(regions)
    if levels == -math.inf:
        return [[] for _ in range(expected)]
    lists = {1: [regions], 2: regions}.get(levels, [])
    given = len(lists) if lists else "no"
    if levels == 3:
        given, expected, lists = [len(prompt) for prompt in regions], images_per_prompt, sum(regions, [])
    if given != expected:
        raise ValueError(
            f"There are {given} lists of regions for {expected} images; nest regions as the images are, one list of "
            "boxes per image, [] for none; a box is [left, top, right, bottom] or a detection pipeline's entry. Got "
            f"{str(regions)[:80]}."
        )
    return lists


def _as_lists(regions):
    """Arrays and tensors, alone or inside lists, as lists of numbers."""
    if hasattr(regions, "tolist"):
        return regions.tolist()
    return [_as_lists(item) for item in regions] if isinstance(regions, (list, tuple)) else regions


def _levels(regions) -> float:
    """The number of lists around a box: 0 for a box itself, -inf without any box."""
    if not isinstance(regions, list) or not all(isinstance(item, (list, dict)) for item in regions):
        return 0
    return 1 + max(map(_levels, regions), default=-math.inf)


def views_per_image(image_view_index) -> list[int]:
    """The number of views of each image, from `image_view_index` (ΣV,), which counts from 0 within each image."""
    image_view_index = np.asarray(image_view_index)
    starts = np.flatnonzero(image_view_index == 0)
    return np.diff(starts, append=len(image_view_index)).tolist()


def resize_function(backend: str, resample: int) -> Callable[[Image.Image, tuple[int, int]], Image.Image]:
    """Resizes an image to (width, height): Pillow, to which converted checkpoints are exact, or the uint8 kernel that
    torchvision also calls, some four times as fast and within two of 255 levels of Pillow's."""
    if backend == "pil":
        return partial(Image.Image.resize, resample=resample)
    mode = {Resampling.BILINEAR: "bilinear", Resampling.BICUBIC: "bicubic"}.get(resample)
    if backend != "torchvision" or mode is None:
        raise ValueError(
            f"resize_backend `{backend}` with resample {resample} is unknown; use 'pil', or 'torchvision' with "
            "bilinear or bicubic resampling."
        )

    def resize(image: Image.Image, size: tuple[int, int]) -> Image.Image:
        if image.mode not in ("L", "RGB"):  # only with do_convert_rgb=False
            return image.resize(size, resample)
        pixels = torch.from_numpy(np.array(image)).view(1, image.height, image.width, -1)
        pixels = pixels.movedim(-1, 1)  # (1, 1 or 3, H, W)
        pixels = torch.nn.functional.interpolate(pixels, size[::-1], mode=mode, antialias=True)
        return Image.fromarray(pixels[0].movedim(0, -1).squeeze(-1).numpy())

    return resize


def cut_image(
    image: Image.Image, views: ImageViews, side: int, resample: int, background: tuple, backend: str
) -> list[Image.Image]:
    """The views of an image, `side` x `side`; outside the image they have the background colour.

    Whole image and tiles are cut from the resized image: Pillow reads a box in float32 and would be off by one level
    here and there. Regions, and strips whose resized image would be too large, are resampled directly."""
    resized, resize = {image.size: image}, resize_function(backend, resample)

    def cut(box: Box, directly: bool) -> Image.Image:
        left, top, right, bottom = box
        x, y = side / (right - left), side / (bottom - top)
        size = (round(image.width * x), round(image.height * y))
        if directly or size[0] * size[1] > MAX_RESIZED_PIXELS:
            inside = (max(left, 0.0), max(top, 0.0), min(right, image.width), min(bottom, image.height))
            size = (max(round((inside[2] - inside[0]) * x), 1), max(round((inside[3] - inside[1]) * y), 1))
            part, corner = image.resize(size, resample, box=inside), ((inside[0] - left) * x, (inside[1] - top) * y)
        else:
            part, corner = resized.get(size) or resize(image, size), (-left * x, -top * y)
            resized[size] = part
        view = Image.new(image.mode, (side, side), background)
        view.paste(part, (round(corner[0]), round(corner[1])))
        return view

    return [cut(box, False) for box in (views.whole, *views.tiles)] + [cut(box, True) for box in views.regions]

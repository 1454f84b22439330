# Copyright 2026 The omnifusion_hf authors. All rights reserved.
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
# the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0 Unless required by
# applicable law or agreed to in writing, software distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied. See the License for the specific language
# governing permissions and limitations under the License.
"""Images to `pixel_values`: load safely, show as a viewer would, cut the views, normalise for the first encoder.

Provenance: transformers' Pillow backend; crop and normalisation are CLIP's. Differences: several views per image
(paper section 3.3), any image that Pillow reads, and its antialiased resampling on every machine unless torchvision's
is chosen.
"""

import base64
import os
from contextlib import contextmanager, nullcontext, suppress
from io import BytesIO
from pathlib import Path
from threading import Lock
from time import monotonic
from typing import Any, BinaryIO, Literal
from urllib.request import url2pathname


# First: configuration refuses other versions of transformers.
from .configuration_omnifusion import OmniFusionConfig  # noqa: F401  # isort: skip

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BatchFeature, get_size_dict
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, ChannelDimension, PILImageResampling
from transformers.processing_utils import ImagesKwargs
from transformers.utils import is_torch_tensor

from .views_omnifusion import (
    ImageFit,
    ImageViews,
    ViewStrategy,
    cut_image,
    image_views,
    region_views,
    regions_per_image,
)


class OmniFusionImageProcessorKwargs(ImagesKwargs, total=False):
    """Options of the processor and of a call; `regions` and `crop_to_patches` are given per call."""

    resize_backend: Literal["pil", "torchvision"]  # what resizes whole images and grids ([`resize_function`])
    view_strategy: ViewStrategy  # "whole": one view. "grid": the whole image, then the tiles of the best canvas
    image_fit: ImageFit  # how the whole image becomes a square
    grid_canvases: list[list[int]]  # canvases of the grid strategy as [rows, columns] of tiles
    max_image_pixels: int  # an image that declares more raises `ValueError` before it is decoded
    regions: Any  # boxes that become views ([`region_views`]): one list per image, nested as the images are
    region_context: float | int  # the margin of a region, both sides together, in parts of the box's longer side
    max_regions: int  # the most regions per image: those with the best scores, or the first in reading order
    crop_to_patches: bool  # True also returns `num_patches`, the views of each image; TRL's GRPO sets it


# Saved beside `resample`, so that a later change of resampling is visible in the file.
RECORDED = {"backend": "pil", "antialias": True}
MAX_DOWNLOAD_BYTES, MAX_DOWNLOAD_SECONDS = 2**27, 120
CHANNELS = (1, 3, 4)
OVERSHOOT = 0.3  # of floats beyond their range, in parts of the maximum; Pillow's bicubic has up to 0.28
TURNS = "FLIP_LEFT_RIGHT ROTATE_180 FLIP_TOP_BOTTOM TRANSPOSE ROTATE_270 TRANSVERSE ROTATE_90"
UPRIGHT = {number: Image.Transpose[name] for number, name in enumerate(TURNS.split(), start=2)}  # by EXIF orientation
# Formats of Pillow's list that it only writes, names without decoding, or gives to another program.
NOT_DECODED = {"PALM", "PDF", "MPEG", "BUFR", "GRIB", "HDF5", "WMF", "EPS"}
PILLOW_TAKES = 2 * (Image.MAX_IMAGE_PIXELS or 0)
_pillow_limit = Lock()


def load_image(source, max_pixels: int, input_data_format=None, do_convert_rgb: bool = True) -> Image.Image:
    """The image as a viewer shows it: decoded, upright, on white where transparent, RGB; `do_convert_rgb=False` only
    decodes. `source` is a PIL image, an array or tensor ([`array_to_image`]) or anything that [`open_image`] opens.
    Other input and broken images raise a `ValueError` that names them."""
    if isinstance(source, np.ndarray) or is_torch_tensor(source):
        source = array_to_image(source, input_data_format)
    opened = nullcontext(source) if isinstance(source, Image.Image) else open_image(source, max_pixels)
    with opened as image:
        name = str(getattr(image, "filename", "") or f"An image of mode {image.mode}")
        _check_pixels(image, name, max_pixels)
        with _naming(name):
            image.load()
        _check_pixels(image, name, max_pixels)  # the header of an icon may declare another size
        if not do_convert_rgb:
            return image
        turn = None
        with suppress(Exception):  # malformed EXIF turns nothing, as in viewers
            turn = UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation))
        with _naming(name, "cannot be shown"):
            image = _to_rgb(image)
            if turn is not None:
                image = image.transpose(turn)
                image.info = {}  # its EXIF would turn it again
            return image


def is_image(path: Path) -> bool:
    """Whether a file has the suffix of an image that Pillow decodes."""
    return Image.registered_extensions().get(path.suffix.lower(), "PDF") not in NOT_DECODED


def open_image(source, max_pixels: int) -> Image.Image:
    """Opens, without decoding, a path, URL, base64, data URI, bytes, open file, or datasets' `{"bytes", "path"}`."""
    file, name = _file_and_name(source)
    with _naming(name):
        image = _pillow_open(file, max_pixels)
    if image.format == "EPS":  # Pillow would run Ghostscript on it
        raise ValueError(f"{name} is a program in PostScript, which is not run; convert it to PNG or JPEG.")
    image.filename = name
    _check_pixels(image, name, max_pixels)
    return image


@contextmanager
def _naming(name: str, what: str = "is broken"):
    """One `ValueError` for the many classes of errors that Pillow's decoders raise."""
    try:
        yield
    except UnidentifiedImageError as error:
        raise ValueError(f"{name}: Not an image file that Pillow can read; convert it to PNG or JPEG.") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name}: {error} Raise max_image_pixels if you trust its source.") from error
    except Exception as error:
        raise ValueError(f"{name} {what}: {str(error) or type(error).__name__}.") from error


def _pillow_open(file: str | BinaryIO, max_pixels: int) -> Image.Image:
    """Pillow's limit is global: it changes only for a cap above it, in one thread at a time."""
    if max_pixels <= PILLOW_TAKES:
        return Image.open(file)
    with _pillow_limit:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, max_pixels
        try:
            return Image.open(file)
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _check_pixels(image: Image.Image, name: str, max_pixels: int):
    if not 0 < (pixels := image.width * image.height) <= max_pixels:
        raise ValueError(
            f"{name} declares {image.width} x {image.height} = {pixels} pixels, not 1 to max_image_pixels="
            f"{max_pixels}; shrink it or, if you trust its source, raise that limit (now {max_pixels})."
        )


def _file_and_name(source) -> tuple[str | BinaryIO, str]:
    """The argument of Pillow's `open`, and a name for messages."""
    path = None
    if isinstance(source, dict):
        path = source.get("path")
        source = path if source.get("bytes") is None else source["bytes"]
    if isinstance(source, (bytes, bytearray, memoryview)):
        return BytesIO(bytes(source)), str(path or f"{len(source)} bytes")
    if isinstance(source, (str, os.PathLike)):
        return _file_of_text(os.fsdecode(source))
    if hasattr(source, "read"):
        return source, str(getattr(source, "name", source))
    raise ValueError(
        "An image must be a PIL image, array, tensor, path, URL, base64, open file, bytes or {'bytes', 'path'}, got "
        f"{type(source)}."
    )


def local_path(text: str) -> str:
    """The path that a `file:` URL of this machine names; other text as it is."""
    is_local_url = text.startswith(("file:///", "file://localhost/"))
    return url2pathname(text[text.index("/", len("file://")) :]) if is_local_url else text


def _file_of_text(text: str) -> tuple[str | BinaryIO, str]:
    if text.startswith(("http://", "https://")):
        return BytesIO(_download(text)), text
    path = local_path(text)
    if len(path) < 4096 and os.path.isfile(path):
        return path, path
    digits = "".join(text.rpartition("base64,")[2].split())
    try:
        data = base64.b64decode(digits + "=" * (-len(digits) % 4), validate=True)
    except ValueError:
        raise ValueError(
            f"No image at `{text[:80]}`: neither an existing file, an http(s) URL nor base64; check the path."
        ) from None
    return BytesIO(data), f"`{text[:80]}` (no such file, so read as base64)"


def _download(url: str) -> bytes:
    from huggingface_hub.utils import httpx

    data, deadline = bytearray(), monotonic() + MAX_DOWNLOAD_SECONDS
    with _naming(url, "cannot be fetched"):
        with httpx.stream("GET", url, follow_redirects=True, timeout=30) as response:
            for part in response.raise_for_status().iter_bytes():
                data += part
                if len(data) > MAX_DOWNLOAD_BYTES or monotonic() > deadline:
                    raise ValueError(f"more than {MAX_DOWNLOAD_BYTES} bytes or {MAX_DOWNLOAD_SECONDS} s")
    return bytes(data)


def _to_rgb(image: Image.Image) -> Image.Image:
    """Transparency on white, 16-bit scaled to 8. `ValueError` for 32-bit modes, which have no range of brightness."""
    if image.mode.startswith("I;16") or image.mode == "I":
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"mode {image.mode} holds {values.min()}..{values.max()}; scale it to 8 bit")
        image = Image.fromarray(((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("mode F (32-bit float) has no defined range of brightness; scale it to 8 bit")
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image if image.mode == "RGB" else image.convert("RGB")


def array_to_image(array, input_data_format=None) -> Image.Image:
    """An image from (H, W), (H, W, C) or (C, H, W) with 1, 3 or 4 channels. If both layouts fit, an array is (H, W, C)
    and a tensor (C, H, W); `input_data_format` overrides. Values: see [`to_levels`]."""
    with _naming(f"An image given as {type(array).__name__}", "cannot be read"):
        if is_torch_tensor(array):
            axes, array = [0, -1], array.detach().cpu()
            array = (array.float() if array.is_floating_point() else array).numpy()  # numpy has no bfloat16
        else:
            axes, array = [-1, 0], np.asarray(array)
        if input_data_format is not None:
            axes = [0 if ChannelDimension(input_data_format) is ChannelDimension.FIRST else -1]
        if array.ndim == 2:
            array, axes = array[..., None], [-1]
        fitting = [axis for axis in axes if array.ndim == 3 and array.shape[axis] in CHANNELS]
        if not fitting or not array.size:
            raise ValueError(f"it must be (H, W), (H, W, C) or (C, H, W) with C of {CHANNELS}, got {array.shape}")
        levels = to_levels(np.moveaxis(array, fitting[0], -1))  # (H, W, C)
        return Image.fromarray(levels[..., 0] if levels.shape[-1] == 1 else levels)


def to_levels(array: np.ndarray) -> np.ndarray:
    """uint8 of booleans, integers 0..255, or floats: 0..1 if the largest is below 2, else 0..255. Overshoot of floats
    (as of bicubic resizing) is clipped."""
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind not in "biuf":
        raise ValueError(f"it must hold numbers, got {array.dtype}")
    low, high = float(array.min()), float(array.max())
    slack = OVERSHOOT if array.dtype.kind == "f" else 0
    top = 255 if array.dtype.kind in "iu" or high >= 2 else 1
    if not (-slack * max(high, 1) <= low and high <= top * (1 + slack)):  # NaN fails as well
        raise ValueError(
            f"it holds {array.dtype} of {low:g} to {high:g}; integers are 0..255, floats 0..255 or 0..1. Give raw "
            "pixels, which are normalised here, and divide 16-bit ones by 257"
        )
    return np.round(array * (255 // top)).clip(0, 255).astype(np.uint8)


def is_nested(images) -> bool:
    return isinstance(images, (list, tuple)) or getattr(images, "ndim", 0) > 3


def flat(images) -> list:
    """All images one after another, whether alone, listed, nested or in an array (N, H, W, C)."""
    return [image for item in images for image in flat(item)] if is_nested(images) else [images]


def images_per_prompt(images) -> list[int] | None:
    """[3, 1] for [[a, b, c], [d]]; None for images that are not nested per prompt."""
    nested = isinstance(images, (list, tuple)) and any(isinstance(sample, (list, tuple)) for sample in images)
    return [len(flat(sample)) for sample in images] if nested else None


class OmniFusionImageProcessor(PilBackend):  # trf-ignore: TRF057
    r"""Turns images into views: `pixel_values` (ΣV, 3, S, S) float32, flat over the batch, and `image_view_index`
    (ΣV,), which counts from 0 within each image. The views of an image: the whole image, the tiles of
    `view_strategy="grid"`, the `regions` of the call. Images: all that [`load_image`] takes, alone, listed or nested.

    `do_rescale=False` with `do_normalize=False` leaves views in 0..255; `image_mean` and `image_std` are always in
    0..1. Source: paper section 3.3; v1.1 uses `image_fit="crop"`, bicubic, S=336."""

    valid_kwargs = OmniFusionImageProcessorKwargs
    model_input_names = ["pixel_values", "image_view_index"]

    resample = PILImageResampling.BICUBIC
    image_mean = OPENAI_CLIP_MEAN
    image_std = OPENAI_CLIP_STD
    size = {"height": 336, "width": 336}
    do_resize = True  # trf-ignore: TRF016 (always done; False is refused)
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    resize_backend = "pil"
    view_strategy = "whole"
    image_fit = "crop"
    grid_canvases = [[1, 2], [2, 1], [2, 2], [1, 3], [3, 1]]
    max_image_pixels = 2**27
    regions = None  # always given per call
    region_context = 0.2
    max_regions = 4
    crop_to_patches = False

    def __init__(self, **kwargs):
        for name, value in RECORDED.items():
            if kwargs.pop(name, value) != value:
                raise ValueError(f"{name} is always {value!r} here (see resize_backend); remove it.")
        super().__init__(**kwargs)

    def to_dict(self) -> dict:
        return super().to_dict() | RECORDED

    def fetch_images(self, image_url_or_urls, max_image_pixels: int | None = None, input_data_format=None):
        """Decodes everything that is not a PIL image yet; nesting is kept."""
        source, layout = image_url_or_urls, input_data_format or self.input_data_format
        if is_nested(source):
            return [self.fetch_images(item, max_image_pixels, layout) for item in source]
        is_decoded = isinstance(source, Image.Image)
        return source if is_decoded else load_image(source, max_image_pixels or self.max_image_pixels, layout, False)

    def preprocess(self, images, *args, **kwargs) -> BatchFeature:  # trf-ignore: TRF057
        """As transformers' own; `regions` are nested as the images are."""
        images = self.fetch_images(images, kwargs.get("max_image_pixels"), kwargs.get("input_data_format"))
        flat_images = flat(images)
        if (regions := kwargs.get("regions", self.regions)) is not None:
            kwargs["regions"] = regions_per_image(regions, images_per_prompt(images) or [len(flat_images)])
        return super().preprocess(flat_images, *args, **kwargs)

    def process_image(self, image: Image.Image, *, max_image_pixels: int, do_convert_rgb: bool = True, **kwargs):
        """A decoded image as a viewer shows it, still a PIL image."""
        return load_image(image, max_image_pixels, None, do_convert_rgb)

    def _preprocess(
        self, images: list[Image.Image], size, do_rescale, do_normalize, image_mean, return_tensors, **kwargs
    ) -> BatchFeature:
        background = tuple(round(255 * mean) for mean in image_mean)
        plan = self.plan_views([(image.height, image.width) for image in images], size=size, **kwargs)
        views, image_view_index = [], []
        for image, boxes in zip(images, plan):
            if len(image.getbands()) != len(image_mean):  # only with do_convert_rgb=False
                raise ValueError(f"image_mean must be one value for each of an image's channels {image.getbands()}.")
            views += cut_image(image, boxes, size.height, kwargs["resample"], background, kwargs["resize_backend"])
            image_view_index += range(len(boxes))
        if not views:
            raise ValueError("images is empty, or an array of no image; give one at least.")
        pixels = np.empty((len(views), len(image_mean), size.height, size.height), np.float32)  # (ΣV, 3, S, S)
        for planes, view in zip(pixels, views):  # in place and view by view, which stays in the processor's cache
            planes[:] = np.asarray(view).transpose(2, 0, 1)
            if do_rescale or do_normalize:  # mean and std are in 0..1
                planes *= np.float32(kwargs["rescale_factor"])
            if do_normalize:
                planes -= np.float32(image_mean)[:, None, None]
                planes /= np.float32(kwargs["image_std"])[:, None, None]
        data = {"pixel_values": pixels, "image_view_index": np.asarray(image_view_index, dtype=np.int64)}
        if kwargs["crop_to_patches"]:
            data["num_patches"] = np.asarray([len(boxes) for boxes in plan])
        return BatchFeature(data=data, tensor_type=return_tensors)

    def plan_views(self, image_sizes: list[tuple[int, int]], **options) -> list[ImageViews]:
        """The views of images of known (height, width); `options` are those of a call, `regions` included."""
        options = {name: getattr(self, name) for name in self.valid_kwargs.__annotations__} | options
        side = self._checked_side(**options)
        regions = regions_per_image([] if options["regions"] is None else options["regions"], [len(image_sizes)])
        chosen = [options[name] for name in ("view_strategy", "image_fit", "grid_canvases")]
        plan = []
        for index, (size, boxes) in enumerate(zip(image_sizes, regions)):
            try:
                boxes = region_views(size, boxes, options["region_context"], options["max_regions"])
            except ValueError as error:
                raise ValueError(f"Regions of image {index}, {error}") from None
            plan.append(image_views(size, *chosen, side, boxes))
        return plan

    def _checked_side(self, size, do_resize: bool, **options) -> int:
        """S; raises `ValueError` for options that no view can have."""
        size = get_size_dict(size if isinstance(size, (int, list, tuple)) else dict(size))
        if not size.get("height") or size["height"] != size.get("width"):
            raise ValueError(f"size must be square, {{'height': S, 'width': S}}, got {size}.")
        if not do_resize:
            raise ValueError("Views are always resized to S x S; do_resize must stay True.")
        for name in ("region_context", "max_regions"):
            if not 0 <= options[name] < float("inf"):
                raise ValueError(f"{name} must be 0 or more, got {options[name]}.")
        return size["height"]

    def get_number_of_image_patches(self, height: int, width: int, images_kwargs: dict | None = None) -> int:
        """V, the number of views of an image of this size (transformers' name for it); needs no pixels."""
        return len(self.plan_views([(height, width)], **images_kwargs or {})[0])


__all__ = ["OmniFusionImageProcessor"]

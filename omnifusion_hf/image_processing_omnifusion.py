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
"""Pictures to `pixel_values`: decode safely, show as a viewer would, cut the views, normalise for the first encoder.

One backend, Pillow, on every machine: its resampling (antialiased) is what the published checkpoints were measured
with, so a picture gives the same pixels wherever the model runs.
"""

import base64
import binascii
import os
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import (
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
    ChannelDimension,
    PILImageResampling,
    infer_channel_dimension_format,
    is_valid_image,
    make_flat_list_of_images,
)
from transformers.processing_utils import ImagesKwargs
from transformers.utils import is_torch_tensor

from .views_omnifusion import (
    Box,
    ImageFit,
    PictureViews,
    ViewStrategy,
    picture_views,
    region_views,
    regions_per_image,
)


# Written into the saved file beside `resample`, so that a change of resampling between versions can be seen.
RECORDED = {"backend": "pil", "antialias": True}


class OmniFusionImageProcessorKwargs(ImagesKwargs, total=False):
    r"""
    view_strategy (`"whole"` or `"grid"`):
        `"whole"`: one view. `"grid"`: the whole picture, then the tiles of the best canvas.
    image_fit (`"crop"`, `"pad"` or `"squash"`):
        How the whole picture becomes a square.
    grid_canvases (`list[list[int]]`):
        Canvases of the grid strategy as [rows, columns] of tiles.
    max_image_pixels (`int`):
        Pictures that declare more pixels are refused before they are decoded.
    regions (`list`, per call):
        Boxes that become views of their own: one list per picture, nested as the pictures are, of
        `[left, top, right, bottom]` or of what transformers' detection pipelines return. In pixels of the picture as a
        viewer shows it, EXIF orientation applied.
    region_context (`float`):
        What a region shows around its box, both sides together, as a share of the box's longer side.
    max_regions (`int`):
        The most regions of one picture: the best scored ones or, without scores, the first in reading order.
    """

    view_strategy: ViewStrategy
    image_fit: ImageFit
    grid_canvases: list[list[int]]
    max_image_pixels: int
    regions: Any
    region_context: float | int
    max_regions: int


# A resized picture above this is never made: 4096 x 4096 pixels, 48 MB.
MAX_RESIZED_PIXELS = 2**24


@contextmanager
def _pillow_limit(max_pixels: int):
    """Pillow refuses above twice its own limit; ours decides, in both directions."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = max_pixels
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def check_pixels(image: Image.Image, max_pixels: int):
    """Raises `ValueError` for a picture larger than the cap. Reads the header only: Pillow decodes on first use."""
    width, height = image.size
    if width * height > max_pixels:
        raise ValueError(
            f"The picture declares {width} x {height} = {width * height} pixels, more than max_image_pixels="
            f"{max_pixels}; shrink it or raise max_image_pixels if you trust its source."
        )


def open_image(source: str | bytes | os.PathLike, max_pixels: int) -> Image.Image:
    """Opens (without decoding) a picture given as a path, URL, base64 / data URI or as the bytes of a file."""
    name = f"{len(source)} bytes" if isinstance(source, bytes) else str(source)[:80]
    if isinstance(source, (str, os.PathLike)):
        source = _read(str(source))
    try:
        with _pillow_limit(max_pixels):
            image = Image.open(BytesIO(source))
    except Image.DecompressionBombError as error:
        raise ValueError(f"{error} Raise max_image_pixels (now {max_pixels}) if you trust its source.") from error
    except OSError as error:
        raise ValueError(f"Not a picture file that Pillow can read: {name}; convert it to PNG or JPEG.") from error
    check_pixels(image, max_pixels)
    image.filename = name  # what a file that turns out to be cut short is called
    return image


def _read(source: str) -> bytes:
    if source.startswith(("http://", "https://")):
        from huggingface_hub.utils import httpx

        response = httpx.get(source, follow_redirects=True, timeout=30)
        response.raise_for_status()
        return response.content
    if len(source) < 4096 and os.path.isfile(source):
        return Path(source).read_bytes()
    try:
        return base64.b64decode(source.split("base64,")[-1], validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(
            f"No picture at `{source[:80]}`: neither an existing file, an http(s) URL nor base64; check the path."
        ) from None


def viewer_rgb(image: Image.Image) -> Image.Image:
    """RGB as a viewer shows the file: EXIF orientation applied, transparency on white, 16-bit scaled to 8.

    Raises `ValueError` for modes without a defined brightness range (32-bit integer or float) and for broken files.
    """
    try:
        image.load()
    except OSError as error:
        raise ValueError(f"{getattr(image, 'filename', None) or 'A picture'} is broken: {error}.") from error
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or image.mode == "I":
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(
                f"Mode {image.mode} with values {values.min()}..{values.max()}; scale the picture to 8 bit."
            )
        image = Image.fromarray(((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("Mode F (32-bit float) has no defined brightness range; scale the picture to 8 bit.")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def array_to_image(array, do_rescale: bool, input_data_format=None) -> Image.Image:
    """A picture from an array or tensor: (H, W), (H, W, C) or (C, H, W); 0..255, or 0..1 where rescaled already."""
    if is_torch_tensor(array):
        array = array.detach().cpu()
        array = array.float() if array.is_floating_point() else array  # numpy has no bfloat16
    array = np.asarray(array)
    if array.ndim == 3:
        layout = input_data_format or infer_channel_dimension_format(array, num_channels=(1, 3, 4))
        if layout in (ChannelDimension.FIRST, "channels_first"):
            array = np.moveaxis(array, 0, -1)  # (H, W, C)
        array = array[..., 0] if array.shape[-1] == 1 else array
    if array.dtype != np.uint8:
        array = array * (1 if do_rescale and array.max() > 1 else 255)
        if array.min() < 0 or array.max() > 255:
            raise ValueError(
                f"Array pictures hold 0..255 or 0..1, got {array.dtype} with a range beyond; pass raw pixels, "
                "the image processor normalises them."
            )
        array = np.round(array).astype(np.uint8)
    return Image.fromarray(array)


def cut_views(image: Image.Image, boxes: list[Box], side: int, resample: int, background: tuple) -> list[Image.Image]:
    """The boxes resampled to `side` x `side`; what a box has outside the picture becomes background.

    "Resize to whole pixels, then crop" is done literally, since Pillow reads a box in float32 and would be off by one
    level here and there. Only where the resized picture would be huge (a long strip) the box is resampled directly.
    """
    resized = {image.size: image}
    views = []
    for box in boxes:
        x_scale, y_scale = side / (box[2] - box[0]), side / (box[3] - box[1])
        size = (round(image.width * x_scale), round(image.height * y_scale))
        if size[0] * size[1] > MAX_RESIZED_PIXELS:
            views.append(cut_directly(image, box, side, resample, background))
            continue
        if size not in resized:
            resized[size] = image.resize(size, resample)
        view = Image.new(image.mode, (side, side), background)
        view.paste(resized[size], (round(-box[0] * x_scale), round(-box[1] * y_scale)))
        views.append(view)
    return views


def cut_directly(image: Image.Image, box: Box, side: int, resample: int, background: tuple) -> Image.Image:
    """One box resampled to `side` x `side` at the cost of that view alone, however large the picture is."""
    left, top, right, bottom = box
    x_scale, y_scale = side / (right - left), side / (bottom - top)
    inside = (max(left, 0.0), max(top, 0.0), min(right, image.width), min(bottom, image.height))
    size = (round((inside[2] - inside[0]) * x_scale), round((inside[3] - inside[1]) * y_scale))
    size = (max(size[0], 1), max(size[1], 1))
    view = Image.new(image.mode, (side, side), background)
    view.paste(
        image.resize(size, resample, box=inside),
        (round((inside[0] - left) * x_scale), round((inside[1] - top) * y_scale)),
    )
    return view


def cut_picture(
    image: Image.Image, boxes: PictureViews, side: int, resample: int, background: tuple
) -> list[Image.Image]:
    """All views of a picture in their order. Regions are small parts of it, so that each is cut by itself."""
    cut = {"side": side, "resample": resample, "background": background}
    whole_and_tiles = cut_views(image, [boxes.whole, *boxes.tiles], **cut)
    return whole_and_tiles + [cut_directly(image, box, **cut) for box in boxes.regions]


class OmniFusionImageProcessor(PilBackend):  # trf-ignore: TRF057
    r"""
    Turns pictures into views: `pixel_values` (ΣV, 3, S, S) float32, flat over the batch, and `image_view_index` (ΣV,),
    which counts from 0 within each picture (and stays right when views of several requests are sliced or joined).
    A picture's views are the whole picture, then the tiles of `view_strategy="grid"`, then the `regions` of the call.

    Pictures may be PIL images, numpy arrays, torch tensors, paths, URLs, base64 strings or the bytes of a file.
    Source: paper section 3.3; v1.1 uses `image_fit="crop"`, bicubic, S=336.
    """

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
    view_strategy = "whole"
    image_fit = "crop"
    grid_canvases = [[1, 2], [2, 1], [2, 2], [1, 3], [3, 1]]
    max_image_pixels = 2**27
    regions = None  # always given per call
    region_context = 0.2
    max_regions = 4

    def __init__(self, **kwargs):
        for name, value in RECORDED.items():
            if kwargs.pop(name, value) != value:
                raise ValueError(f"{name} is always {value!r} here; remove it from the configuration.")
        super().__init__(**kwargs)

    def to_dict(self) -> dict:
        return super().to_dict() | RECORDED

    def _validate_preprocess_kwargs(self, size=None, do_resize=None, **kwargs):
        super()._validate_preprocess_kwargs(size=size, do_resize=do_resize, **kwargs)
        if not size.height or size.height != size.width:
            raise ValueError(f"size must be square, {{'height': S, 'width': S}}, got {dict(size)}.")
        if not do_resize:
            raise ValueError("Views are always resized to S x S; do_resize must stay True.")
        for name in ("region_context", "max_regions"):
            if not 0 <= kwargs[name] < float("inf"):
                raise ValueError(f"{name} must be 0 or more, got {kwargs[name]}.")

    def fetch_images(self, image_url_or_urls, max_image_pixels: int | None = None):
        """Opens whatever is not a picture object yet; nesting is kept."""
        if isinstance(image_url_or_urls, (list, tuple)):
            return [self.fetch_images(item, max_image_pixels) for item in image_url_or_urls]
        if isinstance(image_url_or_urls, (str, bytes, os.PathLike)):
            return open_image(image_url_or_urls, max_image_pixels or self.max_image_pixels)
        if not is_valid_image(image_url_or_urls):
            raise TypeError(
                f"A picture must be a PIL image, array, tensor, path, URL or bytes, got {type(image_url_or_urls)}."
            )
        return image_url_or_urls

    def _preprocess_image_like_inputs(self, images, *args, regions=None, **kwargs) -> BatchFeature:
        images = self.fetch_images(images, kwargs["max_image_pixels"])
        if regions is not None:
            regions = regions_per_image(regions, _images_per_prompt(images))
        return super()._preprocess_image_like_inputs(images, *args, regions=regions, **kwargs)

    def process_image(
        self, image, input_data_format=None, max_image_pixels=None, do_rescale=True, do_convert_rgb=True, **kwargs
    ):
        if not isinstance(image, Image.Image):
            image = array_to_image(image, do_rescale, input_data_format)
        check_pixels(image, max_image_pixels)
        return viewer_rgb(image) if do_convert_rgb else image

    def _preprocess(
        self,
        images: list[Image.Image],
        size,
        resample,
        do_rescale,
        rescale_factor,
        do_normalize,
        image_mean,
        image_std,
        return_tensors,
        **kwargs,
    ) -> BatchFeature:
        background = tuple(round(255 * mean) for mean in image_mean)
        plan = self.plan_views([(image.height, image.width) for image in images], size=size, **kwargs)
        views, image_view_index = [], []
        for image, boxes in zip(images, plan):
            if len(image.getbands()) != len(image_mean):  # possible with do_convert_rgb=False alone
                raise ValueError(
                    f"A picture has the channels {image.getbands()} and image_mean {len(image_mean)} values; give one "
                    "value per channel or leave do_convert_rgb=True."
                )
            views += cut_picture(image, boxes, size.height, resample, background)
            image_view_index += range(len(boxes))
        pixels = np.stack([np.asarray(view) for view in views]).astype(np.float32)  # (ΣV, S, S, 3)
        if do_rescale:
            pixels *= rescale_factor
        if do_normalize:
            pixels = (pixels - np.float32(image_mean)) / np.float32(image_std)
        pixels = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))  # (ΣV, 3, S, S)
        data = {"pixel_values": pixels, "image_view_index": np.asarray(image_view_index, dtype=np.int64)}
        return BatchFeature(data=data, tensor_type=return_tensors)

    def plan_views(self, image_sizes: list[tuple[int, int]], **options) -> list[PictureViews]:
        """The views of pictures known by (height, width) alone; `options` are those of a call, `regions` included."""
        options = {name: getattr(self, name) for name in self._valid_kwargs_names} | options
        options = self._standardize_kwargs(**options)
        self._validate_preprocess_kwargs(**options)
        regions = [[] for _ in image_sizes]
        if options["regions"] is not None:
            regions = regions_per_image(options["regions"], [len(image_sizes)])
        chosen = [options[name] for name in ("view_strategy", "image_fit", "grid_canvases")]
        plan = []
        for index, (size, boxes) in enumerate(zip(image_sizes, regions)):
            try:
                boxes = region_views(size, boxes, options["region_context"], options["max_regions"])
            except ValueError as error:
                raise ValueError(f"Regions of picture {index}, {error}") from None
            plan.append(picture_views(size, *chosen, options["size"].height, boxes))
        return plan

    def get_number_of_image_patches(self, height: int, width: int, images_kwargs: dict | None = None) -> int:
        """V, the number of views of a picture of this size (transformers' name for it); needs no pixels."""
        return len(self.plan_views([(height, width)], **images_kwargs or {})[0])


def _images_per_prompt(images) -> list[int]:
    """[3, 1] for [[a, b, c], [d]]; what is not nested counts as one prompt."""
    if isinstance(images, (list, tuple)) and any(isinstance(sample, (list, tuple)) for sample in images):
        return [len(sample) if isinstance(sample, (list, tuple)) else 1 for sample in images]
    return [len(make_flat_list_of_images(images))]


__all__ = ["OmniFusionImageProcessor"]

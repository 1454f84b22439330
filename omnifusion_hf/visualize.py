# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""Draws an image with the boxes of its views, the views as the encoder gets them, and their token counts.

Parts of a view outside the image (padding) are hatched, parts of the image outside all views are grey. Everything is
drawn at twice its size and halved at the end, which smooths lines and letters.
"""

from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .inference import context_length as context_length_of
from .io import friendly_load_errors, staged_file
from .model.configuration_omnifusion import OmniFusionConfig
from .model.image_processing_omnifusion import OmniFusionImageProcessor, load_image
from .model.processing_omnifusion import TokenCount
from .model.views_omnifusion import Box, ImageViews, best_canvas, cut_image


PAPER, WHITE, GREY, HATCH = (251, 251, 249), (255, 255, 255), (190, 190, 186), (214, 214, 208)
INK, FAINT = (32, 33, 36), (112, 115, 120)
COLOURS = {"whole": (0, 122, 90), "tile": (25, 95, 195), "region": (205, 70, 0)}
# Sizes in pixels before halving.
WIDEST, TALLEST, MARGIN, THUMB, GAP = 1800, 1300, 64, 240, 24
TITLE, TEXT, BADGE = 44, 30, 28
LINE, CASING = 6, 2
BORDER = 2 * LINE + 2 * CASING


def draw_file(
    source: str, output: str, model: str | None = None, regions: list | None = None, tokens: int | None = None,
    context_length: int | None = None, **image_options,
) -> TokenCount:  # fmt: skip
    """Draws the views of an image file for `model` (a folder or Hub id), by default CLIP ViT-L/14-336 of the paper.

    Args:
        regions: boxes (left, top, right, bottom) in pixels that become views, as in a call of the processor.
        tokens: visual tokens per view; default: the model's.
        context_length: of the LLM, in tokens; default: the model's.
        image_options: fields of [`OmniFusionImageProcessor`] to change, such as `view_strategy`.
    """
    if model is None:
        processor, tokens = OmniFusionImageProcessor(**image_options), tokens or 576
    else:
        with friendly_load_errors(model):
            processor = OmniFusionImageProcessor.from_pretrained(model, **image_options)
            config = OmniFusionConfig.from_pretrained(model)
        tokens = tokens or config.image_seq_length
        context_length = context_length or context_length_of(config.text_config)
    image = load_image(source, processor.max_image_pixels)
    encoders = describe_encoders(model) if model and "size" not in image_options else {}
    return draw_image(image, output, processor, regions, tokens, Path(source).name, context_length, encoders)


def describe_encoders(model: str) -> dict[str, int]:
    """The side of a view of each encoder of a model with several, by a line that says what it makes of it."""
    with friendly_load_errors(model):
        config = OmniFusionConfig.from_pretrained(model)
    vision = config.vision_config
    parts = zip(vision.encoder_configs, vision.image_sizes, config.num_encoder_tokens)
    lines = {
        f"encoder {number}, {encoder.model_type}: each view at {size} x {size} pixels, {tokens} tokens": size
        for number, (encoder, size, tokens) in enumerate(parts, start=1)
    }
    return lines if len(lines) > 1 else {}


def draw_image(
    image: Image.Image, output: str | Path, processor: OmniFusionImageProcessor, regions: list | None, tokens: int,
    title: str, context_length: int | None = None, encoders: dict[str, int] | None = None,
) -> TokenCount:  # fmt: skip
    """Draws the views of one RGB image to the file `output`; `tokens` per view; of several `encoders`, see
    [`describe_encoders`], each one's. Raises `ValueError` for the file's suffix."""
    views = processor.plan_views([(image.height, image.width)], regions=regions)[0]
    count = TokenCount([len(views)], tokens, context_length)
    drawing = draw_views(image, views, count, processor, title, encoders)
    suffix = Path(output).suffix.lower()
    if (formats := Image.registered_extensions()).get(suffix) not in Image.SAVE:
        raise ValueError(f"{output}: `{suffix}` is not an image format; use .png.")
    with staged_file(output) as part:
        drawing.save(part, formats[suffix])
    return count


def draw_views(
    image: Image.Image, views: ImageViews, count: TokenCount, processor: OmniFusionImageProcessor, title: str,
    encoders: dict[str, int] | None = None,
) -> Image.Image:  # fmt: skip
    """The drawing of one RGB image with the views and the count that the processor planned for it."""
    side = processor.size["height"]
    background = tuple(round(255 * mean) for mean in processor.image_mean)
    cuts = cut_image(image, views, side, processor.resample, background, processor.resize_backend)
    facts = [f"{image.width} x {image.height} pixels", f"whole view: {processor.image_fit}"]
    if views.tiles:
        rows, columns = best_canvas((image.height, image.width), processor.grid_canvases, side)
        facts.append(f"grid of {rows} x {columns}")
    head = [_text(title, TITLE, INK), _text(" · ".join([*facts, f"views of {side} x {side}"]), TEXT, FAINT)]
    scene = _draw_scene(image, views, count.image_seq_length)
    total = _text(str(count), TEXT, INK)
    lines = [_text(line, TEXT, FAINT) for line in encoders or {}]
    width = max(scene.width, *(text.width for text in (total, *head, *lines)), min(len(cuts), 4) * (THUMB + GAP) - GAP)
    rows = [] if encoders else [_draw_cuts(cuts, views, width)]
    for line, own in zip(lines, (encoders or {}).values()):  # resized from the first one's
        rows += [line, _draw_cuts([cut.resize((own, own)) for cut in cuts], views, width)]
    page = _stack([_stack(head, GAP // 2), scene, *rows, total], GAP * 2)
    framed = Image.new("RGB", (width + 2 * MARGIN, page.height + 2 * MARGIN), PAPER)
    framed.paste(page, (MARGIN, MARGIN))
    return framed.resize((framed.width // 2, framed.height // 2), Image.Resampling.LANCZOS)


def _kinds(views: ImageViews) -> list[str]:
    return ["whole", *["tile"] * len(views.tiles), *["region"] * len(views.regions)]


def _on_page(boxes: list[Box]) -> list[tuple[int, int, int, int]]:
    """Boxes in pixels of the drawing, moved and scaled so that all fit."""
    corners = np.reshape(boxes, (-1, 2, 2))
    low, high = corners.min((0, 1)), corners.max((0, 1))
    scale = min(np.array([WIDEST, TALLEST]) / (high - low))
    scaled = np.rint((corners - low) * scale).astype(int) + BORDER
    scaled[:, 1] = np.maximum(scaled[:, 1], scaled[:, 0] + 1)
    return [tuple(box) for box in scaled.reshape(-1, 4).tolist()]


def _draw_scene(image: Image.Image, views: ImageViews, tokens: int) -> Image.Image:
    """The image with the boxes of its views, on a page that includes boxes outside the image."""
    frame, *boxes = _on_page([(0, 0, image.width, image.height), *views])
    size = [max(box[edge] for box in (frame, *boxes)) + BORDER for edge in (2, 3)]
    seen = Image.new("L", size, 0)
    for box in boxes:
        seen.paste(255, box)
    scene = Image.new("RGB", size, PAPER)
    scene.paste(_hatched(size), mask=seen)
    resized = image.resize((frame[2] - frame[0], frame[3] - frame[1]), Image.Resampling.LANCZOS)
    scene.paste(Image.blend(resized, Image.new("RGB", resized.size, GREY), 0.75), frame)
    scene.paste(resized, frame, seen.crop(frame))
    # A coloured line between white ones is visible on any image. White ones come first, so that none covers a colour.
    for colours in (dict.fromkeys(COLOURS, WHITE), COLOURS):
        for kind, box in zip(_kinds(views), boxes):
            _outline(scene, box, kind, colours[kind])
    for number, (kind, box) in enumerate(zip(_kinds(views), boxes), start=1):
        _badge(scene, box, kind, number, tokens)
    return scene


def _hatched(size: tuple[int, int]) -> Image.Image:
    hatched = Image.new("RGB", size, WHITE)
    draw = ImageDraw.Draw(hatched)
    for x in range(-size[1], size[0], 20):
        draw.line([(x, size[1]), (x + size[1], 0)], fill=HATCH, width=4)
    return hatched


def _outline(scene: Image.Image, box: tuple, kind: str, colour: tuple):
    """A line along the edge of a box; the whole view's is outside its tiles'. White lines are wider by the casing."""
    width = LINE + 2 * CASING if colour == WHITE else LINE
    outwards = width // 2 + (LINE + CASING if kind == "whole" else 0)
    left, top, right, bottom = box
    frame = (left - outwards, top - outwards, right + outwards - 1, bottom + outwards - 1)
    ImageDraw.Draw(scene).rectangle(frame, outline=colour, width=width)


def _badge(scene: Image.Image, box: tuple, kind: str, number: int, tokens: int):
    """Number and, if there is room, token count: at the right of the whole view, above a region."""
    left, top, right, _ = box
    text = f"{number} · {tokens} tokens"
    if _length(text, BADGE) + 2 * GAP > right - left:
        text = str(number)
    width, height = _length(text, BADGE) + GAP, BADGE + GAP // 2
    corner = (right - width - GAP // 2, top + GAP // 2) if kind == "whole" else (left + GAP // 2, top + GAP // 2)
    if kind == "region":
        corner = (left - LINE // 2 - CASING, top - height if top > height else top)
    draw = ImageDraw.Draw(scene)
    shape = (*corner, corner[0] + width, corner[1] + height)
    draw.rounded_rectangle(shape, radius=8, fill=COLOURS[kind], outline=WHITE, width=CASING)
    middle = ((shape[0] + shape[2]) / 2, (shape[1] + shape[3]) / 2)
    draw.text(middle, text, WHITE, _font(BADGE), anchor="mm")


def _draw_cuts(cuts: list[Image.Image], views: ImageViews, width: int) -> Image.Image:
    """The views as the encoder gets them, numbered, in rows of the given width."""
    columns = (width + GAP) // (THUMB + GAP)
    cell = (THUMB + GAP, THUMB + TEXT + 2 * GAP)
    rows = -(-len(cuts) // columns)
    sheet = Image.new("RGB", (width, rows * cell[1] - GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    for index, (cut, kind) in enumerate(zip(cuts, _kinds(views))):
        x, y = index % columns * cell[0], index // columns * cell[1]
        sheet.paste(cut.resize((THUMB, THUMB), Image.Resampling.LANCZOS), (x, y))
        draw.rectangle((x, y, x + THUMB - 1, y + THUMB - 1), outline=COLOURS[kind], width=LINE)
        draw.text((x, y + THUMB + GAP // 3), f"{index + 1} · {kind}", COLOURS[kind], _font(TEXT))
    return sheet


@cache
def _font(size: int):
    return ImageFont.load_default(size)


def _length(text: str, size: int) -> int:
    return round(_font(size).getlength(text))


def _text(text: str, size: int, colour: tuple) -> Image.Image:
    strip = Image.new("RGB", (_length(text, size) + 2, round(size * 1.3)), PAPER)
    ImageDraw.Draw(strip).text((0, 0), text, colour, _font(size))
    return strip


def _stack(parts: list[Image.Image], gap: int) -> Image.Image:
    """Images below each other, aligned left."""
    height = sum(part.height + gap for part in parts) - gap
    page, y = Image.new("RGB", (max(part.width for part in parts), height), PAPER), 0
    for part in parts:
        page.paste(part, (0, y))
        y += part.height + gap
    return page

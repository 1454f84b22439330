# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""A conversation about images: turns of a chat component -> messages of the chat template -> a prompt -> a streamed
answer. Independent of Gradio.

A turn is `{"role", "content": [parts]}` with parts `{"type": "text", "text"}` and
`{"type": "file", "file": {"path"}}`. Mistakes of users raise `ValueError`.
"""

from collections.abc import Iterator
from itertools import groupby
from mimetypes import guess_type
from pathlib import Path

from jinja2 import TemplateError
from PIL import Image

from ..inference import context_length, max_new_tokens_within_context
from ..model.image_processing_omnifusion import load_image, open_image
from ..model.processing_omnifusion import TokenCount
from ..visualize import draw_views
from .writing import write


MAX_IMAGES = 8  # in a conversation
MAX_CHARACTERS = 2000  # in a question
MAX_NEW_TOKENS = 512
# A subset of Pillow's formats: uploads are untrusted, and Pillow starts Ghostscript to decode an EPS, for example.
SUFFIXES = {
    "PNG": [".png"],
    "JPEG": [".jpg", ".jpeg"],
    "MPO": [".mpo"],  # JPEG of many phones, with a second image (depth, a preview) after the first
    "WEBP": [".webp"],
    "GIF": [".gif"],
    "BMP": [".bmp"],
}


def user_turn(text: str, paths: list[str]) -> dict:
    """A question as a turn of a chat component, images first."""
    files = [{"path": path, "mime_type": guess_type(path, strict=False)[0]} for path in paths]
    return {"role": "user", "content": [*({"type": "file", "file": file} for file in files), text_part(text)]}


def joined(turns: list[dict]) -> list[dict]:
    """Turns of one role in a row as one turn: a chat component may show each image as a turn of its own."""
    groups = groupby(turns, key=lambda turn: turn["role"])
    return [{"role": role, "content": [part for turn in group for part in turn["content"]]} for role, group in groups]


def text_part(text: str) -> dict:
    return {"type": "text", "text": text}


def read_boxes(text: str) -> list[list[float]]:
    """Boxes in pixels, `left, top, right, bottom`, one a line."""
    boxes = []
    for line in filter(str.strip, text.splitlines()):
        try:
            left, top, right, bottom = map(float, line.split(","))
        except ValueError:
            raise ValueError(f"The region {line.strip()!r} is not four numbers: left, top, right, bottom.") from None
        boxes.append([left, top, right, bottom])
    return boxes


def read_image(path: str, max_pixels: int) -> Image.Image:
    """An uploaded file as an RGB image, whose `filename` is the file's name."""
    name = Path(path).name
    try:
        image = open_image({"bytes": Path(path).read_bytes(), "path": name}, max_pixels)
    except OSError:
        raise ValueError(f"{name} is no longer here; clear the chat and upload it again.") from None
    if image.format not in SUFFIXES:
        raise ValueError(f"{name}: {image.format} is not supported; convert it to one of {', '.join(SUFFIXES)}.")
    image = load_image(image, max_pixels)
    image.filename = name
    return image


class Conversation:
    """Answers questions with one model, for any number of chats. It keeps no state of a chat.

    Args:
        model: an [`OmniFusionForConditionalGeneration`].
        processor: its [`OmniFusionProcessor`]; images above its image processor's `max_image_pixels` are refused.
    """

    def __init__(self, model, processor):
        self.model, self.processor = model, processor
        self.max_pixels = processor.image_processor.max_image_pixels
        self.context_length = context_length(model.config.text_config)

    def takes_system_prompt(self) -> bool:
        """Whether the chat template has a place for instructions before the first turn."""
        chat = [{"role": "system", "content": [text_part("instructed")]}, user_turn("Hello", [])]
        try:
            return "instructed" in self.processor.apply_chat_template(chat)
        except (ValueError, TemplateError):
            return False

    def messages(self, turns: list[dict], system: str = "") -> list[dict]:
        """Messages of the chat template, with opened images; `system` are instructions before the first turn."""
        turns = joined(turns)
        num_images = sum(len(paths_of(turn)) for turn in turns)
        if num_images > MAX_IMAGES:
            raise ValueError(f"This chat has {num_images} images, more than {MAX_IMAGES}; clear the chat.")
        instructions = [{"role": "system", "content": [text_part(system)]}] if system.strip() else []
        return instructions + [self._message(turn) for turn in turns]

    def _message(self, turn: dict) -> dict:
        text = text_of(turn)
        if not text:
            raise ValueError("The question is missing; write it below the images.")
        if turn["role"] == "user" and len(text) > MAX_CHARACTERS:
            raise ValueError(f"The question has {len(text)} characters, at most {MAX_CHARACTERS} are allowed.")
        images = [{"type": "image", "image": read_image(path, self.max_pixels)} for path in paths_of(turn)]
        return {"role": turn["role"], "content": [*images, text_part(text)]}

    def draw_last(
        self, messages: list[dict], view_strategy: str, boxes: list = ()
    ) -> tuple[Image.Image | None, TokenCount | None]:
        """A drawing of the last image with its views, and the token count of all images; None without images."""
        images = images_of(messages)
        if not images:
            return None, None
        sizes, regions = [(image.height, image.width) for image in images], _of_last(images, boxes)
        count = self.processor.count_tokens(
            sizes, self.context_length, view_strategy=view_strategy, regions=regions
        )  # fmt: skip
        image_processor = self.processor.image_processor
        views = image_processor.plan_views(sizes[-1:], view_strategy=view_strategy, regions=regions[-1:])[0]
        last = TokenCount(count.views[-1:], count.image_seq_length, count.context_length)
        return draw_views(images[-1], views, last, image_processor, images[-1].filename), count

    def prompt(self, messages: list[dict], view_strategy: str, boxes: list = ()):
        """Model inputs for an answer to the last message. Raises `ValueError` if they leave no room for an answer.

        Args:
            boxes: regions of the last image, (left, top, right, bottom) in pixels.
        """
        regions = _of_last(images_of(messages), boxes)
        inputs = self.processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
            processor_kwargs={"view_strategy": view_strategy} | ({"regions": regions} if regions else {}),
        )  # fmt: skip
        try:
            max_new_tokens_within_context(inputs, self.context_length, MAX_NEW_TOKENS)
        except ValueError as error:
            raise ValueError(f"The chat is too long with this question, clear it: {error}") from None
        return inputs.to(self.model.device)

    def answer(
        self, inputs, temperature: float = 0, max_new_tokens: int = MAX_NEW_TOKENS
    ) -> Iterator[str]:  # fmt: skip
        """Yields the answer so far until it is complete; it is greedy at a temperature of 0.

        Raises the errors of generation. The model stops at the next token after this iterator is closed.
        """
        room = max_new_tokens_within_context(inputs, self.context_length, max_new_tokens)
        sampling = {"do_sample": True, "temperature": temperature, "num_beams": 1} if temperature else {}
        for written in write(self.model, self.processor, inputs, max_new_tokens=room, **sampling):
            yield written.text


def images_of(messages: list[dict]) -> list[Image.Image]:
    parts = [part for message in messages for part in message["content"]]
    return [part["image"] for part in parts if part["type"] == "image"]


def _of_last(images: list, boxes: list) -> list[list]:
    """Regions as a list for each image: only the last one has some."""
    if boxes and not images:
        raise ValueError("Regions need an image; add one, or remove the regions.")
    return [[] for _ in images[1:]] + [list(boxes)] if images else []


def paths_of(turn: dict) -> list[str]:
    return [part["file"]["path"] for part in turn["content"] if part["type"] == "file"]


def text_of(turn: dict) -> str:
    return "\n".join(part["text"] for part in turn["content"] if part["type"] == "text").strip()

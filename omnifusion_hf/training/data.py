# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""LLaVA-format conversations: a JSON file and a folder of pictures to chat messages; pictures open when asked for.

What can be checked without opening a picture is checked when the file is read, so that a mistake costs seconds and
not a night's run.
"""

import json
import re
from pathlib import Path
from typing import Literal

from PIL import Image
from torch.utils.data import Dataset
from tqdm import tqdm

from ..image_processing_omnifusion import open_image
from ..views_omnifusion import read_region, regions_per_image


ConversationFormat = Literal["llava", "v1.1"]
IMAGE_MARK = "<image>"
ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}


class BrokenSampleError(ValueError):
    """A sample that cannot be trained on whole; the message begins with where it comes from."""


class ConversationDataset(Dataset):
    """Samples `{"id", "image": "a.png" | ["a.png", …], "conversations": [{"from": "human" | "gpt", "value"}, …]}`.

    `<image>` in a human turn says where the next listed picture stands; without any mark, pictures stand in front of
    the first human turn. In a sample without pictures, and in answers, `<image>` is text. An optional `"regions"`
    holds one list of boxes per picture, `[[[left, top, right, bottom], …], …]` in pixels, that become views.

    Args:
        data_path: a JSON file that holds a list of samples.
        conversation_format: `"llava"` as above; `"v1.1"` as the authors' release trained: `<image>` is always text and
            pictures stand in front of the first human turn.
        image_folder: where the pictures are; by default the folder of the JSON file.
        max_image_pixels: pictures that declare more are refused, as in the image processor.

    An item is `{"messages": chat messages with PIL pictures, "regions": one list of boxes for each of them, "name":
    where the sample comes from}`.
    Raises `ValueError` that names file, index and id of the first broken sample, or of a picture that cannot be read.
    """

    def __init__(
        self,
        data_path: str,
        image_folder: str | None = None,
        max_image_pixels: int = 2**27,
        conversation_format: ConversationFormat = "llava",
    ):
        self.data_path = Path(data_path)
        self.image_folder = Path(image_folder or self.data_path.parent)
        self.max_image_pixels = max_image_pixels
        self.conversation_format = conversation_format
        self.samples = read_samples(self.data_path)
        for index in tqdm(range(len(self)), desc=f"checking {self.data_path.name}", leave=False, disable=None):
            self._checked_messages(index)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict:
        messages = self._checked_messages(index)
        for message in messages:
            for part in message["content"]:
                if part["type"] == "image":
                    part["image"] = self._open(index, part["image"])
        return {"messages": messages, "regions": regions_of(self.samples[index]), "name": self._name(index)}

    def _name(self, index: int) -> str:
        sample = self.samples[index]
        identity = sample.get("id", "none") if isinstance(sample, dict) else "none"
        return f"{self.data_path}, sample {index} (id {identity})"

    def _checked_messages(self, index: int) -> list[dict]:
        try:
            messages = to_messages(self.samples[index], self.conversation_format)
            regions_of(self.samples[index])
            self._check_files(messages)
        except ValueError as error:
            raise BrokenSampleError(f"{self._name(index)}: {error}") from None
        return messages

    def _check_files(self, messages: list[dict]):
        for part in (part for message in messages for part in message["content"] if part["type"] == "image"):
            if not (self.image_folder / part["image"]).is_file():
                raise ValueError(
                    f"no picture file {self.image_folder / part['image']}; set image_folder to the folder that "
                    "the sample's `image` is relative to."
                )

    def _open(self, index: int, name: str) -> Image.Image:
        try:
            picture = open_image(self.image_folder / name, self.max_image_pixels)
            picture.load()
        except (OSError, ValueError) as error:
            raise BrokenSampleError(f"{self._name(index)}: cannot read {self.image_folder / name}: {error}") from error
        return picture


def read_samples(path: Path) -> list[dict]:
    """The list in a JSON file. Raises `ValueError` for anything else."""
    try:
        samples = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not a JSON file ({error}); LLaVA's format is one list of samples.") from None
    if not isinstance(samples, list) or not samples:
        raise ValueError(f"{path} must hold a list with at least one sample, got {type(samples).__name__}.")
    return samples


def to_messages(sample: dict, conversation_format: ConversationFormat = "llava") -> list[dict]:
    """One sample as chat messages; image parts hold the picture's file name. Errors do not name the sample."""
    if not isinstance(sample, dict) or not isinstance(sample.get("conversations"), list):
        raise ValueError('a sample is an object with a list "conversations".')
    pictures = pictures_of(sample)
    turns = [_role_and_text(turn) for turn in sample["conversations"]]
    _check_order([role for role, _ in turns])
    marked = pictures and conversation_format == "llava"
    pieces = [_pieces(text) if role == "user" and marked else [text] for role, text in turns]
    marks = sum(len(piece) - 1 for piece in pieces)
    if pictures and not marks:
        first = next(i for i, (role, _) in enumerate(turns) if role == "user")
        pieces[first] = [""] * len(pictures) + pieces[first]
    elif marks != len(pictures):
        raise ValueError(f"{marks} `{IMAGE_MARK}` marks in human turns for {len(pictures)} pictures {pictures}.")
    names = iter(pictures)
    return [{"role": role, "content": _content(role, piece, names)} for (role, _), piece in zip(turns, pieces)]


def pictures_of(sample: dict) -> list[str]:
    pictures = sample.get("image") or []
    return [pictures] if isinstance(pictures, str) else list(pictures)


def regions_of(sample: dict) -> list[list]:
    """One list of boxes per picture of a sample. `ValueError` for another number of lists or for what is no box."""
    regions = regions_per_image(sample.get("regions") or [], [len(pictures_of(sample))])
    for box in (box for boxes in regions for box in boxes):
        read_region(box)
    return regions


def _role_and_text(turn: dict) -> tuple[str, str]:
    role, text = (turn.get("from"), turn.get("value")) if isinstance(turn, dict) else (None, None)
    if role not in ROLES:
        raise ValueError(f"unknown role {role!r} in a turn; use one of {list(ROLES)}.")
    if not isinstance(text, str):
        raise ValueError(f"the {role} turn's value must be text, got {text!r}.")
    return ROLES[role], text


def _check_order(roles: list[str]):
    dialogue = roles[1:] if roles[:1] == ["system"] else roles
    if not dialogue or len(dialogue) % 2 or dialogue != ["user", "assistant"] * (len(dialogue) // 2):
        raise ValueError(
            f"turns must alternate, human first and gpt last (one system turn may open them), got {roles}."
        )


def _pieces(text: str) -> list[str]:
    """Text around the marks, without the newline that LLaVA puts beside a mark."""
    return re.split(rf"\n?{IMAGE_MARK}\n?", text)


def _content(role: str, pieces: list[str], names) -> list[dict]:
    """Text parts with the next picture between each two of them."""
    parts = [{"type": "text", "text": pieces[0]}]
    for piece in pieces[1:]:
        parts += [{"type": "image", "image": next(names)}, {"type": "text", "text": piece}]
    parts = [part for part in parts if part.get("text") != ""]
    if not any(part["type"] == "image" or part["text"].strip() for part in parts):
        raise ValueError(f"an empty {role} turn; remove the sample or fill the turn.")
    return parts

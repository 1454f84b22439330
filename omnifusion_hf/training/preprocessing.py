# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""One conversation to token ids, labels and views. Labels come from the chat template's generation mask, never from
a second tokenization. A sample that cannot be used whole is refused or skipped, never cut."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from jinja2 import TemplateError
from PIL import Image
from torch.utils.data import Dataset, IterableDataset
from tqdm import tqdm

from ..model.image_processing_omnifusion import open_image
from ..model.processing_omnifusion import OmniFusionProcessor
from .conversations import BadSamples, BrokenSampleError, map_good, open_images


@dataclass
class ConversationEncoder:
    """Opens the images of a raw sample `{"name", "messages"[, "regions"]}` ([`SampleReader`]) and encodes it.

    max_length: the most tokens of a sample, image tokens included; `None` for no limit.
    append_eos: whether answers end with EOS. The authors' v1.1 was trained without. Templates of LLMs always end
        answers in their own way: False is refused for them with a `ValueError`.

    Returns `{"name": str, "input_ids": list[int], "labels": list[int]}`, labels -100 outside the assistant's turns,
    and, if there is an image, `pixel_values` (V, 3, S, S) float32 and `image_view_index` (V,) int64.
    Raises [`BrokenSampleError`] with the name of a sample that is too long, cannot be processed, or has an answer that
    the template does not mark.
    """

    processor: OmniFusionProcessor
    max_length: int | None = None
    append_eos: bool = True

    def __post_init__(self):
        knows_it = "append_eos" in str(self.processor.chat_template)
        if not knows_it and not self.append_eos:
            raise ValueError(
                "append_eos=False (conversation_format v1.1): the model's chat template ends answers in its own way; "
                "use the format llava, or build the model with --chat-template omnifusion."
            )
        # transformers passes options that the template does not know on to the processor, with a warning
        self._template_options = {"append_eos": self.append_eos} if knows_it else {}

    def __call__(self, sample: dict) -> dict:
        encoded = self._apply_template(sample)
        ids, answers = encoded["input_ids"][0], encoded["assistant_masks"][0]
        self._check(sample, len(ids), answers)
        labels = [token if learnt else -100 for token, learnt in zip(ids, answers)]
        item = {"name": sample["name"], "input_ids": ids, "labels": labels}
        images = ("pixel_values", "image_view_index")  # (V, 3, S, S), (V,)
        return item | {key: torch.as_tensor(encoded[key]) for key in images if key in encoded}

    def _apply_template(self, sample: dict) -> dict:
        regions = sample.get("regions", [])  # one list of boxes per image
        messages = open_images(sample, self.processor.image_processor.max_image_pixels)
        try:
            return self.processor.apply_chat_template(
                [messages],
                tokenize=True,
                return_dict=True,
                return_assistant_tokens_mask=True,
                processor_kwargs={"regions": [regions]} if any(regions) else {},
                **self._template_options,
            )  # no return_tensors: the mask is made token by token, six times slower on tensors
        except (ValueError, TemplateError) as error:
            raise BrokenSampleError(f"{sample['name']}: {error}") from error

    def _check(self, sample: dict, length: int, learnt: list[int]):
        name, answers = sample["name"], [turn for turn in sample["messages"] if turn["role"] == "assistant"]
        if self.max_length is not None and length > self.max_length:
            raise BrokenSampleError(
                f"{name}: {length} tokens with its images, max_length is {self.max_length}; raise max_length "
                "or shorten the sample (it is never cut)."
            )
        if not answers:
            raise BrokenSampleError(f"{name}: no token to learn, because it has no turn of the assistant.")
        marked = sum(now > before for before, now in zip(learnt, learnt[1:]))  # no text begins with an answer
        if marked != len(answers):
            raise BrokenSampleError(
                f"{name}: {len(answers)} answers, but the chat template marks {marked}: it must put each between "
                "{% generation %} and {% endgeneration %}. An LLM's own template that rewrites earlier turns cannot: "
                "train on single turns, or build the model with --chat-template omnifusion."
            )


class EncodedDataset(Dataset):
    """The raw samples of `dataset`, encoded. The next good sample replaces one that is skipped.

    bad_samples: the policy for broken samples, an error by default; its `count` is the number of skipped ones.
    """

    def __init__(self, dataset: Dataset, encoder: ConversationEncoder, bad_samples: BadSamples | None = None):
        self.dataset, self.encoder, self.bad_samples = dataset, encoder, bad_samples or BadSamples()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict:
        places = range(len(self))
        from_index_on = ((places[index] + step) % len(self) for step in places)
        encoded = map_good(lambda place: self.encoder(self.dataset[place]), from_index_on, self.bad_samples)
        if (first := next(encoded, None)) is None:
            raise ValueError(f"None of {len(self)} samples can be used; the log names each with its reason.")
        return first

    def lengths(self) -> list[int]:
        """Approximate tokens of each sample, without the chat template's own words. Decodes no image; a broken sample
        has length 0 and is reported when it is encoded."""
        bar = tqdm(range(len(self)), desc="measuring samples", leave=False, disable=None)
        texts_and_images, tokenizer = map(self._measure, bar), self.encoder.processor.tokenizer
        lengths = []
        while some := list(itertools.islice(texts_and_images, 1000)):  # a tokenizer is faster on many texts
            texts, images = zip(*some)
            lengths += [len(ids) + tokens for ids, tokens in zip(tokenizer(list(texts))["input_ids"], images)]
        return lengths

    def _measure(self, index: int) -> tuple[str, int]:
        try:
            return measure(self.dataset[index], self.encoder.processor)
        except ValueError:
            return "", 0


def measure(sample: dict, processor: OmniFusionProcessor) -> tuple[str, int]:
    """The text of a raw sample and the tokens of its images, from the headers of their files."""
    parts = [part for message in sample["messages"] for part in message["content"]]
    most = processor.image_processor.max_image_pixels
    sizes = [pixel_size_of(part["image"], most) for part in parts if part["type"] == "image"]
    tokens = processor.count_tokens(sizes, regions=[sample["regions"]]).total if sizes else 0
    return " ".join(part["text"] for part in parts if part["type"] == "text"), tokens


def pixel_size_of(source: Path | bytes | Image.Image, max_pixels: int = 2**27) -> tuple[int, int]:
    """(height, width) of an image, from the header of its file. Raises `ValueError` for an invalid image."""
    if isinstance(source, Image.Image):
        return source.size[::-1]
    with open_image(source, max_pixels) as image:
        return image.size[::-1]


class EncodedStream(IterableDataset):
    """The raw samples of a stream, encoded, without broken ones."""

    def __init__(self, stream: IterableDataset, encoder: ConversationEncoder, bad_samples: BadSamples):
        self.stream, self.encoder, self.bad_samples = stream, encoder, bad_samples

    def lengths(self) -> list[int]:
        raise ValueError(
            "group_by_length needs the lengths of all samples, but these are streamed; use packing: true."
        )

    def __iter__(self) -> Iterator[dict]:
        return map_good(self.encoder, self.stream, self.bad_samples)


def encode(
    dataset: Dataset | IterableDataset, encoder: ConversationEncoder, bad_samples: BadSamples
) -> EncodedDataset | EncodedStream:
    """The dataset of encoded samples for raw ones, read by index or streamed."""
    kind = EncodedStream if isinstance(dataset, IterableDataset) else EncodedDataset
    return kind(dataset, encoder, bad_samples)

# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""`omnifusion data`: the first samples as the model will see them, and every problem of the whole set."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path

from torch.utils.data import DataLoader, Dataset, IterableDataset
from tqdm import tqdm

from ..inference import context_length
from ..io import friendly_load_errors
from ..model.configuration_omnifusion import OmniFusionConfig
from ..model.image_processing_omnifusion import load_image
from ..model.processing_omnifusion import OmniFusionProcessor
from ..visualize import draw_image
from .conversations import BadSamples, BrokenSampleError
from .mixture import Source, load_data
from .preprocessing import ConversationEncoder
from .train import load_processor


MANY = 500  # samples from which loader processes are worth their start
# Around the tokens that are trained.
TRAINED = ("⟦", "⟧")
# What differs between two messages about the same problem: names of samples, files and numbers.
PARTICULARS = re.compile(r"'[^']*'|`[^`]*`|\"[^\"]*\"|\S*/\S+|\d+")


class Problems(BadSamples):
    """Counts broken samples by the kind of their message, each kind with its first example."""

    def __init__(self):
        super().__init__("skip")
        self.kinds, self.examples = Counter(), {}

    def report(self, error: BrokenSampleError):
        kind = PARTICULARS.sub("…", str(error).partition(": ")[2] or str(error))
        self.kinds[kind] += 1
        self.examples.setdefault(kind, str(error))


def preview(
    source: Source, model: str, samples: int = 3, max_length: int | None = None, drawings: str | None = None
) -> Problems:
    """Prints the first samples and the problems of all, which it returns. Loads no weights.

    Args:
        source: the data, as in a recipe.
        model: folder or Hub id, whose processor encodes the samples.
        samples: how many samples to print.
        max_length: the most tokens of a sample; default: the context length of the LLM.
        drawings: folder for the drawn views of the printed samples.
    """
    processor, problems = load_processor(model), Problems()
    with friendly_load_errors(model):
        config = OmniFusionConfig.from_pretrained(model)
    max_length = max_length or context_length(config.text_config)
    encoder = ConversationEncoder(processor, max_length, source.conversation_format != "v1.1")
    data = load_data(source, 0, problems)  # reports and drops rows of JSON that cannot be read
    for number, sample in enumerate(islice(readable(data), samples)):
        try:
            print(as_text(encoder(sample), processor))
            if drawings is not None:
                draw(sample, processor, Path(drawings), number)
        except BrokenSampleError as error:
            print(f"{error}\n")
    if isinstance(data, IterableDataset):
        print("The data is streamed; training counts its problems.")
        return problems
    total = len(data) + sum(problems.kinds.values())
    for message in tqdm(mistakes(data, encoder), "checking samples", len(data), disable=None):
        if message is not None:
            problems.report(BrokenSampleError(message))
    print("\n".join(summary(total, problems)))
    return problems


def readable(data: Iterable) -> Iterator[dict]:
    """The samples without those that cannot be read."""
    if isinstance(data, IterableDataset):
        yield from data
    else:
        for index in range(len(data)):
            with suppress(BrokenSampleError):
                yield data[index]


@dataclass
class Mistakes(Dataset):
    """What is wrong with each sample, encoded as for training; None if nothing is."""

    data: Dataset
    encoder: ConversationEncoder

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> str | None:
        try:
            self.encoder(self.data[index])
        except BrokenSampleError as error:
            return str(error)


def mistakes(data: Dataset, encoder: ConversationEncoder) -> DataLoader:
    """Of large sets by several processes: a decoded image takes some 20 ms."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    workers = cores if len(data) > MANY else 0
    return DataLoader(Mistakes(data, encoder), batch_size=None, num_workers=workers)


def as_text(item: dict, processor: OmniFusionProcessor) -> str:
    """An encoded sample as text: visual tokens counted, trained tokens between `TRAINED`."""
    image, pieces = processor.image_token_id, []
    marked = zip(item["input_ids"], item["labels"])
    for (trained, is_image), group in groupby(marked, lambda each: (each[1] != -100, each[0] == image)):
        ids = [token for token, _ in group]
        text = f"<image> x {len(ids)}" if is_image else processor.tokenizer.decode(ids, skip_special_tokens=False)
        pieces.append(TRAINED[0] + text + TRAINED[1] if trained else text)
    trained = sum(label != -100 for label in item["labels"])
    visual = item["input_ids"].count(image)
    head = f"{item['name']}: {len(item['input_ids'])} tokens, {visual} visual, {trained} trained"
    return f"{head}\n{''.join(pieces)}\n"


def draw(sample: dict, processor: OmniFusionProcessor, folder: Path, number: int):
    """Writes the views of each image as `sample-0-image-0.png`."""
    images = [
        part["image"] for message in sample["messages"] for part in message["content"] if part["type"] == "image"
    ]
    regions = sample.get("regions") or [[] for _ in images]
    for index, (source, boxes) in enumerate(zip(images, regions)):
        image = load_image(source, processor.image_processor.max_image_pixels)
        title = source.name if isinstance(source, Path) else f"image {index}"
        file = folder / f"sample-{number}-image-{index}.png"
        draw_image(image, file, processor.image_processor, [boxes], processor.image_seq_length, title)


def summary(count: int, problems: Problems) -> list[str]:
    """How many samples can be used, and the kinds of problems, most frequent first."""
    broken = sum(problems.kinds.values())
    lines = [f"{count - broken} of {count} samples can be used."]
    return lines + [f"{number} x {problems.examples[kind]}" for kind, number in problems.kinds.most_common()]

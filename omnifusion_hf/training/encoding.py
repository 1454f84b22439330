# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""One conversation to token ids, labels and views. Labels come from the chat template's generation mask, never by
re-tokenising; a sample that cannot be used whole is refused or skipped, never cut."""

import multiprocessing
from dataclasses import dataclass
from typing import Literal

import torch
from jinja2 import TemplateError
from torch.utils.data import Dataset
from transformers.utils import logging

from ..processing_omnifusion import OmniFusionProcessor
from .data import BrokenSampleError


BadSamplePolicy = Literal["error", "skip"]
logger = logging.get_logger(__name__)


@dataclass
class ConversationEncoder:
    """Encodes one raw sample, `{"name", "messages"[, "regions"]}` as the datasets of data.py and sources.py give it.

    max_length: the most tokens a sample may have, image tokens included; `None` for no limit.

    append_eos: whether answers end with EOS, as they should; the authors' v1.1 was trained without.

    Returns `{"name": str, "input_ids": list[int], "labels": list[int]}`, labels -100 outside the assistant's turns,
    and where there is a picture `pixel_values` (V, 3, S, S) float32 and `image_view_index` (V,) int64.
    Raises [`BrokenSampleError`] that names the sample which is too long, cannot be processed or of which the template
    does not mark every answer.
    """

    processor: OmniFusionProcessor
    max_length: int | None = None
    append_eos: bool = True

    def __call__(self, sample: dict) -> dict:
        encoded = self._apply_template(sample)
        ids, answers = encoded["input_ids"][0], encoded["assistant_masks"][0]
        self._check(sample, len(ids), answers)
        labels = [token if learnt else -100 for token, learnt in zip(ids, answers)]
        item = {"name": sample["name"], "input_ids": ids, "labels": labels}
        pictures = ("pixel_values", "image_view_index")  # (V, 3, S, S), (V,)
        return item | {key: torch.as_tensor(encoded[key]) for key in pictures if key in encoded}

    def _apply_template(self, sample: dict) -> dict:
        regions = sample.get("regions", [])  # one list of boxes per picture
        try:
            return self.processor.apply_chat_template(
                [sample["messages"]],
                tokenize=True,
                return_dict=True,
                return_assistant_tokens_mask=True,
                processor_kwargs={"regions": [regions]} if any(regions) else {},
                append_eos=self.append_eos,
            )  # lists: the mask is made token by token, six times slower over tensors
        except (ValueError, TemplateError) as error:
            raise BrokenSampleError(f"{sample['name']}: {error}") from error

    def _check(self, sample: dict, length: int, learnt: list[int]):
        name, answers = sample["name"], [turn for turn in sample["messages"] if turn["role"] == "assistant"]
        if self.max_length is not None and length > self.max_length:
            raise BrokenSampleError(
                f"{name} has {length} tokens with its pictures, max_length is {self.max_length}; raise max_length "
                "or shorten the sample (it is never cut)."
            )
        if not answers:
            raise BrokenSampleError(f"{name} has no token to learn: no turn of the assistant.")
        marked = sum(now > before for before, now in zip(learnt, learnt[1:]))  # no text begins with an answer
        if marked != len(answers):
            raise BrokenSampleError(
                f"{name} has {len(answers)} answers, the chat template marks {marked} as what is to be learnt: it "
                "must put each between {% generation %} and {% endgeneration %}. An LLM's own template that rewrites "
                "earlier turns cannot: train on single turns, or build the model with --chat-template release."
            )


class SkipCounter:
    """How often broken samples were passed over, counted across data-loading workers; each is logged by name."""

    def __init__(self):
        self._count = multiprocessing.Value("q", 0)

    @property
    def count(self) -> int:
        return self._count.value

    def add(self, error: BrokenSampleError):
        with self._count.get_lock():
            self._count.value += 1
            logger.warning(f"skipped {self._count.value} so far: {error}")


class EncodedDataset(Dataset):
    """`dataset`'s raw samples, encoded. With `on_bad_sample="skip"` a broken one gives its place to the next good one.

    `skipped.count` says how often that happened. Raises `ValueError` where no sample is good.
    """

    def __init__(self, dataset: Dataset, encoder: ConversationEncoder, on_bad_sample: BadSamplePolicy = "error"):
        self.dataset, self.encoder, self.on_bad_sample = dataset, encoder, on_bad_sample
        self.skipped = SkipCounter()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict:
        for step in range(len(self)):
            try:
                return self.encoder(self.dataset[(index + step) % len(self)])
            except BrokenSampleError as error:
                if self.on_bad_sample == "error":
                    raise
                self.skipped.add(error)
        raise ValueError(f"None of {len(self)} samples can be used; the log names each with its reason.")

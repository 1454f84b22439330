# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""One conversation to token ids, labels and views. Labels come from the chat template's generation mask, never by
re-tokenising; a sample that cannot be used whole is refused or skipped, never cut."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jinja2 import TemplateError
from torch.utils.data import Dataset, IterableDataset

from ..model.processing_omnifusion import OmniFusionProcessor
from .conversations import BadSamples, BrokenSampleError, map_good


@dataclass
class ConversationEncoder:
    """Encodes one raw sample, `{"name", "messages"[, "regions"]}` as the datasets of data.py and sources.py give it.

    max_length: the most tokens a sample may have, image tokens included; `None` for no limit.

    append_eos: whether answers end with EOS, as they should; the authors' v1.1 was trained without. Templates of LLMs
        end answers in their own way: without EOS they are refused with a `ValueError`.

    Returns `{"name": str, "input_ids": list[int], "labels": list[int]}`, labels -100 outside the assistant's turns,
    and where there is an image `pixel_values` (V, 3, S, S) float32 and `image_view_index` (V,) int64.
    Raises [`BrokenSampleError`] that names the sample which is too long, cannot be processed or of which the template
    does not mark every answer.
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
        # transformers takes what the template does not know for an argument of the processor, and warns
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
        try:
            return self.processor.apply_chat_template(
                [sample["messages"]],
                tokenize=True,
                return_dict=True,
                return_assistant_tokens_mask=True,
                processor_kwargs={"regions": [regions]} if any(regions) else {},
                **self._template_options,
            )  # lists: the mask is made token by token, six times slower over tensors
        except (ValueError, TemplateError) as error:
            raise BrokenSampleError(f"{sample['name']}: {error}") from error

    def _check(self, sample: dict, length: int, learnt: list[int]):
        name, answers = sample["name"], [turn for turn in sample["messages"] if turn["role"] == "assistant"]
        if self.max_length is not None and length > self.max_length:
            raise BrokenSampleError(
                f"{name} has {length} tokens with its images, max_length is {self.max_length}; raise max_length "
                "or shorten the sample (it is never cut)."
            )
        if not answers:
            raise BrokenSampleError(f"{name} has no token to learn: no turn of the assistant.")
        marked = sum(now > before for before, now in zip(learnt, learnt[1:]))  # no text begins with an answer
        if marked != len(answers):
            raise BrokenSampleError(
                f"{name} has {len(answers)} answers, the chat template marks {marked} as what is to be learnt: it "
                "must put each between {% generation %} and {% endgeneration %}. An LLM's own template that rewrites "
                "earlier turns cannot: train on single turns, or build the model with --chat-template omnifusion."
            )


class EncodedDataset(Dataset):
    """`dataset`'s raw samples, encoded. Where broken ones are skipped, the next good one takes their place.

    bad_samples: what becomes of broken samples, an error by default; its `count` says how many were skipped.
    """

    def __init__(self, dataset: Dataset, encoder: ConversationEncoder, bad_samples: BadSamples | None = None):
        self.dataset, self.encoder, self.bad_samples = dataset, encoder, bad_samples or BadSamples()

    def __len__(self) -> int:
        return len(self.dataset)

    def identity(self) -> list[dict]:
        return self.dataset.identity()

    def __getitem__(self, index: int) -> dict:
        places = range(len(self))
        from_index_on = ((places[index] + step) % len(self) for step in places)
        encoded = map_good(lambda place: self.encoder(self.dataset[place]), from_index_on, self.bad_samples)
        if (first := next(encoded, None)) is None:
            raise ValueError(f"None of {len(self)} samples can be used; the log names each with its reason.")
        return first


class EncodedStream(IterableDataset):
    """A stream's raw samples, encoded, without the broken ones."""

    def __init__(self, stream: IterableDataset, encoder: ConversationEncoder, bad_samples: BadSamples):
        self.stream, self.encoder, self.bad_samples = stream, encoder, bad_samples

    def identity(self) -> list[dict]:
        return self.stream.identity()

    def __iter__(self) -> Iterator[dict]:
        return map_good(self.encoder, self.stream, self.bad_samples)


def encode(
    dataset: Dataset | IterableDataset, encoder: ConversationEncoder, bad_samples: BadSamples
) -> EncodedDataset | EncodedStream:
    """Raw samples, by index or streamed, to encoded ones."""
    kind = EncodedStream if isinstance(dataset, IterableDataset) else EncodedDataset
    return kind(dataset, encoder, bad_samples)

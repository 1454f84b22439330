# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""Conversations to a training batch. Labels come from the chat template's generation mask, never by re-tokenising."""

from dataclasses import dataclass

import torch

from ..processing_omnifusion import OmniFusionProcessor


@dataclass
class ConversationCollator:
    """Collates items of [`ConversationDataset`]; samples with many, one and no pictures mix freely.

    Pads on the right: positions then count from each sample's first token, for LLMs with absolute positions too.

    max_length: the most tokens a sample may have, image tokens included; `None` for no limit.

    append_eos: whether answers end with EOS, as they should; the authors' v1.1 was trained without.

    Returns `input_ids`, `attention_mask`, `labels` (B, L) and, where there is a picture, `pixel_values`
    (ΣV, 3, S, S) and `image_view_index` (ΣV,). Labels are -100 outside the assistant's turns.
    Raises `ValueError` that names the sample which is too long (nothing is ever cut) or of which the template does
    not mark every answer.
    """

    processor: OmniFusionProcessor
    max_length: int | None = None
    append_eos: bool = True

    def __call__(self, samples: list[dict]) -> dict[str, torch.Tensor]:
        regions = [sample.get("regions", []) for sample in samples]  # of each sample, one list of boxes per picture
        regions = {"regions": regions} if any(map(any, regions)) else {}
        batch = self.processor.apply_chat_template(
            [sample["messages"] for sample in samples],
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
            processor_kwargs={"padding": True, "padding_side": "right"} | regions,
            append_eos=self.append_eos,
        )  # lists: the mask is made token by token, six times slower over tensors
        batch.convert_to_tensors("pt")
        answers = batch.pop("assistant_masks").bool()
        batch["labels"] = batch["input_ids"].masked_fill(~answers, -100)  # (B, L)
        marked = (answers[:, 1:] & ~answers[:, :-1]).sum(-1)  # (B,) answers; no text begins with one
        for sample, length, count in zip(samples, batch["attention_mask"].sum(-1).tolist(), marked.tolist()):
            self._check(sample, length, count)
        return dict(batch)

    def _check(self, sample: dict, length: int, marked: int):
        name, answers = sample["name"], [turn for turn in sample["messages"] if turn["role"] == "assistant"]
        if self.max_length is not None and length > self.max_length:
            raise ValueError(
                f"{name} has {length} tokens with its pictures, max_length is {self.max_length}; raise max_length "
                "or shorten the sample (it is never cut)."
            )
        if not answers:
            raise ValueError(f"{name} has no token to learn: no turn of the assistant.")
        if marked != len(answers):
            raise ValueError(
                f"{name} has {len(answers)} answers, the chat template marks {marked} as what is to be learnt: it "
                "must put each between {% generation %} and {% endgeneration %}. An LLM's own template that rewrites "
                "earlier turns cannot: train on single turns, or build the model with --chat-template release."
            )

# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""Encoded samples to a padded batch; samples with many, one and no images mix freely."""

from dataclasses import dataclass

import torch
from torch.nn.utils.rnn import pad_sequence


@dataclass
class PaddingCollator:
    """Collates what [`ConversationEncoder`] gives, padded on the right.

    Positions then count from each sample's first token, for LLMs with absolute positions too.

    Returns `input_ids`, `attention_mask`, `labels` (B, L) and, where there is an image, `pixel_values`
    (ΣV, 3, S, S) and `image_view_index` (ΣV,).
    """

    pad_token_id: int

    def __call__(self, samples: list[dict]) -> dict[str, torch.Tensor]:
        ids = [torch.tensor(sample["input_ids"]) for sample in samples]
        labels = [torch.tensor(sample["labels"]) for sample in samples]
        return {
            "input_ids": pad_sequence(ids, batch_first=True, padding_value=self.pad_token_id),  # (B, L)
            "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),  # (B, L)
            "labels": pad_sequence(labels, batch_first=True, padding_value=-100),  # (B, L)
            **join_images(samples),
        }


def join_images(samples: list[dict]) -> dict[str, torch.Tensor]:
    """`pixel_values` (ΣV, 3, S, S) and `image_view_index` (ΣV,) of all samples; nothing where none has an image."""
    imaged = [sample for sample in samples if "pixel_values" in sample]
    keys = ("pixel_values", "image_view_index") if imaged else ()
    return {key: torch.cat([sample[key] for sample in imaged]) for key in keys}

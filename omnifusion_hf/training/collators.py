# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""Encoded samples to a batch, padded or packed; samples with many, one and no images mix freely.

A packed row holds several samples, and none attends to another. A packed batch holds the samples of the padded one, so
steps, global batch and learning rate keep their meaning. Positions begin at 0 in every sample. transformers' masks
separate samples by these positions if they get neither an attention mask nor a cache; flash attention does so only for
a batch of one row.
"""

from dataclasses import dataclass
from heapq import heappop, heappush

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel
from transformers.utils import logging


logger = logging.get_logger(__name__)


@dataclass
class PaddingCollator:
    """Collates samples of [`ConversationEncoder`] with padding on the right, so that positions count from each
    sample's first token, also in LLMs with absolute positions.

    Returns `input_ids`, `attention_mask`, `labels` (B, L) and, if there is an image, `pixel_values` (ΣV, 3, S, S) and
    `image_view_index` (ΣV,).
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
    """`pixel_values` (ΣV, 3, S, S) and `image_view_index` (ΣV,) of all samples; empty if none has an image."""
    imaged = [sample for sample in samples if "pixel_values" in sample]
    keys = ("pixel_values", "image_view_index") if imaged else ()
    return {key: torch.cat([sample[key] for sample in imaged]) for key in keys}


@dataclass
class PackingCollator:
    """Packs samples of [`ConversationEncoder`] into rows of at most `max_length` tokens.

    max_length: tokens per row; `None` puts the whole batch into a single row.

    Returns `input_ids`, `position_ids`, `labels` (rows, L), `use_cache` False and, if there is an image,
    `pixel_values` (ΣV, 3, S, S) and `image_view_index` (ΣV,) in the order of the rows. The same samples always give
    the same rows. Raises `ValueError` for a sample that is longer than a row.
    """

    pad_token_id: int
    max_length: int | None = None

    def __call__(self, samples: list[dict]) -> dict[str, torch.Tensor]:
        lengths = [len(sample["input_ids"]) for sample in samples]
        room = self.max_length or sum(lengths)
        for sample, length in zip(samples, lengths):
            if length > room:
                raise ValueError(f"{sample['name']} has {length} tokens, a packed row {room}; raise max_length.")
        plan = share_out(lengths, 1) if self.max_length is None else plan_rows(lengths, room)
        rows = [[samples[index] for index in row] for row in plan]
        joined = [join_samples(row) for row in rows]
        # Every padding token has position 0: it is a sequence of its own, which attends to itself only.
        padding = {"input_ids": self.pad_token_id, "position_ids": 0, "labels": -100}
        batch = {
            key: pad_sequence([row[key] for row in joined], batch_first=True, padding_value=value)  # (rows, L)
            for key, value in padding.items()
        }
        # With a cache, which is the default of LLMs, transformers' masks ignore the positions.
        return batch | {"use_cache": False} | join_images([sample for row in rows for sample in row])


def plan_rows(lengths: list[int], max_length: int) -> list[list[int]]:
    """Rows of indices with at most `max_length` tokens each.

    The cost of attention is quadratic in a row's length. So these are the shortest rows whose tokens, padding
    included, exceed the least possible number by 5 % at most.

    >>> plan_rows([3, 9, 1, 6], max_length=10)
    [[1, 2], [3, 0]]
    """
    plans = {}
    for count in range(1, len(lengths) + 1):
        rows = share_out(lengths, count)
        longest = max(sum(lengths[index] for index in row) for row in rows)
        if longest <= max_length:
            plans.setdefault(longest, rows)  # of equal plans, the one with fewer rows
    least = min(longest * len(rows) for longest, rows in plans.items())
    return plans[min(longest for longest, rows in plans.items() if longest * len(rows) <= 1.05 * least)]


def share_out(lengths: list[int], count: int) -> list[list[int]]:
    """`count` rows of similar length: the longest samples first, each into the row that is shortest so far."""
    rows = [[] for _ in range(count)]
    filled = [(0, row) for row in range(count)]  # a heap of (tokens so far, index of the row)
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        tokens, row = heappop(filled)
        rows[row].append(index)
        heappush(filled, (tokens + lengths[index], row))
    return rows


def join_samples(samples: list[dict]) -> dict[str, torch.Tensor]:
    """Samples in sequence, (L,) each. First tokens are not labels: the sample before would have to predict them."""
    joined = {
        "input_ids": [token for sample in samples for token in sample["input_ids"]],
        "position_ids": [position for sample in samples for position in range(len(sample["input_ids"]))],
        "labels": [label for sample in samples for label in (-100, *sample["labels"][1:])],
    }
    return {key: torch.tensor(values) for key, values in joined.items()}


def packing_collator(
    model: PreTrainedModel, pad_token_id: int, max_length: int | None, attn_implementation: str | None = None
) -> PackingCollator:
    """The collator for the model's attention implementation (`None`: transformers' default).

    Raises `ValueError` if rows would have no limit, or if the LLM does not keep packed samples apart.
    """
    one_row = "flash" in str(attn_implementation)
    if max_length is None and not one_row:
        raise ValueError(
            "packing needs max_length, the tokens of a row; set it, or attn_implementation: flash_attention_2, which "
            "packs a batch into one row."
        )
    if not all(parameter.numel() and not parameter.is_meta for parameter in model.parameters()):  # ZeRO-3
        logger.warning("packing: weights are sharded, so it is not checked that this LLM keeps packed samples apart.")
    elif one_row:  # weights are still on the CPU, perhaps in float32, where flash attention does not run
        model.set_attn_implementation({"text_config": "eager"})
        check_packing(model)
        model.set_attn_implementation({"text_config": attn_implementation})
    else:
        check_packing(model)
    return PackingCollator(pad_token_id, None if one_row else max_length)


@torch.no_grad()
def check_packing(model: PreTrainedModel):
    """Raises `ValueError` for an LLM that does not separate packed samples by their positions, such as OPT and BLOOM.

    The logits of a text after another one must be those of the text alone, and differ from those with full attention.
    """
    special = torch.tensor(model.config.special_token_ids)
    words = torch.arange(len(special) + 9)
    words = words[~torch.isin(words, special)][:9].to(model.device)  # (9,)
    first, second = words[:5], words[5:]
    ids = torch.cat([first, second]).expand(2, -1)  # (2, 9)
    apart = torch.cat([torch.arange(5), torch.arange(4)]).expand(2, -1).to(model.device)

    def logits(ids: torch.Tensor, **positions) -> torch.Tensor:
        return model.eval()(input_ids=ids, use_cache=False, **positions).logits[:, -4:].float()  # (rows, 4, vocab)

    alone = logits(second.unsqueeze(0))
    seen, packed = ((out - alone).abs().max() for out in (logits(ids), logits(ids, position_ids=apart)))
    if packed > 0.1 * seen:
        raise ValueError(
            f"packing: a `{model.config.get_text_config().model_type}` lets a sample see the one before it in its "
            "row, because it does not read position_ids; set packing: false (train_sampling_strategy: group_by_length "
            "also saves padding), or use another LLM (Mistral, Llama, Qwen, Gemma, GPT-NeoX, …)."
        )

# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""Several samples in one row of a batch, so that little of it is padding; none sees another.

A batch holds the samples that it would hold unpacked: steps, global batch and learning rate mean what they meant.
Positions begin at 0 with every sample, and transformers' masks tell samples apart by that where they get neither an
attention mask nor a cache; flash attention does so in a batch of one row only.
"""

from dataclasses import dataclass
from heapq import heappop, heappush

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel
from transformers.utils import logging

from .collators import join_images


logger = logging.get_logger(__name__)


@dataclass
class PackingCollator:
    """Packs what [`ConversationEncoder`] gives into rows of at most `max_length` tokens.

    max_length: tokens per row; `None` puts the whole batch into a single row.

    Returns `input_ids`, `position_ids`, `labels` (rows, L), where there is an image `pixel_values` (ΣV, 3, S, S) and
    `image_view_index` (ΣV,) in the order of the rows, and `use_cache` False. The same samples give the same rows.
    Raises `ValueError` for a sample that is longer than a row.
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
        # At a row's end every padding token has position 0: a sequence of its own, which sees itself alone.
        padding = {"input_ids": self.pad_token_id, "position_ids": 0, "labels": -100}
        batch = {
            key: pad_sequence([row[key] for row in joined], batch_first=True, padding_value=value)  # (rows, L)
            for key, value in padding.items()
        }
        # With a cache, which LLMs make by default, transformers' masks do not look at the positions.
        return batch | {"use_cache": False} | join_images([sample for row in rows for sample in row])


def plan_rows(lengths: list[int], max_length: int) -> list[list[int]]:
    """Rows of indices, at most `max_length` tokens each: with next to the least padding, and then as short as may be.

    Attention pays for a row's length squared; for shorter rows up to 5 % more tokens are taken.

    >>> plan_rows([3, 9, 1, 6], max_length=10)
    [[1, 2], [3, 0]]
    """
    plans = {}
    for count in range(1, len(lengths) + 1):
        rows = share_out(lengths, count)
        longest = max(sum(lengths[index] for index in row) for row in rows)
        if longest <= max_length:
            plans.setdefault(longest, rows)  # of plans alike, the one with fewer rows
    least = min(longest * len(rows) for longest, rows in plans.items())
    return plans[min(longest for longest, rows in plans.items() if longest * len(rows) <= 1.05 * least)]


def share_out(lengths: list[int], count: int) -> list[list[int]]:
    """`count` rows of about one length: longest first, each into the row that is shortest by then."""
    rows = [[] for _ in range(count)]
    filled = [(0, row) for row in range(count)]  # a heap: tokens so far, index of the row
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        tokens, row = heappop(filled)
        rows[row].append(index)
        heappush(filled, (tokens + lengths[index], row))
    return rows


def join_samples(samples: list[dict]) -> dict[str, torch.Tensor]:
    """Samples one after another, (L,) each; a first token is no label, for the sample before would be asked for it."""
    joined = {
        "input_ids": [token for sample in samples for token in sample["input_ids"]],
        "position_ids": [position for sample in samples for position in range(len(sample["input_ids"]))],
        "labels": [label for sample in samples for label in (-100, *sample["labels"][1:])],
    }
    return {key: torch.tensor(values) for key, values in joined.items()}


def packing_collator(model: PreTrainedModel, pad_token_id: int, max_length: int | None) -> PackingCollator:
    """The collator that suits the model's attention. Raises `ValueError` where rows would be endless, or leak."""
    text_config = model.config.get_text_config()
    implementation = str(text_config._attn_implementation)
    one_row = "flash" in implementation
    if max_length is None and not one_row:
        raise ValueError(
            f"packing with {implementation} attention needs max_length, the tokens of a row; set it, or "
            "attn_implementation: flash_attention_2, which packs a batch into one row."
        )
    if all(parameter.numel() and not parameter.is_meta for parameter in model.parameters()):
        # Weights are still on the CPU, in float32 perhaps, where flash attention does not run.
        text_config._attn_implementation = "eager" if one_row else implementation
        check_packing(model)
        text_config._attn_implementation = implementation
    else:  # ZeRO-3
        logger.warning("packing: weights are in pieces; whether this LLM keeps packed samples apart is not checked.")
    return PackingCollator(pad_token_id, None if one_row else max_length)


@torch.no_grad()
def check_packing(model: PreTrainedModel):
    """Raises `ValueError` for an LLM that does not tell packed samples apart by their positions, as OPT and BLOOM.

    It is asked: the logits of a text behind another must be those that it has alone, and not those that it has where
    it may see the other.
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
            f"packing: a `{model.config.get_text_config().model_type}` with "
            f"{model.config.get_text_config()._attn_implementation} attention lets a sample see the one before it in "
            "its row, for it does not read position_ids; set packing: false (train_sampling_strategy: group_by_length "
            "saves padding as well), or use another LLM (Mistral, Llama, Qwen, Gemma, GPT-NeoX, …)."
        )

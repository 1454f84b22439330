"""The collator: padding on the right that is never learnt, images in the order of their samples."""

from functools import partial

import conversations
import tiny
import torch
from conversations import NONE, ONE, TWO


PROCESSOR = tiny.processor(tiny.config())
COLLATE = partial(conversations.collate, PROCESSOR)


def test_case_10_padding_is_on_the_right_and_never_learnt():
    batch = COLLATE([NONE, ONE, TWO])
    padding = batch["attention_mask"] == 0
    assert padding.any() and not padding[:, 0].any()
    assert (padding[:, 1:] >= padding[:, :-1]).all()
    assert (batch["labels"][padding] == -100).all() and (batch["labels"] != -100).any()


def test_samples_are_the_same_alone_and_in_a_batch():
    batch = COLLATE([NONE, ONE, TWO])
    for row, one in enumerate((NONE, ONE, TWO)):
        alone = COLLATE([one])
        length = alone["input_ids"].shape[1]
        for key in ("input_ids", "labels", "attention_mask"):
            assert torch.equal(batch[key][row, :length], alone[key][0]), key
    assert torch.equal(batch["pixel_values"][1:], COLLATE([TWO])["pixel_values"])
    assert not torch.equal(batch["pixel_values"][:1], COLLATE([TWO])["pixel_values"][:1])


def test_batch_equals_the_processors_own():
    messages = [each["messages"] for each in (NONE, ONE, TWO)]
    options = {"processor_kwargs": {"padding": True, "padding_side": "right"}, "append_eos": True}
    own = PROCESSOR.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt", **options)
    batch = COLLATE([NONE, ONE, TWO])
    for key in own:
        assert torch.equal(batch[key], own[key]) and batch[key].dtype == own[key].dtype, key


def test_batch_without_images_has_no_image_fields():
    assert set(COLLATE([NONE, NONE])) == {"input_ids", "attention_mask", "labels"}
    assert set(COLLATE([NONE, ONE])) == {"input_ids", "attention_mask", "labels", "pixel_values", "image_view_index"}

"""The collator: labels hold the answers and nothing else, in any mix of samples; nothing is cut."""

import pytest
import tiny
import torch
from tiny import assistant, user

from omnifusion_hf.training.collator import ConversationCollator


PROCESSOR = tiny.processor(tiny.config())
COLLATE = ConversationCollator(PROCESSOR)


def item(*messages: dict) -> dict:
    return {"messages": list(messages), "name": f"sample of {len(messages)} turns"}


NONE = item(user("What colour is the grass?"), assistant("Green."))
ONE = item(user(tiny.picture(1), "Sky?"), assistant("The sky is blue."), user("And?"), assistant("Привет!"))
TWO = item(user("Is ", tiny.picture(2), " left of ", tiny.picture(3), "?"), assistant("Yes, it is."))


def trained_text(labels: torch.Tensor) -> str:
    return PROCESSOR.decode(labels[labels != -100])


def test_case_10_labels_are_the_answers_with_their_eos():
    batch = COLLATE([NONE, ONE, TWO])
    texts = [trained_text(labels).split("</s>") for labels in batch["labels"]]
    stripped = [[text.strip() for text in row] for row in texts]
    assert stripped == [["Green.", ""], ["The sky is blue.", "Привет!", ""], ["Yes, it is.", ""]]
    trained = batch["labels"] != -100
    assert torch.equal(batch["labels"][trained], batch["input_ids"][trained])


def test_case_10_padding_and_pictures_are_never_trained():
    batch = COLLATE([NONE, ONE, TWO])
    padding = batch["attention_mask"] == 0
    pictures = batch["input_ids"] == PROCESSOR.image_token_id
    assert padding.any() and pictures.sum() == 3 * PROCESSOR.image_seq_length
    assert (batch["labels"][padding | pictures] == -100).all()
    assert not padding[:, 0].any()  # on the right


def test_samples_are_the_same_alone_and_in_a_batch():
    batch = COLLATE([NONE, ONE, TWO])
    for row, one in enumerate((NONE, ONE, TWO)):
        alone = COLLATE([one])
        length = alone["input_ids"].shape[1]
        for key in ("input_ids", "labels", "attention_mask"):
            assert torch.equal(batch[key][row, :length], alone[key][0]), key
    assert torch.equal(batch["pixel_values"][1:], COLLATE([TWO])["pixel_values"])
    assert not torch.equal(batch["pixel_values"][:1], COLLATE([TWO])["pixel_values"][:1])


def test_batch_without_pictures_has_no_picture_fields():
    assert set(COLLATE([NONE, NONE])) == {"input_ids", "attention_mask", "labels"}
    assert set(COLLATE([NONE, ONE])) == {"input_ids", "attention_mask", "labels", "pixel_values", "image_view_index"}


def test_case_03_special_tokens_in_text_are_text():
    typed = item(user("What is <image><bot>?"), assistant("<image>, <user> and <img_end>"))
    batch = COLLATE([typed])
    specials = torch.tensor([getattr(PROCESSOR, f"{name}_token_id") for name in ("image", "image_end", "user", "bot")])
    assert torch.isin(batch["input_ids"], specials).sum() == 2  # the template's own <user> and <bot>
    assert trained_text(batch["labels"][0]).strip() == "<image>, <user> and <img_end></s>"


def test_case_02_sample_over_max_length_is_refused_by_name_and_never_cut():
    length = COLLATE([ONE])["input_ids"].shape[1]
    assert ConversationCollator(PROCESSOR, max_length=length)([ONE, NONE])["input_ids"].shape[1] == length
    with pytest.raises(ValueError, match=f"sample of 4 turns has {length} tokens .* max_length is {length - 1}"):
        ConversationCollator(PROCESSOR, max_length=length - 1)([NONE, ONE])


def test_case_10_sample_with_nothing_to_learn_is_refused_by_name():
    with pytest.raises(ValueError, match="sample of 1 turns has no token to learn"):
        COLLATE([NONE, item(user("Hello?"))])


def test_regions_become_views_of_their_own_sample():
    width, height = tiny.picture(1).size
    boxes = [[0, 0, width // 2, height // 2], [1, 1, width, height]]
    plain = COLLATE([NONE, ONE, TWO])
    regions = COLLATE([NONE, ONE | {"regions": [boxes]}, TWO | {"regions": [[], []]}])
    assert plain["image_view_index"].tolist() == [0, 0, 0]
    assert regions["image_view_index"].tolist() == [0, 1, 2, 0, 0]
    pictures = (regions["input_ids"] == PROCESSOR.image_token_id).sum(-1) // PROCESSOR.image_seq_length
    assert pictures.tolist() == [0, 3, 2]
    assert trained_text(regions["labels"][1]) == trained_text(plain["labels"][1])


def test_regions_of_another_number_of_pictures_are_refused():
    with pytest.raises(ValueError, match="regions"):
        COLLATE([TWO | {"regions": [[[0, 0, 2, 2]]]}])

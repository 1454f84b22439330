"""Batches: padding is never learnt; packed samples give the loss and gradients of the padded batch, or are refused."""

from contextlib import nullcontext
from functools import partial
from itertools import product

import conversations
import llms
import pytest
import tiny
import torch
from conversations import NONE, ONE, TWO
from tiny import assistant, user
from torch import nn
from training_runs import assert_same_step, loss_and_gradients

from omnifusion_hf.training import collators
from omnifusion_hf.training.collators import PackingCollator, PaddingCollator, packing_collator, plan_rows
from omnifusion_hf.training.loss import loss_of_answers
from omnifusion_hf.training.preprocessing import ConversationEncoder


PROCESSOR = tiny.processor(tiny.config())
COLLATE = partial(conversations.collate, PROCESSOR)


def test_padding_is_on_the_right_never_learnt_and_changes_no_sample():
    batch = COLLATE([NONE, ONE, TWO])
    padding = batch["attention_mask"] == 0
    assert padding.any() and not padding[:, 0].any() and (padding[:, 1:] >= padding[:, :-1]).all()
    assert (batch["labels"][padding] == -100).all() and (batch["labels"] != -100).any()
    for row, one in enumerate((NONE, ONE, TWO)):
        alone = COLLATE([one])
        for key in ("input_ids", "labels", "attention_mask"):
            assert torch.equal(batch[key][row, : alone[key].shape[1]], alone[key][0]), key


@pytest.mark.parametrize("samples", [[NONE, ONE, TWO], [NONE, NONE]])
def test_batch_is_the_processors_own_with_labels(samples):
    messages = [each["messages"] for each in samples]
    options = {"processor_kwargs": {"padding": True, "padding_side": "right"}, "append_eos": True}
    own = PROCESSOR.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt", **options)
    batch = COLLATE(samples)
    assert batch.keys() == own.keys() | {"labels"} and ("pixel_values" in batch) == (ONE in samples)
    for key in own:
        assert torch.equal(batch[key], own[key]) and batch[key].dtype == own[key].dtype, key


ROOM = 200


ENCODE = ConversationEncoder(tiny.processor(tiny.config(), view_strategy="grid"))
CHATS = [
    [user("What colour is the grass?"), assistant("Green.")],
    [user(tiny.image(1), "Sky?"), assistant("The sky is blue."), user("And the grass?"), assistant("It is green.")],
    [user("Is ", tiny.image(2, (40, 90)), " left of ", tiny.image(3), "?"), assistant("Yes, it is.")],
    [user("Hello"), assistant("Hello, how are you?")],
    [user(tiny.image(4), "Describe the image."), assistant("A red square above two small circles.")],
]
SAMPLES = [ENCODE(conversations.item(*chat)) for chat in CHATS]


def model_of(text_config, **changes) -> nn.Module:
    model = tiny.model(tiny.config(text=text_config, **changes)).train()
    model.loss_from_states = loss_of_answers
    return model


def family(name: str, **changes):
    config_class, fields = llms.FAMILIES[name]
    dropout = {"attn_pdrop": 0, "embd_pdrop": 0, "resid_pdrop": 0} if name == "gpt2" else {}
    return config_class(**fields | {"vocab_size": 512} | dropout | changes)


def step(model: nn.Module, batch: dict) -> tuple[torch.Tensor, dict]:
    """As Trainer takes it."""
    return loss_and_gradients(model, **batch, num_items_in_batch=(batch["labels"] != -100).sum())


ROUNDING = 0.01  # of the largest gradient; some are zero but for rounding: biases of keys


def test_rows_hold_every_sample_once_and_little_padding():
    generator = torch.Generator().manual_seed(0)
    padded = packed = 0
    for _ in range(50):
        lengths = torch.empty(8).log_normal_(4, 1, generator=generator).clip(1, 500).int().tolist()
        rows = plan_rows(lengths, max_length=512)
        assert sorted(index for row in rows for index in row) == list(range(8))
        longest = max(sum(lengths[index] for index in row) for row in rows)
        assert longest <= 512
        assert rows == plan_rows(lengths, max_length=512)
        padded += max(lengths) * 8 / sum(lengths)
        packed += longest * len(rows) / sum(lengths)
    assert padded > 50 * 1.8 and packed < 50 * 1.1  # places per token
    # shorter rows win where padding is alike
    assert plan_rows([50] * 4, max_length=200) == [[0], [1], [2], [3]]
    assert plan_rows([100, 50, 50], max_length=200) == [[0], [1, 2]]
    assert plan_rows([100, 20, 20], max_length=200) == [[0, 1, 2]]
    assert plan_rows([100, 20, 20], max_length=130) == [[0], [1, 2]]


def test_text_alone_has_no_image_fields_and_first_tokens_are_never_asked_for():
    texts = [dict(SAMPLES[0], labels=SAMPLES[0]["input_ids"]), dict(SAMPLES[3], labels=SAMPLES[3]["input_ids"])]
    batch = PackingCollator(pad_token_id=2)(texts)
    assert set(batch) == {"input_ids", "position_ids", "labels", "use_cache"}
    assert (batch["labels"][batch["position_ids"] == 0] == -100).all() and (batch["labels"] != -100).any()


def test_sample_longer_than_a_row_is_refused_by_name():
    with pytest.raises(ValueError, match=r"sample of \d turns has \d+ tokens, a packed row 64; raise max_length"):
        PackingCollator(pad_token_id=2, max_length=64)(SAMPLES)


CASES = [("mistral", "sdpa", ROOM), ("mistral", "eager", ROOM), ("mistral", "sdpa", None), ("gemma3", "sdpa", ROOM)]
CASES += [("sliding window", "sdpa", ROOM), ("sliding window", "eager", None)]
CASES += [("gpt2", "eager", ROOM), ("gpt_neox", "sdpa", ROOM)]


@pytest.mark.parametrize(("name", "attention", "max_length"), CASES)
def test_loss_and_gradients_are_those_of_the_padded_batch(name, attention, max_length):
    text = tiny.text_config(initializer_range=0.2, sliding_window=48) if name == "sliding window" else family(name)
    model = model_of(text, attn_implementation=attention)
    padded = step(model, PaddingCollator(2)(SAMPLES))
    assert any("multi_modal_projector" in name for name in padded[1])
    packed = PackingCollator(2, max_length)(SAMPLES)
    assert_same_step(step(model, packed), padded, ROUNDING)
    if max_length is not None:  # several samples in a row, and a row with padding
        assert 1 < len(packed["input_ids"]) < len((packed["position_ids"] == 1).nonzero()) == len(SAMPLES)
        assert packed["position_ids"].numel() > sum(len(sample["input_ids"]) for sample in SAMPLES)
    without_positions = {key: value for key, value in packed.items() if key != "position_ids"}
    for leaking in (without_positions, packed | {"use_cache": True}):  # controls: samples see one another
        with pytest.raises(AssertionError):
            assert_same_step(step(model, leaking), padded, ROUNDING)


@pytest.mark.parametrize(("name", "small"), [*product(llms.FAMILIES, [False]), ("mistral", True), ("opt", True)])
def test_llm_that_cannot_keep_samples_apart_is_refused(name, small):
    """Also one with small weights in bfloat16."""
    model = model_of(family(name, **({"initializer_range": 0.02} if small else {})))
    leaks = pytest.raises(ValueError, match=f"`{name}` lets a sample see the one before it")
    with leaks if name in ("opt", "bloom") else nullcontext():
        packing_collator(model.to(torch.bfloat16) if small else model, 2, ROOM)


def test_flash_attention_gets_one_row_other_attention_needs_a_length_and_sharded_weights_are_not_checked(monkeypatch):
    model = model_of(family("mistral"))
    assert packing_collator(model, 2, ROOM).max_length == ROOM
    with pytest.raises(ValueError, match="packing needs max_length.*flash_attention_2"):
        packing_collator(model, 2, None)
    chosen = []
    for each in (model, leaking := model_of(family("opt"))):
        monkeypatch.setattr(each, "set_attn_implementation", chosen.append)  # it needs a GPU's package
    packed = packing_collator(model, 2, ROOM, "flash_attention_2")
    assert chosen == [{"text_config": "eager"}, {"text_config": "flash_attention_2"}]
    assert packed.max_length is None and len(packed(SAMPLES)["input_ids"]) == 1
    with pytest.raises(ValueError, match="lets a sample see"):
        packing_collator(leaking, 2, ROOM, "flash_attention_2")
    model, warned = model_of(family("opt")), []
    model.lm_head.weight.data = torch.empty(0)  # as under ZeRO-3
    monkeypatch.setattr(collators.logger, "warning", warned.append)
    assert packing_collator(model, 2, ROOM).max_length == ROOM and "it is not checked" in warned[0]

"""The loss without logits: equal to transformers' own in value and gradients, for any head, in less memory."""

import json
from collections.abc import Callable
from pathlib import Path

import pages
import pytest
import tiny
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from training_runs import assert_same_step, loss_and_gradients
from transformers import CohereConfig, Gemma2Config, GraniteConfig, Trainer, TrainingArguments
from transformers.loss.loss_utils import ForCausalLMLoss

from omnifusion_hf import OmniFusionForConditionalGeneration
from omnifusion_hf.model.modeling_omnifusion_head import predict
from omnifusion_hf.training import loss as loss_in_training
from omnifusion_hf.training.loss import chunked_cross_entropy, is_plain, loss_of_answers
from omnifusion_hf.training.stages import apply_stage


SIZES = {"vocab_size": 512, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SIZES |= {"initializer_range": 0.2}
TIED = tiny.text_config(initializer_range=0.2, tie_word_embeddings=True)
# head -> changes of the configuration, and whether logits of chunks are enough
HEADS = {
    "untied": ({}, True),
    "tied": ({"text": TIED}, True),
    "v1.1, rows never predicted": ({"predicted_vocab_size": 400}, True),
    "scaled": ({"text": CohereConfig(**SIZES, logit_scale=0.25)}, True),
    "divided": ({"text": GraniteConfig(**SIZES, logits_scaling=4.0)}, True),
    "soft cap": ({"text": Gemma2Config(**SIZES, head_dim=8, final_logit_softcapping=2.0)}, False),
    "trained rows of a tied head": ({"text": TIED}, False),
}


def batch(rows: int = 3, length: int = 40) -> dict[str, torch.Tensor]:
    """Text of which a third is labelled, the first token too, which nothing predicts."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 300, (rows, length), generator=generator)
    learnt = torch.rand(rows, length, generator=generator) < 0.3
    learnt[:, 0] = True
    return {"input_ids": ids, "labels": ids.masked_fill(~learnt, -100)}


def step(model: nn.Module, skip_logits: bool, **inputs) -> tuple[torch.Tensor, dict]:
    model.loss_from_states = loss_of_answers if skip_logits else None
    assert (model(**batch()).logits is None) == skip_logits
    return loss_and_gradients(model, **batch(), **inputs)


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("num_items", [None, 50, torch.tensor(50)])
def test_loss_and_gradients_are_those_of_all_logits(kind, num_items):
    changes, plain = HEADS[kind]
    model = tiny.model(tiny.config(**changes)).train()
    if kind.startswith("trained rows"):
        apply_stage(model, "pretrain")
    assert is_plain(model.lm_head, model.config.text_config) == plain
    given = {} if num_items is None else {"num_items_in_batch": num_items}
    stock = step(model, skip_logits=False, **given)
    assert_same_step(step(model, skip_logits=True, **given), stock)
    model.lm_head.weight.data[7] += 1e-2  # control: another weight
    with pytest.raises(AssertionError):
        assert_same_step(step(model, skip_logits=True, **given), stock)


@pytest.mark.parametrize("skip_logits", [False, True])
def test_loss_is_that_of_the_next_token_and_labels_that_were_shifted_before_are_not_shifted_again(skip_logits):
    """Where a sequence is cut over several devices, the second half's first label is the first half's last."""
    model, given = tiny.model().train(), batch()
    logits = model(input_ids=given["input_ids"]).logits
    model.loss_from_states = loss_of_answers if skip_logits else None
    shifted = nn.functional.pad(given["labels"], (0, 1), value=-100)[:, 1:].contiguous()
    whole = model(**given).loss
    torch.testing.assert_close(whole, nn.functional.cross_entropy(logits.flatten(0, 1), shifted.flatten()))
    torch.testing.assert_close(model(**given, shift_labels=shifted).loss, whole)
    assert not torch.isclose(model(**given | {"labels": shifted}).loss, whole)
    other = {"labels": given["labels"].masked_fill(given["labels"] == -100, 7), "ignore_index": 7}
    torch.testing.assert_close(model(**given | other).loss, whole)


class Subclass(OmniFusionForConditionalGeneration):
    """A user's, or FSDP2's, which makes one of its own."""


@pages.OTHERS_DEPRECATIONS[0]
@pytest.mark.parametrize("kind", [OmniFusionForConditionalGeneration, Subclass, "LoRA"])
def test_stock_trainer_smooths_the_labels_of_the_next_token(kind, tmp_path):
    model = tiny.model(tiny.config(text=tiny.text_config(initializer_range=0.2)))
    if kind == "LoRA":
        model = apply_stage(model, "lora").eval()
    else:
        model.__class__ = kind
    args = TrainingArguments(str(tmp_path), label_smoothing_factor=0.3, use_cpu=True, report_to="none")
    given = batch()
    logits, labels = model(**given).logits[:, :-1].flatten(0, 1), given["labels"]
    loss = Trainer(model, args).compute_loss(model, dict(given))
    expected, unshifted = (
        nn.functional.cross_entropy(logits, part.flatten(), label_smoothing=0.3)
        for part in (labels[:, 1:], labels[:, :-1])
    )
    torch.testing.assert_close(loss, expected)
    assert not torch.isclose(loss, unshifted, rtol=1e-3)


@pytest.mark.parametrize("skip_logits", [False, True], ids=["logits", "loss alone"])
@pytest.mark.parametrize("soft_cap", [None, 2.0], ids=["chunked", "at once"])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_a_label_that_is_never_predicted_is_refused_by_name(skip_logits, soft_cap, training):
    text = Gemma2Config(**SIZES, head_dim=8, final_logit_softcapping=soft_cap)
    model = tiny.model(tiny.config(predicted_vocab_size=300, text=text)).train(training)
    model.loss_from_states = loss_of_answers if skip_logits else None
    inputs = batch()
    inputs["labels"][1, 7] = 299
    assert model(**inputs).loss < 20  # control: labels are below 300
    inputs["labels"][1, 7] = 300
    for given in (inputs, batch() | {"shift_labels": inputs["labels"]}):
        with pytest.raises(ValueError, match="Label 300 is never predicted: .*predicted_vocab_size is 300. .*None"):
            model(**given)
    model.config.predicted_vocab_size = None
    assert model(**inputs).loss < 20


def test_head_that_is_more_than_a_matrix_is_not_taken_for_one():
    text_config = tiny.text_config()
    head, adapted = nn.Linear(32, 512, bias=False), type("Adapted", (nn.Linear,), {})(32, 512, bias=False)
    assert is_plain(head, text_config) and not is_plain(adapted, text_config)
    head.register_forward_hook(lambda module, args, output: output)
    assert not is_plain(head, text_config)


def test_torch_without_the_chunked_loss_gets_the_same_loss_and_other_calls_have_logits(monkeypatch):
    model = tiny.model().train()
    chunked = step(model, skip_logits=True)
    assert model(input_ids=batch()["input_ids"]).logits.shape == (3, 40, 512)  # prompts and evaluation have them
    assert model.eval()(**batch()).logits.shape == (3, 40, 512)
    model.train()
    monkeypatch.delattr(nn, "LinearCrossEntropyOptions")
    assert not is_plain(model.lm_head, model.config.text_config)
    assert_same_step(step(model, skip_logits=True), chunked)


def peak_bytes(run: Callable[[], torch.Tensor], trace: Path) -> int:
    """The most memory that tensors held at once, from the loss to its gradients, as torch's profiler counts it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run().backward()
    profiled.export_chrome_trace(str(trace))
    events = [event for event in json.loads(trace.read_text())["traceEvents"] if event["name"] == "[memory]"]
    return max(event["args"]["Total Allocated"] for event in events)


@pytest.mark.parametrize(("changes", "bound"), [({}, 0.25), ({"final_logit_softcapping": 2.0}, None)])
def test_memory_of_the_loss_is_less_and_positions_without_label_cost_nothing(tmp_path, changes, bound):
    config = tiny.config(text=tiny.text_config(vocab_size=4096, **changes))
    head, states = nn.Linear(32, 4096, bias=False), torch.randn(1, 512, 32, requires_grad=True)
    labels = torch.randint(0, 4096, (1, 512))

    def peak(loss, labels) -> int:
        return peak_bytes(lambda: loss(states, labels), tmp_path / "trace.json")

    def ours(states, labels) -> torch.Tensor:
        return loss_of_answers(states, labels, head, config)

    theirs = peak(lambda *given: ForCausalLMLoss(predict(states, head, config), labels, vocab_size=4096), labels)
    assert theirs >= 2 * 512 * 4096 * 4  # the control: logits and their gradients are seen
    whole, few = peak(ours, labels), torch.where(torch.arange(512) % 8 == 0, labels, -100)
    if bound:
        assert whole < bound * theirs
    else:  # not chunked
        assert whole > 0.5 * theirs and peak(ours, few) < 0.25 * whole


def test_autocast_computes_in_its_dtype_and_a_bfloat16_loss_is_summed_in_float32(monkeypatch):
    seen = []

    def spy(states, weight, targets, **options):
        seen.append((states.dtype, weight.dtype))
        return torch.zeros(len(targets), dtype=states.dtype)

    monkeypatch.setattr(loss_in_training.F, "linear_cross_entropy", spy)
    arguments = (torch.randn(4, 8), torch.randn(16, 8), torch.arange(4), tiny.text_config())
    chunked_cross_entropy(*arguments)
    with torch.autocast("cpu", torch.bfloat16):
        chunked_cross_entropy(*arguments)
    assert seen == [(torch.float32,) * 2, (torch.bfloat16,) * 2]
    monkeypatch.undo()
    model = tiny.model(tiny.config(text=tiny.text_config(initializer_range=0.2))).to(torch.bfloat16).train()
    model.loss_from_states = loss_of_answers
    found = model(**batch()).loss
    expected = model.float()(**batch()).loss
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=0)

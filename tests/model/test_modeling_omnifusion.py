"""The model: assembled from parts, resized, placed on devices, with any attention; forward's contracts."""

import re
from functools import partial

import accelerate.utils.modeling
import conversations
import numpy as np
import pytest
import tiny
import torch
import transformers
from accelerate import dispatch_model, infer_auto_device_map
from llms import assembled
from packaging.version import Version
from training_runs import loss_and_gradients
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from omnifusion_hf import OmniFusionConfig, OmniFusionForConditionalGeneration, OmniFusionModel, OmniFusionProcessor
from omnifusion_hf.inference import TINY, load
from omnifusion_hf.training.collators import PaddingCollator
from omnifusion_hf.training.loss import loss_of_answers
from omnifusion_hf.training.preprocessing import ConversationEncoder


@pytest.fixture
def inputs(processor) -> dict:
    return tiny.prompt(processor, [tiny.user(tiny.image(), "What?")])


@pytest.mark.parametrize("vision", ["clip", "swin", "two_towers"])
def test_an_assembled_model_has_the_normalisation_of_its_processor_and_of_the_encoders_own_if_there_is_one(
    vision, parts
):
    model = assembled(parts / vision, parts / "llm")
    processor = OmniFusionProcessor.from_vision_text_pretrained([parts / vision], parts / "llm")
    mean = model.config.vision_config.image_normalizations[0]["image_mean"]
    assert list(processor.image_processor.image_mean) == mean
    assert (mean == [0.1, 0.2, 0.3]) == (vision == "two_towers")  # whose folder has an image processor


@pytest.mark.parametrize("skip_logits", [False, True], ids=["logits", "loss alone"])
def test_tokens_added_to_a_model_that_does_not_predict_every_row_can_be_learnt(skip_logits, tmp_path, caplog):
    """On the bundled model, whose special tokens are never predicted: what is added comes after them."""
    model, processor = load(TINY)
    model.float().train().loss_from_states = loss_of_answers if skip_logits else None
    processor.tokenizer.add_tokens(["[DONE]"])
    sample = {"name": "sample", "messages": [tiny.user("What?"), tiny.assistant("Yes [DONE]")]}
    inputs = conversations.collate(processor, [sample])
    assert 447 in inputs["labels"] and model.config.predicted_vocab_size == 442
    with pytest.raises(ValueError, match="Label 447 .*predicted_vocab_size is 442"):
        model(**inputs)
    model.resize_token_embeddings(512)
    assert "every row is predicted" in caplog.text and model.config.predicted_vocab_size is None
    assert model.lm_head.out_features == model.config.get_text_config().vocab_size == 512
    before = model(**inputs).loss
    before.backward()
    assert before < 50 and model.lm_head.weight.grad[447].abs().sum() > 0
    model.save_pretrained(tmp_path)
    assert OmniFusionForConditionalGeneration.from_pretrained(tmp_path).config.predicted_vocab_size is None


def test_a_vocabulary_that_is_looked_at_predicts_the_rows_that_it_predicted():
    model = tiny.model(tiny.config(predicted_vocab_size=400))
    for options in ({}, {"pad_to_multiple_of": 128}):
        model.resize_token_embeddings(**options)
        assert model.config.predicted_vocab_size == 400
    model.resize_token_embeddings(405)  # the five special tokens are the last
    OmniFusionConfig(**model.config.to_dict())


@pytest.mark.parametrize("family", ["swin", "dinov2"])
@pytest.mark.parametrize("top, nested", [(True, False), (False, True), (False, False)])
def test_ties_and_all_weights_hold_after_reloading_wherever_they_are_set(top, nested, family, inputs, tmp_path):
    """Of encoders and an LLM that the matrix of every mix leaves out: DINOv2's has had a mask token."""
    text = tiny.text_config("llama", tie_word_embeddings=nested)
    model = tiny.model(tiny.config((family,), text=text, tie_word_embeddings=top))
    model.save_pretrained(tmp_path)
    reloaded, info = OmniFusionForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    for ours in (model, reloaded):
        assert (ours.lm_head.weight is ours.get_input_embeddings().weight) == (top or nested)
    torch.testing.assert_close(reloaded.state_dict(), model.state_dict(), rtol=0, atol=0)
    with torch.no_grad():
        assert torch.equal(reloaded(**inputs).logits, model(**inputs).logits)


def implementations(model) -> list[str]:
    """What the model, the LLM and each encoder really have, by the configuration that attention modules read."""
    found = [model.config._attn_implementation]
    for part in (model.model.language_model, *model.model.vision_tower.encoders):
        *_, last = (module.config for module in part.modules() if re.search("Attention", type(module).__name__))
        found.append(last._attn_implementation)
    return found


PER_ENCODER = {"": "eager", "text_config": "sdpa", "vision_config": {"encoder_0": "sdpa", "encoder_1": "eager"}}
ATTENTION = [
    ("eager", ["eager"] * 4),
    ("sdpa", ["sdpa"] * 4),
    ({"text_config": "eager", "vision_config": "sdpa"}, ["sdpa", "eager", "sdpa", "sdpa"]),
    (PER_ENCODER, ["eager", "sdpa", "sdpa", "eager"]),
]


@pytest.fixture(scope="module")
def two_encoder_folder(tmp_path_factory):
    two = {"encoders": ("clip", "siglip"), "projector_type": "transformer"}
    return conversations.write_model(tmp_path_factory.mktemp("two_encoders"), **two)


@torch.no_grad()
@pytest.mark.parametrize("asked, expected", ATTENTION)
def test_every_part_gets_the_attention_that_was_asked_for(asked, expected, two_encoder_folder, inputs):
    if asked is PER_ENCODER and Version(transformers.__version__) < Version("5.20"):
        pytest.skip("transformers before 5.20 reads attention per part, but not per part of a part")
    load = partial(OmniFusionForConditionalGeneration.from_pretrained, two_encoder_folder)
    loaded, changed, eager = load(attn_implementation=asked), load(), load(attn_implementation="eager")
    changed.set_attn_implementation(asked)
    assert implementations(loaded) == implementations(changed) == expected
    torch.testing.assert_close(loaded(**inputs).logits, eager(**inputs).logits, rtol=0, atol=1e-5)


def split_blocks(model, device_map: dict) -> list[str]:
    """Blocks with a residual connection of which parts lie on more than one device."""
    blocks = [name for name, module in model.named_modules() if re.search("Layer$|Stage$", type(module).__name__)]
    return [block for block in blocks if any(place.startswith(block + ".") for place in device_map)]


@pytest.mark.parametrize("encoders", [("clip", "siglip"), ("dinov2", "internvl"), ("swin",)])
def test_no_budget_splits_a_residual_block(encoders, monkeypatch):
    monkeypatch.setattr(accelerate.utils.modeling, "get_max_memory", lambda budgets: budgets)  # devices we do not have
    model = tiny.model(tiny.config(encoders, projector_type="transformer"))

    def planned(no_split: list[str]) -> list[dict]:
        budgets = [{0: budget, 1: budget, 2: 10**9} for budget in range(20_000, 500_000, 20_000)]
        return [infer_auto_device_map(model, budget, no_split_module_classes=no_split) for budget in budgets]

    maps = planned(list(model._no_split_modules))
    assert max(len(set(device_map.values())) for device_map in maps) > 1
    assert not any(split_blocks(model, device_map) for device_map in maps)
    assert any(split_blocks(model, device_map) for device_map in planned([]))  # control: nothing protected


@torch.no_grad()
def test_a_model_spread_over_places_gives_the_same_logits(model, inputs, tmp_path):
    """Only the head is in memory, the rest is on disk and read block by block: every hand-over goes through hooks."""
    spread = tiny.model(model.config)
    spread.load_state_dict(model.state_dict())
    device_map = {f"model.language_model.{name}": "disk" for name, _ in spread.model.language_model.named_children()}
    device_map |= {"model.vision_tower": "disk", "model.multi_modal_projector": "disk", "lm_head": "cpu"}
    spread = dispatch_model(spread, device_map, main_device="cpu", offload_dir=tmp_path, force_hooks=True)
    assert spread.model.language_model.layers[0].mlp.up_proj.weight.is_meta
    torch.testing.assert_close(spread(**inputs).logits, model(**inputs).logits, rtol=0, atol=1e-6)
    assert tiny.answers(spread, inputs).tolist() == tiny.answers(model, inputs).tolist()


def test_replicas_of_data_parallel_are_refused(inputs, monkeypatch):
    model = tiny.model()
    monkeypatch.setattr(model.model.multi_modal_projector, "parameters", lambda: iter(()))
    with pytest.raises(ValueError, match="torch.nn.DataParallel"):
        model(**inputs)


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("encoders", [("clip", "dinov2"), ("siglip", "internvl")])
def test_gradient_checkpointing_changes_neither_loss_nor_gradients(encoders, use_reentrant, inputs):
    model = tiny.model(tiny.config(encoders, projector_type="transformer", projector_dropout=0.0)).train()
    plain = loss_and_gradients(model, **inputs, labels=inputs["input_ids"])
    tiny.checkpoint_activations(model, {"use_reentrant": use_reentrant})
    if use_reentrant:
        model.enable_input_require_grads()
    recomputed = []
    mlps = [module for name, module in model.named_modules() if name.endswith("layers.0.mlp")]
    for mlp in mlps:
        mlp.register_forward_pre_hook(lambda mlp, _: recomputed.append(mlp))
    again = loss_and_gradients(model, **inputs, labels=inputs["input_ids"])
    torch.testing.assert_close(again, plain, rtol=1e-4, atol=1e-6)
    assert len(mlps) == 2 and [recomputed.count(mlp) for mlp in mlps] == [2, 2]  # control: run again in backward


@torch.no_grad()
def test_embeddings_for_ids_and_states_of_the_headless_base_give_the_same_logits(model, inputs):
    """Trainers that bypass the outer forward rely on the latter."""
    expected, inputs = model(**inputs), dict(inputs)
    assert isinstance(model.base_model, OmniFusionModel)
    output = model.base_model(**inputs)
    torch.testing.assert_close(model.lm_head(output.last_hidden_state), expected.logits)
    [features] = model.get_image_features(inputs["pixel_values"]).pooler_output
    assert torch.equal(output.image_outputs.pooler_output[0], features)
    embeds = model.get_input_embeddings()(inputs.pop("input_ids"))
    torch.testing.assert_close(model(**inputs, inputs_embeds=embeds).logits, expected.logits)
    last = model(**inputs, inputs_embeds=embeds, logits_to_keep=1).logits
    torch.testing.assert_close(last, expected.logits[:, -1:])
    with pytest.raises(ValueError, match="exactly one"):
        model(**inputs)


def test_mixed_parts_reload_in_the_dtype_of_the_llm(parts, tmp_path):
    """A float32 encoder must not make a bfloat16 LLM reload in float32."""
    model = assembled(parts / "clip", parts / "llm_bf16")
    llm = AutoModelForCausalLM.from_pretrained(parts / "llm_bf16").model.layers.state_dict()
    for name, tensor in model.model.language_model.layers.state_dict().items():
        assert tensor.dtype is torch.bfloat16 and torch.equal(tensor, llm[name])
    model.save_pretrained(tmp_path)
    reloaded = OmniFusionForConditionalGeneration.from_pretrained(tmp_path)
    assert reloaded.config.dtype == torch.bfloat16 == reloaded.get_input_embeddings().weight.dtype
    assert assembled(parts / "clip", parts / "llm").dtype == torch.float32  # control


@pytest.mark.parametrize("dtype, of_images", [(torch.bfloat16, torch.bfloat16), (torch.float16, torch.float32)])
def test_assembling_in_a_dtype_casts_every_part_but_encoders_and_adapter_to_float16(dtype, of_images, parts):
    model = assembled(parts / "clip", parts / "llm", dtype=dtype)
    for name, parameter in model.named_parameters():
        assert parameter.dtype is (of_images if re.search("vision_tower|multi_modal_projector", name) else dtype), name


def test_evaluation_by_the_stock_trainer_gives_the_logits_and_the_loss_of_all_samples(processor, tmp_path):
    """In batches with one image, none, and two."""
    encode, collate = ConversationEncoder(processor), PaddingCollator(processor.tokenizer.pad_token_id)
    samples = [encode(sample) for sample in (conversations.ONE, conversations.NONE, conversations.TWO)]
    options = {"per_device_eval_batch_size": 2, "remove_unused_columns": False, "report_to": "none", "use_cpu": True}
    trainer = Trainer(tiny.model(), TrainingArguments(str(tmp_path), **options), data_collator=collate)
    found = trainer.predict(samples)
    with torch.no_grad():
        alone = [trainer.model(**collate([sample])) for sample in samples]
    assert isinstance(found.predictions, np.ndarray)
    assert not np.allclose(found.predictions[0], found.predictions[1], atol=1e-4)  # control: samples differ
    for row, labels, sample, expected in zip(found.predictions, found.label_ids, samples, alone):
        length = len(sample["input_ids"])
        np.testing.assert_allclose(row[:length], expected.logits[0].numpy(), atol=1e-4)
        assert labels[:length].tolist() == sample["labels"]
    losses = [output.loss.item() for output in alone]
    assert min(losses) < found.metrics["test_loss"] < max(losses)
    trainer.model.config.keys_to_ignore_at_inference = []  # control: other outputs would be collected as well
    with pytest.raises((AttributeError, TypeError, ValueError, RuntimeError, AssertionError)):
        assert isinstance(trainer.predict(samples).predictions, np.ndarray)

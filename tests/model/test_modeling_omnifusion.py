"""The model: assembled from parts, resized, placed on devices, with any attention; forward's contracts."""

import re

import accelerate.utils.modeling
import pytest
import tiny
import torch
import transformers
from accelerate import dispatch_model, infer_auto_device_map
from packaging.version import Version
from transformers import AutoModel, AutoModelForCausalLM

from omnifusion_hf import OmniFusionConfig, OmniFusionForConditionalGeneration, OmniFusionModel, OmniFusionProcessor
from omnifusion_hf.inference import TINY, load
from omnifusion_hf.training.loss import loss_of_answers
from omnifusion_hf.training.preprocessing import ConversationEncoder


FAMILIES = ["clip", "siglip", "dinov2", "internvl", "swin"]


def layer_of(vision: str) -> int:
    return -1 if vision == "swin" else -2


def assembled(parts, vision: str = "clip", text: str = "llm", **options) -> OmniFusionForConditionalGeneration:
    torch.manual_seed(3)
    return OmniFusionForConditionalGeneration.from_vision_text_pretrained(
        [parts / vision], parts / text, vision_feature_layer=layer_of(vision), **options
    )


def assert_same_weights(ours: torch.nn.Module, theirs: torch.nn.Module):
    """Every weight of ours is bit-identical in theirs; a vocabulary may have become longer."""
    state = theirs.state_dict()
    for name, tensor in ours.state_dict().items():
        expected = state[name]
        assert tensor.dtype is expected.dtype and torch.equal(tensor[: len(expected)], expected), name


@pytest.mark.parametrize("vision", [*FAMILIES, "two_towers"])
def test_assembling_keeps_the_weights_of_every_encoder_family(vision, parts):
    model = assembled(parts, vision)
    source = AutoModel.from_pretrained(parts / vision)
    assert_same_weights(model.model.vision_tower.encoders[0], getattr(source, "vision_model", source))
    processor = OmniFusionProcessor.from_vision_text_pretrained(
        [parts / vision], parts / "llm", vision_feature_layer=layer_of(vision)
    )
    inputs = tiny.prompt(processor, [tiny.user(tiny.image(), "What?")])
    assert torch.isfinite(model(**inputs).logits).all()
    normalization = model.config.vision_config.image_normalizations[0]
    assert list(processor.image_processor.image_mean) == normalization["image_mean"]


def test_the_image_processor_of_a_part_gives_the_normalisation(parts):
    normalization = assembled(parts, "two_towers").config.vision_config.image_normalizations[0]
    assert normalization["image_mean"] == [0.1, 0.2, 0.3]


@pytest.mark.parametrize("text, tied", [("llm", False), ("llm_bos_tied", True), ("llm_bf16", False)])
def test_assembling_keeps_the_llm_and_pads_its_vocabulary(text, tied, parts):
    model, llm = assembled(parts, text=text), AutoModelForCausalLM.from_pretrained(parts / text)
    assert_same_weights(model.model.language_model, llm.model)
    assert_same_weights(model.lm_head, llm.lm_head)
    assert model.config.text_config.vocab_size == model.lm_head.out_features == 448  # 405 tokens, padded to 7 * 64
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied
    assert {parameter.dtype for parameter in model.parameters()} - {llm.dtype} <= {torch.float32}
    assert not any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])
    assert model.config.text_config is model.model.language_model.config


def test_assembling_in_a_dtype_casts_every_part(parts):
    model = assembled(parts, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_two_encoders_of_different_size_are_assembled_at_equal_token_counts(parts):
    model = OmniFusionForConditionalGeneration.from_vision_text_pretrained(
        [parts / "clip", parts / "dinov2"], parts / "llm", image_sizes=[32, 32], projector_type="transformer"
    )
    assert [feature.shape[1:] for feature in model.model.vision_tower(torch.rand(1, 3, 32, 32)).features] == [
        (16, 32)
    ] * 2


@torch.no_grad()
def test_resizing_keeps_sizes_ties_and_values_together(parts, tmp_path):
    for text, tied in (("llm", False), ("llm_bos_tied", True)):
        model = assembled(parts, text=text)
        before = model.lm_head.weight[:448].clone()
        model.resize_token_embeddings(512)
        sizes = (model.config.get_text_config().vocab_size, model.lm_head.out_features, len(model.lm_head.weight))
        assert sizes == (512, 512, 512) and model.get_input_embeddings().num_embeddings == 512
        assert torch.equal(model.lm_head.weight[:448], before) and model.config.image_token_id == 400
        model.save_pretrained(tmp_path / text)
        reloaded = OmniFusionForConditionalGeneration.from_pretrained(tmp_path / text)
        assert torch.equal(reloaded.lm_head.weight, model.lm_head.weight)
        assert (reloaded.lm_head.weight is reloaded.get_input_embeddings().weight) == tied
        ids = torch.tensor([[5, 511, 7]])
        assert torch.isfinite(reloaded(input_ids=ids, labels=ids).loss)


@pytest.mark.parametrize("skip_logits", [False, True], ids=["logits", "loss alone"])
def test_tokens_added_to_a_model_that_does_not_predict_every_row_can_be_learnt(skip_logits, tmp_path, caplog):
    """On the bundled model, whose special tokens are never predicted: what is added stands behind them."""
    model, processor = load(TINY)
    model.float().train().loss_from_states = loss_of_answers if skip_logits else None
    processor.tokenizer.add_tokens(["[DONE]"])
    encode = ConversationEncoder(processor)
    sample = encode({"name": "sample", "messages": [tiny.user("What?"), tiny.assistant("Yes [DONE]")]})
    ids, labels = torch.tensor([sample["input_ids"]]), torch.tensor([sample["labels"]])
    assert 447 in labels and model.config.predicted_vocab_size == 442
    with pytest.raises(ValueError, match="Label 447 .*predicted_vocab_size is 442"):
        model(input_ids=ids, labels=labels)
    model.resize_token_embeddings(512)
    assert "every row is predicted" in caplog.text and model.config.predicted_vocab_size is None
    before = model(input_ids=ids, labels=labels).loss
    before.backward()
    assert before < 50 and model.lm_head.weight.grad[447].abs().sum() > 0
    model.save_pretrained(tmp_path)
    assert OmniFusionForConditionalGeneration.from_pretrained(tmp_path).config.predicted_vocab_size is None


def test_a_vocabulary_that_is_looked_at_predicts_the_rows_that_it_predicted():
    model = tiny.model(tiny.config(predicted_vocab_size=400))
    model.resize_token_embeddings()
    assert model.config.predicted_vocab_size == 400
    model.resize_token_embeddings(pad_to_multiple_of=128)
    assert model.config.predicted_vocab_size == 400
    model.resize_token_embeddings(405)  # the five special tokens are the last
    OmniFusionConfig(**model.config.to_dict())


@pytest.mark.parametrize("top, nested", [(True, False), (False, True), (False, False)])
def test_ties_hold_after_reloading_wherever_they_are_set(top, nested, tmp_path):
    text = tiny.text_config(tie_word_embeddings=nested)
    model = tiny.model(tiny.config(text=text, tie_word_embeddings=top))
    model.save_pretrained(tmp_path)
    reloaded = OmniFusionForConditionalGeneration.from_pretrained(tmp_path)
    for ours in (model, reloaded):
        assert (ours.lm_head.weight is ours.get_input_embeddings().weight) == (top or nested)
    assert torch.equal(reloaded.lm_head.weight, model.lm_head.weight)


def implementations(model) -> dict[str, str]:
    """What each part really has, by the configuration object that its attention modules read."""
    parts = {"text": model.model.language_model}
    parts |= {f"encoder_{i}": encoder for i, encoder in enumerate(model.model.vision_tower.encoders)}
    found = {"model": model.config._attn_implementation}
    for name, part in parts.items():
        configs = [module.config for module in part.modules() if re.search("Attention", type(module).__name__)]
        found[name] = configs[-1]._attn_implementation
    return found


ATTENTION = [
    ("eager", {"model": "eager", "text": "eager", "encoder_0": "eager", "encoder_1": "eager"}),
    ("sdpa", {"model": "sdpa", "text": "sdpa", "encoder_0": "sdpa", "encoder_1": "sdpa"}),
    (
        {"text_config": "eager", "vision_config": "sdpa"},
        {"model": "sdpa", "text": "eager", "encoder_0": "sdpa", "encoder_1": "sdpa"},
    ),
    (
        {"": "eager", "text_config": "sdpa", "vision_config": {"encoder_0": "sdpa", "encoder_1": "eager"}},
        {"model": "eager", "text": "sdpa", "encoder_0": "sdpa", "encoder_1": "eager"},
    ),
]


@pytest.fixture(scope="module")
def two_encoder_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two_encoders")
    tiny.model(tiny.config(("clip", "siglip"), projector_type="transformer")).save_pretrained(folder)
    return folder


@torch.no_grad()
@pytest.mark.parametrize("asked, expected", ATTENTION)
def test_every_part_gets_the_attention_that_was_asked_for(asked, expected, two_encoder_folder):
    per_encoder = isinstance(asked, dict) and isinstance(asked.get("vision_config"), dict)
    if per_encoder and Version(transformers.__version__) < Version("5.20"):
        pytest.skip("transformers before 5.20 reads attention per part, but not per part of a part")
    loaded = OmniFusionForConditionalGeneration.from_pretrained(two_encoder_folder, attn_implementation=asked)
    assert implementations(loaded) == expected
    changed = OmniFusionForConditionalGeneration.from_pretrained(two_encoder_folder)
    changed.set_attn_implementation(asked)
    assert implementations(changed) == expected
    inputs = tiny.prompt(tiny.processor(loaded.config), [tiny.user(tiny.image(), "What?")])
    reference = OmniFusionForConditionalGeneration.from_pretrained(two_encoder_folder, attn_implementation="eager")
    torch.testing.assert_close(loaded(**inputs).logits, reference(**inputs).logits, rtol=0, atol=1e-5)


def test_an_unknown_attention_is_refused(two_encoder_folder):
    with pytest.raises((ValueError, ImportError), match="no_such_attention"):
        OmniFusionForConditionalGeneration.from_pretrained(two_encoder_folder, attn_implementation="no_such_attention")


def split_blocks(model, device_map: dict) -> list[str]:
    """Blocks with a residual connection of which parts lie on more than one device."""
    blocks = [name for name, module in model.named_modules() if re.search("Layer$|Stage$", type(module).__name__)]
    return [block for block in blocks if any(place.startswith(block + ".") for place in device_map)]


def planned(model, budget: int, no_split: list[str]) -> dict:
    return infer_auto_device_map(model, {0: budget, 1: budget, 2: 10**9}, no_split_module_classes=no_split)


@pytest.mark.parametrize("encoders", [("clip", "siglip"), ("dinov2", "internvl"), ("swin",)])
def test_no_budget_splits_a_residual_block(encoders, monkeypatch):
    monkeypatch.setattr(accelerate.utils.modeling, "get_max_memory", lambda budgets: budgets)  # devices we do not have
    model = tiny.model(tiny.config(encoders, projector_type="transformer"))
    budgets = range(20_000, 500_000, 20_000)
    maps = [planned(model, budget, list(model._no_split_modules)) for budget in budgets]
    assert max(len(set(device_map.values())) for device_map in maps) > 1
    assert [split_blocks(model, device_map) for device_map in maps] == [[]] * len(maps)
    assert any(split_blocks(model, planned(model, budget, [])) for budget in budgets)  # control: nothing protected


@torch.no_grad()
def test_a_model_spread_over_places_gives_the_same_logits(model, processor, tmp_path):
    """Encoders and head in memory, the rest is on disk and read block by block: every hand-over goes through hooks."""
    inputs = tiny.prompt(processor, [tiny.user(tiny.image(), "What?")])
    spread = tiny.model(model.config)
    spread.load_state_dict(model.state_dict())
    places = {name: "disk" for name, _ in spread.model.language_model.named_children()}
    device_map = {f"model.language_model.{name}": place for name, place in places.items()}
    device_map |= {"model.vision_tower": "cpu", "model.multi_modal_projector": "disk", "lm_head": "cpu"}
    spread = dispatch_model(spread, device_map, main_device="cpu", offload_dir=tmp_path, force_hooks=True)
    assert spread.model.language_model.layers[0].mlp.up_proj.weight.is_meta
    torch.testing.assert_close(spread(**inputs).logits, model(**inputs).logits, rtol=0, atol=1e-6)


def test_device_map_is_accepted_when_loading(model, model_folder):
    loaded = OmniFusionForConditionalGeneration.from_pretrained(model_folder, device_map={"": "cpu"})
    assert {parameter.device.type for parameter in loaded.parameters()} == {"cpu"}
    assert_same_weights(loaded, model)


def test_construction_needs_no_values_and_loads_nothing(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a constructor read values or loaded weights")

    monkeypatch.setattr(torch.Tensor, "item", refuse)
    monkeypatch.setattr(OmniFusionForConditionalGeneration, "from_pretrained", refuse)
    monkeypatch.setattr(AutoModel, "from_pretrained", refuse)
    with torch.device("meta"):
        OmniFusionForConditionalGeneration(tiny.config(FAMILIES[:4], projector_type="transformer"))


def gradients(model, inputs) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("encoders", [("clip", "dinov2"), ("siglip", "internvl")])
def test_gradient_checkpointing_changes_neither_loss_nor_gradients(encoders, use_reentrant):
    model = tiny.model(tiny.config(encoders, projector_type="transformer", projector_dropout=0.0)).train()
    inputs = tiny.prompt(tiny.processor(model.config), [tiny.user(tiny.image(), "What?")])
    plain, loss = gradients(model, inputs), model(**inputs, labels=inputs.input_ids).loss
    tiny.checkpoint_activations(model, {"use_reentrant": use_reentrant})
    if use_reentrant:
        model.enable_input_require_grads()
    recomputed = []
    mlps = [module for name, module in model.named_modules() if name.endswith("layers.0.mlp")]
    hooks = [mlp.register_forward_pre_hook(lambda mlp, _: recomputed.append(mlp)) for mlp in mlps]
    checkpointed = gradients(model, inputs)
    for hook in hooks:
        hook.remove()
    assert len(mlps) == 2 and [recomputed.count(mlp) for mlp in mlps] == [2, 2]  # control: run again in backward
    assert plain.keys() == checkpointed.keys()
    for name in plain:
        torch.testing.assert_close(checkpointed[name], plain[name], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(model(**inputs, labels=inputs.input_ids).loss, loss)


@torch.no_grad()
def test_loss_is_the_cross_entropy_of_the_next_token(model, processor):
    inputs = tiny.prompt(processor, [tiny.user(tiny.image(), "What?")])
    labels = inputs.input_ids.masked_fill(inputs.input_ids >= 400, -100)
    output = model(**inputs, labels=labels)
    expected = torch.nn.functional.cross_entropy(output.logits[0, :-1], labels[0, 1:])
    torch.testing.assert_close(output.loss, expected)
    assert not torch.allclose(output.loss, torch.nn.functional.cross_entropy(output.logits[0], labels[0]))


@torch.no_grad()
def test_embeddings_in_the_place_of_ids_give_the_same_logits(model, processor):
    inputs = dict(tiny.prompt(processor, [tiny.user(tiny.image(), "What?")]))
    expected = model(**inputs)
    embeds = model.get_input_embeddings()(inputs.pop("input_ids"))
    torch.testing.assert_close(model(**inputs, inputs_embeds=embeds).logits, expected.logits)
    last = model(**inputs, inputs_embeds=embeds, logits_to_keep=1).logits
    torch.testing.assert_close(last, expected.logits[:, -1:])
    with pytest.raises(ValueError, match="exactly one"):
        model(**inputs)


@torch.no_grad()
def test_the_headless_base_gives_states_of_the_prompts_length(model, processor):
    """Trainers that bypass the outer forward rely on it."""
    inputs = tiny.prompt(processor, [tiny.user(tiny.image(), "What?")])
    base = model.base_model
    assert isinstance(base, OmniFusionModel)
    output = base(**inputs)
    assert output.last_hidden_state.shape[:2] == inputs.input_ids.shape
    torch.testing.assert_close(model.lm_head(output.last_hidden_state), model(**inputs).logits)
    [features] = model.get_image_features(inputs.pixel_values).pooler_output
    assert torch.equal(output.image_outputs.pooler_output[0], features)


def test_mixed_parts_reload_in_the_dtype_of_the_llm(parts, tmp_path):
    """A float32 encoder must not make a bfloat16 LLM reload in float32."""
    assembled(parts, text="llm_bf16").save_pretrained(tmp_path)
    reloaded = OmniFusionForConditionalGeneration.from_pretrained(tmp_path)
    assert reloaded.config.dtype == torch.bfloat16 == reloaded.get_input_embeddings().weight.dtype
    assert assembled(parts).dtype == torch.float32  # control


def test_assembling_a_float16_llm_keeps_encoders_and_adapter_in_float32(parts):
    model = assembled(parts, dtype=torch.float16)
    assert model.dtype == torch.float16
    kept = [*model.model.vision_tower.parameters(), *model.model.multi_modal_projector.parameters()]
    assert {parameter.dtype for parameter in kept} == {torch.float32}

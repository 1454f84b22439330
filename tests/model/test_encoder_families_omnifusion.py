"""Encoders without a fast path: every family builds, reads a layer, generates, trains, saves and reloads."""

import importlib.util

import encoders
import pytest
import tiny
import torch
import transformers

from omnifusion_hf import OmniFusionForConditionalGeneration, OmniFusionVisionConfig
from omnifusion_hf.model.encoder_families_omnifusion import encoder_outputs


CONFIGS = encoders.configs()
if importlib.util.find_spec("timm"):
    CONFIGS |= encoders.timm_configs()
PYRAMIDS = ("hiera", "dinov3_convnext", "swin", "swinv2", "convnext", "convnextv2", "resnet10t")


def model_of(name: str, **changes) -> OmniFusionForConditionalGeneration:
    config = tiny.config(**changes)
    config.vision_config = OmniFusionVisionConfig(encoder_configs=[CONFIGS[name]])
    return tiny.model(type(config)(**config.to_dict() | {"vision_feature_layer": None}))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_family_generates_trains_and_reloads_bit_equal(name, tmp_path):
    model = model_of(name)
    inputs, other = (
        tiny.prompt(tiny.processor(model.config), [tiny.user(tiny.image(seed), "What?")]) for seed in range(2)
    )
    untrained = model(**inputs).logits
    assert (untrained != model(**other).logits).any()  # control: it sees the image
    model.requires_grad_(False).model.multi_modal_projector.requires_grad_(True)
    model.train().enable_input_require_grads()
    tiny.checkpoint_activations(model)
    model(**inputs, labels=inputs.input_ids).loss.backward()
    assert all(parameter.grad.any() for parameter in model.model.multi_modal_projector.parameters())
    torch.optim.SGD(model.model.multi_modal_projector.parameters(), 0.1).step()
    model.eval().save_pretrained(tmp_path)
    reloaded = OmniFusionForConditionalGeneration.from_pretrained(tmp_path)
    with torch.no_grad():  # gradients choose other kernels
        logits = model(**inputs).logits
        assert (logits != untrained).any() and tiny.answers(model, inputs, 2).shape == (1, 2)
        assert torch.equal(reloaded(**inputs).logits, logits)


UNTRIMMED = [name for name in CONFIGS if name != "metaclip_2_vision_model"]


@pytest.mark.parametrize("name", UNTRIMMED)
def test_features_are_the_patches_of_a_layer_of_the_encoder_itself(name):
    model = model_of(name)
    tower, views = model.model.vision_tower, torch.rand(2, 3, 32, 32)
    (encoder,), (outputs,) = tower.encoders, model.config.vision_config.encoder_outputs
    (features,), layer = tower(views).features, model.config.vision_feature_layer[0]
    assert features.shape == (2, outputs.num_patches, outputs.width)
    inputs = {"pixel_values": views}
    if name == "siglip2_vision_model":
        raw = dict.fromkeys(("do_resize", "do_rescale", "do_normalize"), False)
        images = transformers.Siglip2ImageProcessorPil(**raw, patch_size=8, max_num_patches=16)
        inputs = images(list(views.numpy()), return_tensors="pt", input_data_format="channels_first")
    expected = encoder(**inputs, output_hidden_states=True, return_dict=True).hidden_states[layer]
    expected = expected.flatten(2).mT if expected.dim() == 4 else expected[:, outputs.prefix_tokens :]
    torch.testing.assert_close(features, expected)


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in PYRAMIDS])
def test_all_layers_of_one_shape_can_be_summed(name):
    model = model_of(name, projector_type="summation")
    features = model.model.vision_tower(torch.rand(1, 3, 32, 32)).features
    assert len(features) == len(model.model.multi_modal_projector.merges[0].maps)
    assert len({feature.shape for feature in features}) == 1


@pytest.mark.parametrize("name", [name for name in CONFIGS if name in PYRAMIDS])
def test_a_pyramid_has_one_layer_to_read(name):
    for changes in ({"projector_type": "summation"}, {"vision_feature_layer": [-2]}):
        config = tiny.config().to_dict() | {"vision_feature_layer": None} | changes
        vision = OmniFusionVisionConfig(encoder_configs=[CONFIGS[name]])
        with pytest.raises(ValueError, match="changes its grid between stages"):
            tiny.OmniFusionConfig(**config | {"vision_config": vision})


def test_an_encoder_that_drops_patches_is_refused():
    with pytest.raises(ValueError, match="`vit_mae` gives 5 tokens for a view of 32 px, which are not a square grid"):
        encoder_outputs(transformers.ViTMAEConfig(**encoders.VIT, image_size=32), 32)


def two_towers() -> transformers.MetaClip2Model:
    text = {name: size for name, size in encoders.VIT.items() if name != "patch_size"} | {"vocab_size": 99}
    vision = CONFIGS["metaclip_2_vision_model"].to_dict()
    return transformers.MetaClip2Model(transformers.MetaClip2Config(text_config=text, vision_config=vision))


@pytest.mark.parametrize("name", [*CONFIGS, *tiny.FAMILIES, "two_towers"])
def test_a_folder_of_weights_becomes_an_encoder_bit_for_bit(name, parts, tmp_path):
    """Of a model of two towers (CLIP, MetaCLIP 2) the whole folder is given."""
    folder = tmp_path if name in CONFIGS else parts / name
    if name in CONFIGS:
        is_alone = name != "metaclip_2_vision_model"
        (transformers.AutoModel.from_config(CONFIGS[name]) if is_alone else two_towers()).save_pretrained(folder)
    model = OmniFusionForConditionalGeneration.from_vision_text_pretrained([folder], parts / "llm", image_sizes=[32])
    given = transformers.AutoModel.from_pretrained(folder).state_dict()
    weights = {name.removeprefix("vision_model."): weight for name, weight in given.items()}
    kept = model.model.vision_tower.encoders[0].state_dict()
    assert kept and all(torch.equal(weight, weights[name]) for name, weight in kept.items())
    assert all(weight.dtype == weights[name].dtype for name, weight in kept.items())

"""The vision tower: features equal the full encoders' hidden states, unneeded layers are absent, dtypes and ranges."""

import pickle
from functools import partial
from multiprocessing.reduction import ForkingPickler

import pytest
import tiny
import torch
from tiny import FAMILIES
from torch import nn
from transformers import AutoModel

from omnifusion_hf import OmniFusionForConditionalGeneration, OmniFusionVisionModel
from omnifusion_hf.model.configuration_omnifusion import OmniFusionVisionConfig
from omnifusion_hf.model.encoder_families_omnifusion import family_of
from omnifusion_hf.model.modeling_omnifusion_vision import each_layer, logger, use_attention_that_takes_float32


FAMILY_LAYERS = [(family, layer) for family in FAMILIES[:-1] for layer in (-1, -2, 1, 0)] + [("swin", -1)]


def full_encoder(family: str, image_size: int = 32, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    encoder = AutoModel.from_config(tiny.encoder_config(family, image_size)).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():  # inits at zero and one would hide a missing layer scale, bias or norm
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return encoder


def tower_of(encoders: list[nn.Module], layers, keep_prefix: bool = False, **fields) -> OmniFusionVisionModel:
    """A tower with the weights of full encoders; every weight that it has must be among theirs."""
    config = OmniFusionVisionConfig(encoder_configs=[encoder.config for encoder in encoders], **fields)
    tower = OmniFusionVisionModel(config, layers, keep_prefix).eval()
    for ours, theirs in zip(tower.encoders, encoders):
        assert ours.load_state_dict(theirs.state_dict(), strict=False).missing_keys == []
    return tower


def views(count: int = 2, size: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def tokens(model, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Visual tokens of the views, in float32."""
    return torch.cat(model.get_image_features(views(seed=seed).to(dtype)).pooler_output).float()


def blocks_of(encoder: nn.Module) -> nn.ModuleList:
    return encoder.encoder.layer if hasattr(encoder.encoder, "layer") else encoder.encoder.layers


near = partial(torch.testing.assert_close, rtol=0.1, atol=0.05)  # in another dtype


@torch.no_grad()
@pytest.mark.parametrize("family, layer", FAMILY_LAYERS)
def test_features_equal_hidden_states_of_the_full_encoder_without_layers_that_are_not_needed(family, layer):
    encoder = full_encoder(family)
    states = encoder(views(), output_hidden_states=True).hidden_states
    prefix = family_of(encoder.config).prefix_tokens
    tower = tower_of([encoder], [layer])
    [features] = tower(views()).features
    torch.testing.assert_close(features, states[layer][:, prefix:], rtol=0, atol=1e-6)
    if family != "swin":
        assert len(blocks_of(tower.encoders[0])) == layer % 4  # state 0 is before the first of three blocks
        last = ("post_layernorm", "layernorm", "head")
        assert not [name for name, _ in tower.encoders[0].named_parameters() if name.startswith(last)]
        [full] = tower_of([encoder], [layer], keep_prefix=True)(views()).features
        torch.testing.assert_close(full, states[layer], rtol=0, atol=1e-6)
        other = states[layer - 1 if layer else 1][:, prefix:]
        assert not torch.allclose(features, other, atol=1e-3)  # control: the neighbouring layer is another one


@torch.no_grad()
def test_all_layers_of_all_encoders_come_in_order_as_they_are_computed():
    encoders = [full_encoder("clip"), full_encoder("dinov2", seed=1)]
    tower = tower_of(encoders, "all", image_normalizations=[{"image_mean": [0.5] * 3, "image_std": [0.5] * 3}] * 2)
    expected = [state[:, 1:] for e in encoders for state in e(views(), output_hidden_states=True).hidden_states[1:]]
    computed, counts = [], []
    for block in [block for encoder in tower.encoders for block in blocks_of(encoder)]:
        block.register_forward_hook(lambda *_: computed.append(None))

    def read(features):
        for feature in features:
            counts.append(len(computed))
            yield feature

    output = tower(views(), projector=lambda features: list(read(features)))
    assert counts == [1, 2, 3, 4, 5, 6]  # each is read before the next one is computed
    for ours, theirs in zip(output.features, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    assert output.last_features[0] is output.features[2] and output.last_features[1] is output.features[5]


@torch.no_grad()
@pytest.mark.parametrize("layers", ["all", [-1, -1, -1]])
@pytest.mark.parametrize("by_config", [False, True], ids=["call", "configuration"])
def test_hidden_states_are_the_first_embeddings_then_the_blocks_of_all_encoders(by_config, layers):
    same = {"image_normalizations": [{"image_mean": [0.5] * 3, "image_std": [0.5] * 3}] * 3}
    encoders = [full_encoder(family, seed=seed) for seed, family in enumerate(("clip", "siglip", "siglip"))]
    tower, asked = tower_of(encoders, layers, **same), {"output_hidden_states": True}
    first, second, third = (encoder(views(), **asked).hidden_states for encoder in encoders)
    tower.config.output_hidden_states = by_config
    found = tower(views(), **({} if by_config else asked))
    for ours, theirs in zip(found.hidden_states, (*first, *second[1:], *third[1:]), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    assert found.attentions is None and tower(views(), output_hidden_states=False).hidden_states is None


def test_an_encoder_is_in_training_mode_where_it_trains_and_no_block_of_any_is_split_over_devices():
    tower = tower_of([full_encoder("clip"), full_encoder("dinov2")], [-1, -1]).requires_grad_(False)
    tower.encoders[1].encoder.layer[0].mlp.fc1.weight.requires_grad_(True)
    assert [part.training for part in (tower.train(), *tower.encoders)] == [True, False, True]
    assert not any(module.training for module in tower.train(False).modules())
    assert tower._no_split_modules >= {"CLIPEncoderLayer", "Dinov2Layer"}


@pytest.mark.parametrize("family", FAMILIES)
def test_inputs_of_every_family_can_be_made_to_require_gradients(family):
    """What transformers does for LoRA with activation checkpointing."""
    model, hidden_states = tiny.model(tiny.config((family,))).requires_grad_(False), []
    [encoder] = model.model.vision_tower.encoders
    encoder.embeddings.register_forward_hook(lambda _, __, output: hidden_states.append(output))
    model.get_image_features(views())  # control
    model.enable_input_require_grads()
    encoder.get_input_embeddings().requires_grad_(True)  # as if it trained
    model.get_image_features(views())
    found = [output[0] if isinstance(output, tuple) else output for output in hidden_states]
    assert [output.requires_grad for output in found] == [False, True]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_goes_through_pickle_and_to_a_spawned_process(family):
    model = tiny.model(tiny.config((family,)))
    for dumped in (pickle.dumps(model), ForkingPickler.dumps(model)):
        encoder = pickle.loads(dumped).model.vision_tower.encoders[0]
        torch.testing.assert_close(encoder.state_dict(), model.model.vision_tower.encoders[0].state_dict())
        assert encoder.get_input_embeddings() in encoder.modules()  # its own, not the first model's
    with pytest.raises((AttributeError, pickle.PicklingError), match="lambda"):  # control
        model.get_input_embeddings = lambda: None
        pickle.dumps(model)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_an_encoder_runs_at_another_size_than_its_own(family):
    encoder = full_encoder(family)
    options = {} if family in ("dinov2", "internvl") else {"interpolate_pos_encoding": True}
    expected = encoder(views(size=48), output_hidden_states=True, **options).hidden_states[-1]
    tower = tower_of([encoder], [-1], image_sizes=[48])
    [features] = tower(views(size=48)).features
    assert features.shape[1] == tower.config.encoder_outputs[0].num_patches
    torch.testing.assert_close(features, expected[:, -features.shape[1] :], rtol=0, atol=1e-6)


@torch.no_grad()
def test_a_second_encoder_gets_the_views_resized_and_renormalised():
    clip, dino = full_encoder("clip"), full_encoder("dinov2", image_size=48)
    tower = tower_of([clip, dino], [-2, -2])
    values = [value for normalization in tower.config.image_normalizations for value in normalization.values()]
    mean, std, dino_mean, dino_std = torch.tensor(values).view(4, 1, 3, 1, 1)
    colours = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    resized = nn.functional.interpolate(colours, size=(48, 48), mode="bicubic", antialias=True).clamp(0, 1)
    expected, not_normalised = (
        dino(given, output_hidden_states=True).hidden_states[-2][:, 1:]
        for given in ((resized - dino_mean) / dino_std, resized)
    )
    _, features = tower((colours - mean) / std).features
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-5)
    assert not torch.allclose(features, not_normalised, atol=1e-2)


def add_integers(model):
    """As quantising libraries leave it: the first parameter of each part holds packed integers."""
    for part in (*model.model.vision_tower.encoders, model.model.multi_modal_projector):
        part.register_parameter("packed", nn.Parameter(torch.ones(1, dtype=torch.uint8), requires_grad=False))


CHANGES = {
    "nothing": lambda model: model,
    "to bfloat16": lambda model: model.bfloat16(),
    "to float16": lambda model: model.half(),
    "tower to bfloat16": lambda model: model.model.vision_tower.bfloat16(),
    "adapter to bfloat16": lambda model: model.model.multi_modal_projector.bfloat16(),
    "with integers": add_integers,
}


@torch.no_grad()
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("family", FAMILIES)
def test_pixels_of_any_dtype_work_in_a_model_whose_parts_are_of_any(family, change):
    lively_mlp = {"text": tiny.text_config(initializer_range=0.2)}  # its tokens are small by default
    fields = lively_mlp if family == "siglip" else {"projector_type": "transformer"}
    model = tiny.model(tiny.config((family,), **fields))
    expected = tokens(model)
    CHANGES[change](model)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        near(tokens(model, dtype=dtype), expected)
    dtypes = {parameter.dtype for parameter in model.model.multi_modal_projector.parameters()} - {torch.uint8}
    assert {model.get_image_features(views()).pooler_output[0].dtype} == dtypes
    assert not torch.allclose(tokens(model, seed=1), expected, atol=0.05)


@torch.no_grad()
def test_activations_beyond_float16_stay_finite():
    model = tiny.model(tiny.config(projector_type="transformer"))
    model.model.vision_tower.encoders[0].encoder.layers[-1].mlp.fc2.bias.fill_(7e4)  # more than float16 holds
    model.half()
    assert model.model.language_model.dtype is torch.float16 and model.lm_head.weight.dtype is torch.float16
    inputs = tiny.prompt(tiny.processor(model.config), [tiny.user(tiny.image(), "What?")])
    output = model(**inputs)
    assert torch.isfinite(torch.cat(output.image_outputs.pooler_output)).all() and torch.isfinite(output.logits).all()
    nn.Module.half(model.model.vision_tower)  # control: a tower in float16 does overflow
    assert not torch.isfinite(model(**inputs).logits).all()


CASTS = {
    "half": lambda model, _: model.half(),
    "to": lambda model, _: model.to("cpu", dtype=torch.float16),
    "loaded": lambda _, folder: OmniFusionForConditionalGeneration.from_pretrained(folder, dtype=torch.float16),
}


@pytest.mark.parametrize("family", ["clip", "swin"])
@pytest.mark.parametrize("cast", CASTS)
def test_float16_leaves_encoders_and_adapter_in_float32_and_indices_integers(cast, family, tmp_path):
    config = tiny.config((family,))
    weights, model = tiny.model(config).state_dict(), tiny.model(config)
    model.save_pretrained(tmp_path)
    for name, tensor in CASTS[cast](model, tmp_path).state_dict().items():
        kept = "vision_tower" in name or "multi_modal_projector" in name
        is_index = weights[name].dtype is torch.int64
        assert tensor.dtype is (torch.int64 if is_index else torch.float32 if kept else torch.float16), name
        assert not kept or torch.equal(tensor, weights[name])
    loaded = OmniFusionForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.bfloat16)
    for model in (loaded, tiny.model().to(torch.bfloat16)):
        assert {tensor.dtype for tensor in model.state_dict().values()} <= {torch.bfloat16, torch.int64}


def test_encoder_without_the_attention_asked_for_uses_eager():
    """Donut-Swin has eager attention alone; the other encoder and the LLM get what was asked for."""
    config = tiny.config(("clip", "swin"), image_sizes=[32, 32])
    config._attn_implementation = "sdpa"
    model = tiny.model(config).model
    parts = (*model.vision_tower.encoders, model.language_model)
    assert [part.config._attn_implementation for part in parts] == ["sdpa", "eager", "sdpa"]


@pytest.mark.parametrize("half", [False, True])
def test_float16_with_flash_attention_computes_encoders_by_sdpa(half, caplog, monkeypatch):
    """Without a GPU the LLM cannot run, but the modules before it can: none of them may use flash attention."""
    model = tiny.model(tiny.config(("clip", "dinov2"), projector_type="transformer")).model
    expected = tokens(model)
    if half:
        model.half()
    for config in (model.config, *model.config.vision_config.encoder_configs):
        config._attn_implementation = "flash_attention_2"
    monkeypatch.setattr(logger, "warning_once", logger.warning)
    assert torch.allclose(tokens(model), expected, atol=1e-5)
    assert "is in float32, which flash_attention_2 does not take; it uses sdpa" in caplog.text


def test_flash_attention_is_used_where_it_can_be():
    [encoder] = tower_of([full_encoder("clip")], [-1]).encoders

    def used(dtype: torch.dtype, chosen: str) -> str:
        encoder.to(dtype).config._attn_implementation = chosen
        use_attention_that_takes_float32(encoder)
        return encoder.config._attn_implementation

    for chosen in ("flash_attention_2", "flash_attention_3", "kernels-community/flash-attn2"):
        found = {dtype: used(dtype, chosen) for dtype in (torch.float32, torch.float16, torch.bfloat16)}
        assert found == {torch.float32: "sdpa", torch.float16: chosen, torch.bfloat16: chosen}
        with torch.autocast("cpu", torch.bfloat16):
            assert used(torch.float32, chosen) == chosen
    assert [used(torch.float32, chosen) for chosen in ("eager", "flex_attention")] == ["eager", "flex_attention"]


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES[:-1])
def test_layers_one_by_one_equal_those_of_the_encoders_own_forward(family):
    """The former are used unless hidden states or attentions are requested."""
    tower = tower_of([full_encoder(family)], "all")
    tower.set_attn_implementation("eager")
    one_by_one, whole = tower(views()), tower(views(), output_hidden_states=True, output_attentions=True)
    for ours, theirs in zip(one_by_one.features, whole.features, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    assert one_by_one.hidden_states is None and len(whole.hidden_states) == 4 and len(whole.attentions) == 3
    other = next(each_layer(tower.encoders[0], views(seed=1)))
    assert not torch.allclose(whole.hidden_states[1], other, atol=1e-3)  # control

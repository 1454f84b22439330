"""The paper's parts and models by name: presets say what the paper's tables say, and are held against what loads."""

from pathlib import Path

import pytest
from transformers import (
    CLIPVisionConfig,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    DINOv3ViTConfig,
    DonutSwinConfig,
    InternVLVisionConfig,
    MLCDVisionConfig,
    SiglipVisionConfig,
)

from omnifusion_hf import OmniFusionVisionConfig
from omnifusion_hf.build.build import default_sizes
from omnifusion_hf.build.presets import ENCODERS, MODELS, TEXTS


# resolution, visual tokens, width, layer of the paper's encoder table
LAYERS = {"internvit-6b-448": -1, "texify": -1}  # of the paper's encoder table; -2 of the others
# The published sizes, as each checkpoint's config.json has them.
PUBLISHED = {
    "clip-vit-l-336": CLIPVisionConfig(hidden_size=1024, num_attention_heads=16, image_size=336, patch_size=14),
    "clip-vit-bigg-224": CLIPVisionConfig(hidden_size=1664, num_attention_heads=16, image_size=224, patch_size=14),
    "siglip-base-512": SiglipVisionConfig(hidden_size=768, image_size=512, patch_size=16),
    "internvit-6b-448": InternVLVisionConfig(
        hidden_size=3200, num_attention_heads=25, image_size=448, patch_size=14, num_hidden_layers=45
    ),
    "dinov2-l": Dinov2Config(hidden_size=1024, num_attention_heads=16, image_size=518, patch_size=14),
    "texify": DonutSwinConfig(embed_dim=128, depths=[2, 2, 14, 2], num_heads=[4, 8, 16, 32], image_size=420),
    "siglip2-so400m-384": SiglipVisionConfig(hidden_size=1152, image_size=384, patch_size=14),
    "dinov2-s": Dinov2Config(hidden_size=384, num_attention_heads=6, image_size=518, patch_size=14),
    "metaclip2-h-224": CLIPVisionConfig(hidden_size=1280, num_attention_heads=16, image_size=224, patch_size=14),
    "dinov3-l": DINOv3ViTConfig(hidden_size=1024, num_attention_heads=16, image_size=224, patch_size=16),
    "mlcd-bigg-448": MLCDVisionConfig(hidden_size=1664, num_attention_heads=16, image_size=448, patch_size=14),
    "dinov2-registers-l": Dinov2WithRegistersConfig(
        hidden_size=1024, num_attention_heads=16, image_size=518, patch_size=14
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_encoder_is_accepted_and_another_is_not(name):
    preset, published = ENCODERS[name], OmniFusionVisionConfig(encoder_configs=[PUBLISHED[name]])
    preset.check(name, published, 0)
    assert [preset.image_size] == published.image_sizes and preset.layer == LAYERS.get(name, -2)
    right = {"hidden_size": preset.width, "patch_size": 14, "image_size": preset.image_size}
    for wrong in ({"hidden_size": preset.width + 64}, {"patch_size": 28}, {"image_size": 140}):
        other = CLIPVisionConfig(**right | wrong, num_attention_heads=1)
        with pytest.raises(ValueError, match=rf"{name} should give {preset.tokens} tokens of width {preset.width}"):
            preset.check(name, OmniFusionVisionConfig(encoder_configs=[other]), 0)


DEFAULT_SIZES = [
    (["clip-vit-l-336", "dinov2-l"], [336, 336]),  # 24 x 24 tokens each
    (["siglip-base-512", "dinov2-l"], [512, 448]),  # 32 x 32
    (["dinov2-l"], [518]),
    (["dinov2-l", "clip-vit-l-336"], [518, 336]),  # CLIP has one size
]


@pytest.mark.parametrize("names, sizes", DEFAULT_SIZES)
def test_dinov2_after_another_encoder_gives_as_many_tokens(names, sizes):
    vision = OmniFusionVisionConfig(encoder_configs=[PUBLISHED[name] for name in names])
    assert default_sizes([ENCODERS[name] for name in names], vision) == sizes


def test_models_are_made_of_presets_and_conversions_exist():
    for model in MODELS.values():
        assert set(model.vision) <= ENCODERS.keys() and model.text in TEXTS
    folder = Path(__file__).parents[2] / "conversion"
    names = [preset.convert for preset in ENCODERS.values() if preset.convert]
    assert names and all((folder / f"convert_{name.replace('-', '_')}.py").is_file() for name in names)

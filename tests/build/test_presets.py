"""The paper's parts and models by name: presets say what the paper's tables say, and are held against what loads."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import transformers

from omnifusion_hf import OmniFusionVisionConfig
from omnifusion_hf.build.build import default_sizes
from omnifusion_hf.build.presets import ENCODERS, MODELS, TEXTS


# Of the paper's encoder table, and of pyramids; -2 of the others.
LAYERS = dict.fromkeys(("internvit-6b-448", "texify", "dinov3-convnext-l"), -1)
# The published sizes, as each checkpoint's config.json has them: class, width, resolution, patch size, others.
SIXTEEN = {"num_attention_heads": 16}
SIZES = {
    "clip-vit-l-336": ("CLIPVision", 1024, 336, 14, SIXTEEN),
    "clip-vit-bigg-224": ("CLIPVision", 1664, 224, 14, SIXTEEN),
    "siglip-base-512": ("SiglipVision", 768, 512, 16, {}),
    "internvit-6b-448": ("InternVLVision", 3200, 448, 14, {"num_attention_heads": 25, "num_hidden_layers": 45}),
    "dinov2-l": ("Dinov2", 1024, 518, 14, SIXTEEN),
    "siglip2-so400m-384": ("SiglipVision", 1152, 384, 14, {}),
    "siglip2-so400m-512": ("SiglipVision", 1152, 512, 16, {}),
    "dinov3-h": ("DINOv3ViT", 1280, 224, 16, {"num_attention_heads": 20, "num_hidden_layers": 2}),
    "dinov2-s": ("Dinov2", 384, 518, 14, {"num_attention_heads": 6}),
    "metaclip2-h-224": ("CLIPVision", 1280, 224, 14, SIXTEEN),
    "dinov3-l": ("DINOv3ViT", 1024, 224, 16, SIXTEEN),
    "mlcd-bigg-448": ("MLCDVision", 1664, 448, 14, SIXTEEN),
    "dinov2-registers-l": ("Dinov2WithRegisters", 1024, 518, 14, SIXTEEN),
}
PUBLISHED = {
    name: getattr(transformers, f"{kind}Config")(hidden_size=width, image_size=size, patch_size=patch, **others)
    for name, (kind, width, size, patch, others) in SIZES.items()
}
SWIN = {"embed_dim": 128, "depths": [2, 2, 14, 2], "num_heads": [4, 8, 16, 32], "image_size": 420}
PUBLISHED["texify"] = transformers.DonutSwinConfig(**SWIN)
PUBLISHED["siglip2-so400m-naflex"] = transformers.Siglip2VisionConfig(
    hidden_size=1152, num_patches=256, patch_size=16, num_attention_heads=16, num_hidden_layers=2
)
PUBLISHED["dinov3-convnext-l"] = transformers.DINOv3ConvNextConfig(hidden_sizes=[192, 384, 768, 1536], image_size=224)
if find_spec("timm"):
    large = {"input_size": [3, 336, 336]}
    PUBLISHED["pe-core-l-336"] = transformers.TimmWrapperConfig(
        architecture="vit_pe_core_large_patch14_336", pretrained_cfg=large, model_args={"depth": 2}
    )


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_encoder_is_accepted_and_another_is_not(name):
    preset, published = ENCODERS[name], OmniFusionVisionConfig(encoder_configs=[PUBLISHED[name]])
    preset.check(name, published, 0)
    assert [preset.image_size] == published.image_sizes and preset.layer == LAYERS.get(name, -2)
    right = {"hidden_size": preset.width, "patch_size": 14, "image_size": preset.image_size}
    for wrong in ({"hidden_size": preset.width + 64}, {"patch_size": 28}, {"image_size": 140}):
        other = transformers.CLIPVisionConfig(**right | wrong, num_attention_heads=1)
        with pytest.raises(ValueError, match=rf"{name} should give {preset.tokens} tokens of width {preset.width}"):
            preset.check(name, OmniFusionVisionConfig(encoder_configs=[other]), 0)


DEFAULT_SIZES = [
    (["clip-vit-l-336", "dinov2-l"], [336, 336]),  # 24 x 24 tokens each
    (["siglip-base-512", "dinov2-l"], [512, 448]),  # 32 x 32
    (["dinov2-l"], [518]),
    (["clip-vit-l-336", "siglip2-so400m-naflex"], [336, 384]),
    (["clip-vit-l-336", "dinov3-convnext-l"], [336, 224]),
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

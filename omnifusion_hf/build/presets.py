# Copyright 2026 The omnifusion_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""The parts and models of arXiv 2404.06212 by name, grouped by its tables and written as differences from defaults."""

from dataclasses import dataclass, replace

from ..model.configuration_omnifusion import OmniFusionVisionConfig
from ..model.views_omnifusion import ImageFit, ViewStrategy


@dataclass(frozen=True)
class EncoderPreset:
    """A row of the paper's encoder table.

    image_size, tokens, width: pixels per side, visual tokens and their width; compared with the loaded configuration.
    layer: the hidden state in use if the adapter reads one.
    image_fit: how this encoder's own preprocessing makes a square of an image.
    follows_grid: whether it runs at other sizes; after another encoder it takes the size that gives that one's tokens.
    convert: the conversion script, if the layout of the weights is not transformers'.
    """

    hub_id: str
    image_size: int
    tokens: int
    width: int
    layer: int = -2
    image_fit: ImageFit = "crop"
    follows_grid: bool = False
    convert: str | None = None

    def check(self, name: str, vision_config: OmniFusionVisionConfig, index: int):
        """Raises `ValueError` if encoder `index` of a configuration is not the one of this preset."""
        config = vision_config.encoder_configs[index]
        alone = OmniFusionVisionConfig(encoder_configs=[config])
        found = (alone.encoder_outputs[0].num_patches, alone.hidden_size, alone.image_size)
        if found != (self.tokens, self.width, self.image_size):
            raise ValueError(
                f"{name} should give {self.tokens} tokens of width {self.width} at {self.image_size} px, but the "
                f"weights given for it give {found[0]} of width {found[1]} at {found[2]} px; give its own weights, or "
                "these without the preset's name."
            )


@dataclass(frozen=True)
class ModelPreset:
    """A row of the paper's result tables: parts, adapter (`projector_type`) and image strategy."""

    vision: tuple[str, ...] = ("clip-vit-l-336",)
    text: str = "mistral-7b"
    projector: str = "mlp"
    views: ViewStrategy = "whole"


# The encoder table, and Texify's encoder from the section on formulas. SigLIP and InternViT squash, Texify pads.
ENCODERS = {
    "clip-vit-l-336": EncoderPreset("openai/clip-vit-large-patch14-336", 336, 576, 1024),
    "clip-vit-bigg-224": EncoderPreset(
        "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k", 224, 256, 1664, convert="open-clip"
    ),
    "siglip-base-512": EncoderPreset("google/siglip-base-patch16-512", 512, 1024, 768, image_fit="squash"),
    "internvit-6b-448": EncoderPreset(
        "OpenGVLab/InternViT-6B-448px-V1-2",
        448,
        1024,
        3200,
        layer=-1,
        image_fit="squash",
        convert="intern-vit",
    ),
    "dinov2-l": EncoderPreset("facebook/dinov2-large", 518, 1369, 1024, follows_grid=True),
    "texify": EncoderPreset(
        "vikp/texify", 420, 196, 1024, layer=-1, image_fit="pad", convert="texify"
    ),
}  # fmt: skip

# Newer encoders, with the sizes that they were published with. SigLIP 2 and the Perception Encoder squash.
ENCODERS |= {
    "siglip2-so400m-384": EncoderPreset("google/siglip2-so400m-patch14-384", 384, 729, 1152, image_fit="squash"),
    "siglip2-so400m-512": EncoderPreset("google/siglip2-so400m-patch16-512", 512, 1024, 1152, image_fit="squash"),
    "siglip2-so400m-naflex": EncoderPreset(
        "google/siglip2-so400m-patch16-naflex", 256, 256, 1152, image_fit="squash", follows_grid=True
    ),
    "dinov2-s": EncoderPreset("facebook/dinov2-small", 518, 1369, 384, follows_grid=True),
    "dinov2-registers-l": EncoderPreset("facebook/dinov2-with-registers-large", 518, 1369, 1024, follows_grid=True),
    "dinov3-l": EncoderPreset("facebook/dinov3-vitl16-pretrain-lvd1689m", 224, 196, 1024, follows_grid=True),
    "dinov3-h": EncoderPreset("facebook/dinov3-vith16plus-pretrain-lvd1689m", 224, 196, 1280, follows_grid=True),
    "dinov3-convnext-l": EncoderPreset("facebook/dinov3-convnext-large-pretrain-lvd1689m", 224, 49, 1536, layer=-1),
    "metaclip2-h-224": EncoderPreset("facebook/metaclip-2-worldwide-huge-quickgelu", 224, 256, 1280),
    "mlcd-bigg-448": EncoderPreset("DeepGlint-AI/mlcd-vit-bigG-patch14-448", 448, 1024, 1664),
    "pe-core-l-336": EncoderPreset("timm/vit_pe_core_large_patch14_336.fb", 336, 576, 1024, image_fit="squash"),
}

# GigaChat-7B, the paper's third LLM, is closed; its rows of the tables are below with Mistral instead.
TEXTS = {
    "mistral-7b": "mistralai/Mistral-7B-v0.1",
    "vicuna-7b": "lmsys/vicuna-7b-v1.5",
    "llama-3.1-8b": "meta-llama/Llama-3.1-8B-Instruct",
    "qwen3-8b": "Qwen/Qwen3-8B",
    "smollm2-135m": "HuggingFaceTB/SmolLM2-135M-Instruct",
}

ENCODER_TABLE = {
    "clip-l": ModelPreset(),
    "clip-bigg": ModelPreset(vision=("clip-vit-bigg-224",)),
    "siglip": ModelPreset(vision=("siglip-base-512",)),
    "internvit": ModelPreset(vision=("internvit-6b-448",)),
}

MIX = ModelPreset(vision=("clip-vit-l-336", "dinov2-l"), projector="summation")
MIX_TABLE = {
    "clip-l-transformer": ModelPreset(projector="transformer"),
    "clip-dinov2-concatenation": replace(MIX, projector="concatenation"),
    "clip-dinov2-summation": MIX,
    "clip-dinov2-attention": replace(MIX, projector="attention"),
}

OTHER_TABLES = {
    "clip-l-grid": ModelPreset(views="grid"),
    "clip-dinov2-vicuna": replace(MIX, text="vicuna-7b"),
    "formulas-texify": ModelPreset(vision=("texify",)),
    "v1.1": ModelPreset(projector="transformer"),  # the published weights; conversion/ brings them
}

MODELS = ENCODER_TABLE | MIX_TABLE | OTHER_TABLES

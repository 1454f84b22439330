"""Tiny random encoders that have no fast path: vision models of transformers and timm that report hidden states."""

import transformers
from tiny import VIT


PYRAMID = {"hidden_sizes": [8, 16], "depths": [1, 1]}
SWIN = {"patch_size": 4, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}


def configs() -> dict[str, transformers.PreTrainedConfig]:
    """By model type; views of 32 px."""
    sized, ratio = VIT | {"image_size": 32}, {name: VIT[name] for name in VIT if name != "intermediate_size"}
    families = [
        transformers.Siglip2VisionConfig(**VIT, num_patches=16),
        transformers.Dinov2WithRegistersConfig(**ratio, mlp_ratio=2, image_size=32),
        transformers.DINOv3ViTConfig(**sized, num_register_tokens=2),
        transformers.DINOv3ConvNextConfig(hidden_sizes=[8, 8, 16, 16], depths=[1] * 4, image_size=32),
        *(
            getattr(transformers, f"{name}Config")(**sized)
            for name in ("Aimv2Vision", "MLCDVision", "MetaClip2Vision")
        ),
        *(getattr(transformers, f"{name}Config")(**sized) for name in ("ViT", "DeiT", "Beit", "IJepa")),
        *(getattr(transformers, f"{name}Config")(**SWIN, image_size=32) for name in ("Swin", "Swinv2")),
        transformers.ConvNextConfig(**PYRAMID, num_stages=2, image_size=32),
        transformers.ConvNextV2Config(**PYRAMID, num_stages=2, image_size=32),
    ]
    return {config.model_type: config for config in families}


def timm_configs() -> dict[str, transformers.PreTrainedConfig]:
    """By architecture, among them the Perception Encoder and RADIO; each made for views of 32 px."""
    small = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
    architectures = {
        "vit_tiny_patch16_224": small,
        "vit_pe_core_tiny_patch16_384": small,
        "naflexvit_base_patch16_radio_v3": {name: size for name, size in small.items() if name != "img_size"},
        "resnet10t": {},
    }
    return {
        name: transformers.TimmWrapperConfig(
            architecture=name, model_args=args, pretrained_cfg={"input_size": [3, 32, 32]}
        )
        for name, args in architectures.items()
    }

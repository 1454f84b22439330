"""Tiny random encoders that have no fast path: vision models of transformers and timm that report hidden states."""

import transformers
from tiny import VIT


PYRAMID = {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}
SWIN = {"patch_size": 4, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
HIERA = {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "num_query_pool": 1, "masked_unit_size": [2, 2]}


def configs() -> dict[str, transformers.PreTrainedConfig]:
    """By model type; views of 32 px."""
    side, ratio = {"image_size": 32}, {name: VIT[name] for name in VIT if name != "intermediate_size"}
    fields = {
        "Siglip2Vision": VIT | {"num_patches": 16},
        "Dinov2WithRegisters": ratio | side | {"mlp_ratio": 2},
        "DINOv3ViT": VIT | side | {"num_register_tokens": 2},
        "DINOv3ConvNext": side | {"hidden_sizes": [8, 8, 16, 16], "depths": [1] * 4},
    }
    fields |= dict.fromkeys(("Aimv2Vision", "MLCDVision", "MetaClip2Vision"), VIT | side)
    fields |= dict.fromkeys(("ViT", "DeiT", "Beit", "IJepa"), VIT | side)
    fields |= dict.fromkeys(("Swin", "Swinv2"), SWIN | side)
    fields["Hiera"] = HIERA | {"image_size": [32, 32]}
    fields |= dict.fromkeys(("ConvNext", "ConvNextV2"), PYRAMID | side)
    made = [getattr(transformers, f"{name}Config")(**given) for name, given in fields.items()]
    return {config.model_type: config for config in made}


def timm_configs() -> dict[str, transformers.PreTrainedConfig]:
    """By architecture, among them the Perception Encoder and RADIO; each made for views of 32 px."""
    small = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
    architectures = {
        "vit_tiny_patch16_224": small,
        "vit_pe_core_tiny_patch16_384": small,
        "naflexvit_base_patch16_radio_v3": {name: size for name, size in small.items() if name != "img_size"},
        "resnet10t": {},
    }
    made_for = {"pretrained_cfg": {"input_size": [3, 32, 32]}}
    return {
        name: transformers.TimmWrapperConfig(architecture=name, model_args=args, **made_for)
        for name, args in architectures.items()
    }

"""Converts InternViT (InternViT-6B and related models, as published) into transformers' `InternVLVisionModel`.

    omnifusion convert intern-vit --source OpenGVLab/InternViT-6B-448px-V1-2 --output internvit-6b

The source classes are `InternVisionConfig` and `InternVisionModel` of https://github.com/OpenGVLab/InternVL
(internvl_chat/internvl/model/internvl_chat); none of that code is run.
"""

import json
import sys
from pathlib import Path

import torch
from transformers import CLIPImageProcessor, InternVLVisionConfig

from omnifusion_hf.io import check_new

from .encoders import published_preprocessing, renamed_tensors, write_encoder
from .weights import KeyTable, find_shards, locate


MODEL_TYPE = "intern_vit_6b"

_BLOCK, _LAYER = r"encoder\.layers\.(\d+)\.", r"encoder.layer.\1."
KEYS = KeyTable(
    keys={
        r"embeddings\.class_embedding": "embeddings.cls_token",
        r"embeddings\.position_embedding": "embeddings.position_embeddings",
        r"embeddings\.patch_embedding\.(weight|bias)": r"embeddings.patch_embeddings.projection.\1",
        _BLOCK + r"attn\.([qk])_norm\.weight": _LAYER + r"attention.\2_norm.weight",
        _BLOCK + r"attn\.proj\.(weight|bias)": _LAYER + r"attention.projection_layer.\2",
        _BLOCK + r"mlp\.(fc[12])\.(weight|bias)": _LAYER + r"mlp.\2.\3",
        _BLOCK + r"norm1\.(weight|bias)": _LAYER + r"layernorm_before.\2",
        _BLOCK + r"norm2\.(weight|bias)": _LAYER + r"layernorm_after.\2",
        _BLOCK + r"ls([12])": _LAYER + r"lambda_\2",
    },
    split={_BLOCK + r"attn\.qkv\.(weight|bias)": [_LAYER + rf"attention.{part}_proj.\2" for part in "qkv"]},
)

# The authors' name of a setting -> transformers' name, and the authors' default where config.json leaves it out.
SETTINGS = {
    "hidden_size": ("hidden_size", 3200),
    "intermediate_size": ("intermediate_size", 12800),
    "num_hidden_layers": ("num_hidden_layers", 48),
    "num_attention_heads": ("num_attention_heads", 25),
    "num_channels": ("num_channels", 3),
    "image_size": ("image_size", 224),
    "patch_size": ("patch_size", 14),
    "qkv_bias": ("attention_bias", False),
    "qk_normalization": ("use_qk_norm", True),
    "norm_type": ("norm_type", "rms_norm"),
    "layer_norm_eps": ("layer_norm_eps", 1e-6),
    "hidden_act": ("hidden_act", "gelu"),
    "dropout": ("projection_dropout", 0.0),  # only after the attention, unlike transformers' hidden_dropout_prob
    "attention_dropout": ("attention_dropout", 0.0),
    "initializer_range": ("initializer_range", 0.02),
    "initializer_factor": ("layer_scale_init_value", 0.1),
}
QK_NORM_EPS = 1e-6  # fixed in transformers' norms of queries and keys


def vision_config(source: Path) -> InternVLVisionConfig:
    """transformers' configuration for the folder's config.json."""
    if not (source / "config.json").is_file():
        raise ValueError(f"{source} is not an InternViT folder: config.json is missing.")
    given = json.loads((source / "config.json").read_text(encoding="utf-8"))
    if given.get("model_type") != MODEL_TYPE:
        raise ValueError(
            f"{source} holds a `{given.get('model_type')}`; expected the authors' vision encoder `{MODEL_TYPE}`."
        )
    settings = {name: given.get(theirs, default) for theirs, (name, default) in SETTINGS.items()}
    if settings["norm_type"] not in ("rms_norm", "layer_norm"):
        raise ValueError(f"norm_type is {settings['norm_type']!r}; expected 'rms_norm' or 'layer_norm'.")
    if settings["use_qk_norm"] and settings["layer_norm_eps"] != QK_NORM_EPS:
        raise ValueError(
            f"layer_norm_eps is {settings['layer_norm_eps']}, but transformers normalises queries and keys "
            f"with {QK_NORM_EPS}; such an encoder cannot be converted exactly."
        )
    # in transformers, mean pooling means no LayerNorm after the last block, as in the source
    return InternVLVisionConfig(**settings, use_mean_pooling=True)


def convert(source: str, output: str, dtype: torch.dtype | None = None) -> Path:
    """Writes the encoder folder `output` and returns its path.

    Args:
        source: the authors' folder, or a Hub id.
        dtype: of the written weights; by default each tensor keeps its own.

    Raises `ValueError` (what was found, expected, to do) without leaving an output folder.
    """
    check_new(output)
    folder = locate(source, ["*.json", "*.safetensors"], ["*.json", "*.bin"])
    config = vision_config(folder)
    published_preprocessing(folder)
    processor = CLIPImageProcessor.from_pretrained(folder)
    return write_encoder(output, config, renamed_tensors(find_shards(folder), KEYS), processor, dtype)


if __name__ == "__main__":
    from omnifusion_hf.cli import main

    sys.exit(main(["convert", "intern-vit", *sys.argv[1:]]))

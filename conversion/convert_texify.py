"""Converts the vision encoder of Texify, or of another Donut model, into transformers' `DonutSwinModel`.

    omnifusion convert texify --source vikp/texify --output texify-encoder

Texify is a VisionEncoderDecoder whose encoder class, `VariableDonutSwinModel` of the package texify, adds two kinds of
position embedding to Donut-Swin, both off by default. An encoder with either is refused: transformers'
`DonutSwinModel` has no row and column embeddings, and fails with absolute ones (one row more than patches).
"""

import json
import sys
from pathlib import Path

import torch
from transformers import DonutImageProcessor, DonutSwinConfig

from omnifusion_hf.io import check_new

from .encoders import published_preprocessing, renamed_tensors, write_encoder
from .weights import KeyTable, find_shards, locate


KEYS = KeyTable(
    keys={
        r"encoder\.(embeddings\.(?:norm|patch_embeddings\.projection)\.(?:weight|bias))": r"\1",
        r"encoder\.(encoder\.layers\.\d+\.blocks\.\d+\..+)": r"\1",
        r"encoder\.(encoder\.layers\.\d+\.downsample\..+)": r"\1",
    },
    dropped=[r"decoder\..+", r"enc_to_dec_proj\..+"],
)
SETTINGS = ["image_size", "patch_size", "num_channels", "embed_dim", "depths", "num_heads", "window_size", "mlp_ratio"]
SETTINGS += ["qkv_bias", "hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate", "hidden_act"]
SETTINGS += ["initializer_range", "layer_norm_eps"]
REFUSED = ["use_absolute_embeddings", "use_2d_embeddings"]


def vision_config(source: Path) -> DonutSwinConfig:
    """transformers' configuration of the encoder; `ValueError` names a setting without a counterpart."""
    if not (source / "config.json").is_file():
        raise ValueError(f"{source} is not a Texify or Donut folder: config.json is missing.")
    encoder = json.loads((source / "config.json").read_text(encoding="utf-8")).get("encoder", {})
    if encoder.get("model_type") != "donut-swin":
        raise ValueError(
            f"{source} has the encoder `{encoder.get('model_type')}`; expected an encoder-decoder with `donut-swin`."
        )
    for name in REFUSED:
        if encoder.get(name):
            raise ValueError(
                f"The encoder of {source} has {name}=true, which transformers' DonutSwinModel cannot run; "
                "expected a Donut-Swin without position embeddings after its patches."
            )
    return DonutSwinConfig(**{name: encoder[name] for name in SETTINGS if name in encoder})


def image_processor(preprocessing: dict, config: DonutSwinConfig) -> DonutImageProcessor:
    """Keeps the aspect ratio and pads to the encoder's size; uses the published normalisation."""
    size = config.image_size
    height, width = (size, size) if isinstance(size, int) else size
    return DonutImageProcessor(
        size={"height": height, "width": width},
        image_mean=preprocessing["image_mean"],
        image_std=preprocessing["image_std"],
    )


def convert(source: str, output: str, dtype: torch.dtype | None = None) -> Path:
    """Writes the encoder folder `output` and returns its path.

    Args:
        source: the folder of a Texify or Donut model (encoder and decoder), or a Hub id.
        dtype: of the written weights; by default each tensor keeps its own.

    Raises `ValueError` (what was found, expected, to do) without leaving an output folder.
    """
    check_new(output)
    folder = locate(source, ["*.json", "*.safetensors"], ["*.json", "*.bin"])
    config = vision_config(folder)
    processor = image_processor(published_preprocessing(folder), config)
    return write_encoder(output, config, renamed_tensors(find_shards(folder), KEYS), processor, dtype)


if __name__ == "__main__":
    from omnifusion_hf.cli import main

    sys.exit(main(["convert", "texify", *sys.argv[1:]]))

"""Takes the vision encoder out of Texify (or another Donut model) as transformers' `DonutSwinModel`.

    python conversion/convert_texify.py --source vikp/texify --output texify-encoder

Texify is a VisionEncoderDecoder whose encoder class, `VariableDonutSwinModel` of the package texify, adds two kinds of
position embedding to Donut-Swin, both off by default. Where they are on the encoder is refused: transformers'
`DonutSwinModel` has no rows and columns, and cannot run with its absolute table, which has one row more than patches.
"""

import json
import sys
from pathlib import Path

import torch
from transformers import DonutImageProcessor, DonutSwinConfig


if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from conversion import command_line  # noqa: E402
from conversion.encoders import placed, published_preprocessing, write_encoder  # noqa: E402
from conversion.weights import KeyTable, check_new, find_shards, locate  # noqa: E402


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
    """transformers' configuration of the encoder; `ValueError` names what it has no counterpart for."""
    if not (source / "config.json").is_file():
        raise ValueError(f"{source} is no Texify or Donut folder: config.json is missing.")
    encoder = json.loads((source / "config.json").read_text(encoding="utf-8")).get("encoder", {})
    if encoder.get("model_type") != "donut-swin":
        raise ValueError(
            f"{source} has the encoder `{encoder.get('model_type')}`; expected an encoder-decoder with `donut-swin`."
        )
    for name in REFUSED:
        if encoder.get(name):
            raise ValueError(
                f"The encoder of {source} has {name}=true, which transformers' DonutSwinModel cannot run; "
                "expected a Donut-Swin without position embeddings behind its patches."
            )
    return DonutSwinConfig(**{name: encoder[name] for name in SETTINGS if name in encoder})


def image_processor(preprocessing: dict, config: DonutSwinConfig) -> DonutImageProcessor:
    """Aspect kept, padded to the encoder's size, with the published normalisation."""
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
    return write_encoder(output, config, placed(find_shards(folder), KEYS), processor, dtype)


def main(argv=None) -> int:
    parser = command_line.parser("convert_texify", __doc__.split("\n")[0], "folder or Hub id of Texify or a Donut")
    return command_line.run(parser, convert, argv)


if __name__ == "__main__":
    sys.exit(main())

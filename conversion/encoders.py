"""Encoder folders for transformers: weights, configuration, preprocessing."""

from pathlib import Path

import torch
from transformers import AutoModel, CLIPImageProcessor
from transformers.configuration_utils import PreTrainedConfig
from transformers.image_processing_utils import BaseImageProcessor

from omnifusion_hf.io import staged_folder

from .weights import KeyTable, in_pieces, shard_tensors, write_weights


PIECE_BYTES = 2**30


def renamed_tensors(shards: list[Path], table: KeyTable):
    """Yields (name in the model, tensor) for every tensor that the table maps or splits."""
    for shard in shards:
        for name, tensor in shard_tensors(shard):
            yield from table.place(name, tensor, shard)


def preprocessing_of(folder: Path) -> dict:
    """The settings of the folder's image processor; empty if it has none."""
    try:
        return CLIPImageProcessor.get_image_processor_dict(folder)[0]
    except OSError:
        return {}


def published_preprocessing(folder: Path) -> dict:
    """The settings of the folder's image processor. Raises `ValueError` if the normalisation is missing."""
    settings = preprocessing_of(folder)
    if missing := [key for key in ("image_mean", "image_std") if not settings.get(key)]:
        raise ValueError(
            f"{folder} gives no {missing}: preprocessor_config.json is missing or incomplete; get it too."
        )
    return settings


def write_encoder(
    output: str,
    config: PreTrainedConfig,
    tensors,
    image_processor: BaseImageProcessor,
    dtype: torch.dtype | None = None,
) -> Path:
    """Writes the folder `output`, which must not exist, and returns its path.

    Args:
        tensors: (name, tensor) of the model that `config` describes, each once; see [`weights.WrittenTensors`].
        dtype: of the written weights; by default each tensor keeps its own.
    """
    with torch.device("meta"):
        model = AutoModel.from_config(config)
    with staged_folder(output, replace=False) as folder:
        write_weights(folder, in_pieces(tensors, PIECE_BYTES), model, dtype)
        config.architectures, config.dtype = [type(model).__name__], dtype
        config.save_pretrained(folder)
        image_processor.save_pretrained(folder)
    return Path(output)

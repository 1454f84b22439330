"""The folder of a vision encoder as transformers reads it: weights, configuration, preprocessing."""

from pathlib import Path

import torch
from transformers import AutoModel
from transformers.configuration_utils import PreTrainedConfig
from transformers.image_processing_utils import BaseImageProcessor
from transformers.models.auto.image_processing_auto import get_image_processor_config

from omnifusion_hf.io import staged_folder

from .weights import KeyTable, in_pieces, shard_tensors, write_weights


PIECE_BYTES = 2**30


def placed(shards: list[Path], table: KeyTable):
    """(name here, tensor) of all that the table has a place for, one by one."""
    for shard in shards:
        for name, tensor in shard_tensors(shard):
            yield from table.place(name, tensor, shard)


def published_preprocessing(folder: Path) -> dict:
    """The folder's preprocessor_config.json, which must give the normalisation that the encoder was trained with."""
    settings = get_image_processor_config(folder)
    if missing := [key for key in ("image_mean", "image_std") if not settings.get(key)]:
        raise ValueError(f"{folder} gives no {missing}: preprocessor_config.json is missing or half; download it too.")
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
        tensors: (name, tensor) of the model that `config` describes, each once; see [`weights.Ledger`].
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

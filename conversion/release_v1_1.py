"""The authors' release `OmniMistral-v1_1`: its files, and the table from its tensor names to the model's.

It was written by the code of https://github.com/AIRI-Institute/OmniFusion.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from .pickles import RELEASE_CLASSES, PickleStub, read
from .weights import KeyTable, find_shards


SUBFOLDER = "OmniMistral-v1_1"
HUB_PATTERNS = [
    f"{SUBFOLDER}/{name}" for name in ("*.pt", "tokenizer/*", "tuned-model/*.json", "tuned-model/*.safetensors")
]

_ADAPTER = "model.multi_modal_projector."
PROJECTION = KeyTable(
    keys={
        r"transformer_layer\.self_attn\.out_proj\.(weight|bias)": _ADAPTER + r"transformer_layer.self_attn.o_proj.\1",
        r"transformer_layer\.(linear1|linear2|norm1|norm2)\.(weight|bias)": _ADAPTER + r"transformer_layer.\1.\2",
        r"linear\.(weight|bias)": _ADAPTER + r"linear.\1",
    },
    split={
        r"transformer_layer\.self_attn\.in_proj_(weight|bias)": [
            _ADAPTER + rf"transformer_layer.self_attn.{part}_proj.\1" for part in "qkv"
        ],
    },
)
LLM = KeyTable(
    keys={
        r"model\.(embed_tokens\.weight|norm\.weight|layers\..+)": r"model.language_model.\1",
        r"lm_head\.weight": "lm_head.weight",
    },
    dropped=[r".+\.rotary_emb\.inv_freq"],
)
# A vision tower is a vision model or part of a two-tower CLIP, with older (`vision_model.`) or newer names.
VISION = KeyTable(
    keys={
        r"(?:vision_model\.)?(embeddings\.(?:class_embedding|(?:patch|position)_embedding\.weight))": r"\1",
        r"(?:vision_model\.)?(pre_layrnorm\.(?:weight|bias))": r"\1",
        r"(?:vision_model\.)?(encoder\.layers\.\d+\..+)": r"\1",
    },
    dropped=[
        r"text_model\..+",
        r"logit_scale|(?:text|visual)_projection\.weight",
        r".+\.position_ids",
        r"(?:vision_model\.)?post_layernorm\.(?:weight|bias)",
    ],
)
SPECIAL_VECTORS = {
    "SOI": "image_start_token_id",
    "EOI": "image_end_token_id",
    "USER": "user_token_id",
    "BOT": "bot_token_id",
}


@dataclass(frozen=True)
class Release:
    """The files of one release folder."""

    projection: Path
    special_embeddings: Path
    tokenizer: Path
    llm_config: Path
    llm_shards: list[Path]

    @classmethod
    def find(cls, folder: Path) -> "Release":
        """Takes the release's folder or its parent. Raises `ValueError` that names the first missing file."""
        root = folder / SUBFOLDER if (folder / SUBFOLDER).is_dir() else folder
        names = ("projection.pt", "special_embeddings.pt", "tokenizer/tokenizer.model", "tuned-model/config.json")
        for name in names:
            if not (root / name).is_file():
                raise ValueError(
                    f"{folder} is not a complete {SUBFOLDER} release: {name} is missing; download it again."
                )
        return cls(*(root / name for name in names), llm_shards=find_shards(root / "tuned-model"))

    def read_projection(self) -> PickleStub:
        module = read(self.projection, RELEASE_CLASSES)
        if not isinstance(module, PickleStub) or "transformer_layer" not in module.__dict__.get("_modules", {}):
            raise ValueError(
                f"{self.projection} does not hold a VisualToGPTMapping module; expected the release's projection.pt."
            )
        missing = {"transformer_layer.linear1.bias", "linear.weight"} - set(module.tensors())
        if missing or not hasattr(module.transformer_layer.self_attn, "num_heads"):
            raise ValueError(f"{self.projection} lacks {sorted(missing) or 'num_heads'}; expected the release's file.")
        return module

    def read_special_vectors(self, width: int) -> dict[str, torch.Tensor]:
        vectors = read(self.special_embeddings)
        if not isinstance(vectors, dict) or set(vectors) != set(SPECIAL_VECTORS):
            found = sorted(vectors) if isinstance(vectors, dict) else type(vectors).__name__
            raise ValueError(f"{self.special_embeddings} holds {found}; expected vectors {sorted(SPECIAL_VECTORS)}.")
        for name, vector in vectors.items():
            if not isinstance(vector, torch.Tensor) or tuple(vector.shape) != (width,):
                raise ValueError(
                    f"{self.special_embeddings}: {name} is {getattr(vector, 'shape', vector)}, expected ({width},)."
                )
        return {name: vector.detach() for name, vector in vectors.items()}

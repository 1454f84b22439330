"""The authors' release `OmniMistral-v1_1`: where its files lie and what each of its tensors is called here.

The code that wrote them is https://github.com/AIRI-Institute/OmniFusion.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import torch

from .pickles import RELEASE_CLASSES, Inert, read


SUBFOLDER = "OmniMistral-v1_1"
HUB_PATTERNS = [
    f"{SUBFOLDER}/{name}" for name in ("*.pt", "tokenizer/*", "tuned-model/*.json", "tuned-model/*.safetensors")
]

# Source names are regular expressions for the whole name; a tensor that matches no row is an error.
PROJECTION = "model.multi_modal_projector."
PROJECTION_KEYS = {
    r"transformer_layer\.self_attn\.out_proj\.(weight|bias)": PROJECTION + r"transformer_layer.self_attn.o_proj.\1",
    r"transformer_layer\.(linear1|linear2|norm1|norm2)\.(weight|bias)": PROJECTION + r"transformer_layer.\1.\2",
    r"linear\.(weight|bias)": PROJECTION + r"linear.\1",
}
# query, key and value stacked in one tensor
PROJECTION_SPLIT = {
    r"transformer_layer\.self_attn\.in_proj_(weight|bias)": [
        PROJECTION + rf"transformer_layer.self_attn.{part}_proj.\1" for part in "qkv"
    ],
}
LLM_KEYS = {
    r"model\.(embed_tokens\.weight|norm\.weight|layers\..+)": r"model.language_model.\1",
    r"lm_head\.weight": "lm_head.weight",
}
LLM_DROPPED = [r".+\.rotary_emb\.inv_freq"]
# Vision towers come as a vision model or inside a two-tower CLIP, by older (`vision_model.`) or newer names.
VISION_KEYS = {
    r"(?:vision_model\.)?(embeddings\.(?:class_embedding|(?:patch|position)_embedding\.weight))": r"\1",
    r"(?:vision_model\.)?(pre_layrnorm\.(?:weight|bias))": r"\1",
    r"(?:vision_model\.)?(encoder\.layers\.\d+\..+)": r"\1",
}
VISION_DROPPED = [
    r"text_model\..+",
    r"logit_scale|(?:text|visual)_projection\.weight",
    r".+\.position_ids",
    r"(?:vision_model\.)?post_layernorm\.(?:weight|bias)",
]
SPECIAL_VECTORS = {
    "SOI": "image_start_token_id",
    "EOI": "image_end_token_id",
    "USER": "user_token_id",
    "BOT": "bot_token_id",
}


def renamed(name: str, keys: dict[str, str], dropped: list[str], source: str) -> str | None:
    """The name here, None for a tensor that is dropped on purpose; `ValueError` for an unknown one."""
    for pattern, target in keys.items():
        if match := re.fullmatch(pattern, name):
            return match.expand(target)
    if any(re.fullmatch(pattern, name) for pattern in dropped):
        return None
    raise ValueError(f"{source} holds the unknown tensor `{name}`; expected names like {sorted(keys)}.")


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
        """From the release's folder or the one above it. `ValueError` names the first missing file."""
        root = folder / SUBFOLDER if (folder / SUBFOLDER).is_dir() else folder
        names = ("projection.pt", "special_embeddings.pt", "tokenizer/tokenizer.model", "tuned-model/config.json")
        for name in names:
            if not (root / name).is_file():
                raise ValueError(
                    f"{folder} is no (complete) {SUBFOLDER} release: {name} is missing; download it again."
                )
        return cls(*(root / name for name in names), llm_shards=find_shards(root / "tuned-model"))

    def read_projection(self) -> Inert:
        module = read(self.projection, RELEASE_CLASSES)
        if not isinstance(module, Inert) or "transformer_layer" not in module.__dict__.get("_modules", {}):
            raise ValueError(
                f"{self.projection} holds no VisualToGPTMapping module; expected the release's projection.pt."
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


def find_shards(folder: Path) -> list[Path]:
    """The weight files of a model folder, each of the index present. `.bin` only where no safetensors are."""
    import json

    for stem, suffix in (("model", "safetensors"), ("pytorch_model", "bin")):
        index, single = folder / f"{stem}.{suffix}.index.json", folder / f"{stem}.{suffix}"
        if index.is_file():
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            missing = [name for name in names if not (folder / name).is_file()]
            if missing:
                raise ValueError(f"{folder} is half a download: {missing} of {len(names)} weight files are missing.")
            return [folder / name for name in names]
        if single.is_file():
            return [single]
    raise ValueError(
        f"{folder} holds no weights; expected model.safetensors, its shards with an index, or pytorch_model.bin."
    )


def projection_tensors(module: Inert, source: str) -> dict[str, torch.Tensor]:
    """The adapter's tensors under their names here; the stacked attention projection is split in three."""
    tensors = {}
    for name, tensor in module.tensors().items():
        split = next((t for p, t in PROJECTION_SPLIT.items() if re.fullmatch(p, name)), None)
        if split is None:
            tensors[renamed(name, PROJECTION_KEYS, [], source)] = tensor.clone()
            continue
        kind = name.rsplit("_", 1)[1]
        for target, part in zip(split, tensor.chunk(3)):
            tensors[target.replace(r"\1", kind)] = part.clone()
    return tensors

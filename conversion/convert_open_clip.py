"""Converts the vision tower of an OpenCLIP model into transformers' `CLIPVisionModel`.

    omnifusion convert open-clip --source laion/CLIP-ViT-bigG-14-laion2B-39B-b160k --output bigG-14
    omnifusion convert open-clip --source ViT-bigG-14 --pretrained laion2b_s39b_b160k --output bigG-14

The source is a folder or Hub id with open_clip_config.json, or the name of an OpenCLIP model with a pretrained tag or
a weights file; only names need the package open_clip_torch. Plain vision transformers convert exactly; a
setting that transformers' CLIP lacks is refused by name.
"""

import difflib
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import CLIPImageProcessor, CLIPVisionConfig
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, PILImageResampling

from omnifusion_hf.io import check_new

from .encoders import renamed_tensors, write_encoder
from .weights import KeyTable, locate


CONFIG = "open_clip_config.json"
SAFE_WEIGHTS, PICKLED_WEIGHTS = "open_clip_model.safetensors", "open_clip_pytorch_model.bin"

# Checkpoints of distributed training prefix every name with `module.`.
_VISUAL, _BLOCK = r"(?:module\.)?visual\.", r"(?:module\.)?visual\.transformer\.resblocks\.(\d+)\."
KEYS = KeyTable(
    keys={
        _VISUAL + r"class_embedding": "embeddings.class_embedding",
        _VISUAL + r"positional_embedding": "embeddings.position_embedding.weight",
        _VISUAL + r"conv1\.weight": "embeddings.patch_embedding.weight",
        _VISUAL + r"ln_pre\.(weight|bias)": r"pre_layrnorm.\1",
        _VISUAL + r"ln_post\.(weight|bias)": r"post_layernorm.\1",
        _BLOCK + r"attn\.out_proj\.(weight|bias)": r"encoder.layers.\1.self_attn.out_proj.\2",
        _BLOCK + r"ln_([12])\.(weight|bias)": r"encoder.layers.\1.layer_norm\2.\3",
        _BLOCK + r"mlp\.c_fc\.(weight|bias)": r"encoder.layers.\1.mlp.fc1.\2",
        _BLOCK + r"mlp\.c_proj\.(weight|bias)": r"encoder.layers.\1.mlp.fc2.\2",
    },
    split={
        _BLOCK + r"attn\.in_proj_(weight|bias)": [rf"encoder.layers.\1.self_attn.{part}_proj.\2" for part in "qkv"],
    },
    dropped=[
        _VISUAL + r"proj",  # to the space shared with text
        r"(?:module\.)?(?:positional_embedding|text_projection|logit_scale|logit_bias|cls_emb)",
        r"(?:module\.)?(?:token_embedding|ln_final|transformer|text|text_decoder)\..+",
        r"input_resolution|context_length|vocab_size",  # numbers in OpenAI's files
    ],
)

# Setting of a vision tower -> the values that transformers' CLIP supports, and the meaning of any other one.
PLAIN = {
    "timm_model_name": ([None], "the tower is a timm model"),
    "ls_init_value": ([None], "LayerScale"),
    "patch_dropout": ([0], "patch dropout"),
    "attentional_pool": ([False], "attentional pooling"),
    "pool_type": (["tok"], "pooling other than by the class token"),
    "final_ln_after_pool": ([False], "the last LayerNorm after the pooling"),
    "no_ln_pre": ([False], "no LayerNorm before the blocks; transformers' CLIP always has one"),
    "block_type": ([None, "default"], "custom attention blocks"),
    "qk_norm": ([False], "norms of queries and keys"),
    "scaled_cosine_attn": ([False], "cosine attention"),
    "scale_heads": ([False], "a scale for each head"),
    "scale_attn_inner": ([False], "a LayerNorm inside the attention"),
    "scale_attn": ([False], "a LayerNorm after the attention"),
    "scale_fc": ([False], "a LayerNorm inside the feed-forward layers"),
}
MAPPED = {"layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size", "act_kwargs", "norm_kwargs"}
# Position embeddings are stored in any case; the others concern outputs and settings that are not used.
WITHOUT_EFFECT = {"pos_embed_type", "output_tokens", "attn_pooler_queries", "attn_pooler_heads"}
WITHOUT_EFFECT |= {f"timm_{name}" for name in ("model_pretrained", "pool", "proj", "proj_bias", "drop", "drop_path")}
# OpenCLIP's own defaults
VISION_DEFAULTS = {"layers": 12, "width": 768, "head_width": 64, "mlp_ratio": 4.0, "patch_size": 16, "image_size": 224}
PREPROCESS_DEFAULTS = {"mean": OPENAI_CLIP_MEAN, "std": OPENAI_CLIP_STD}
PREPROCESS_DEFAULTS |= {"interpolation": "bicubic", "resize_mode": "shortest"}


@dataclass(frozen=True)
class OpenClipModel:
    """OpenCLIP's configuration of a model (`model_cfg`, `preprocess_cfg`) and its weights file."""

    model: dict
    preprocess: dict
    weights: Path

    @classmethod
    def from_folder(cls, folder: Path) -> "OpenClipModel":
        """A folder in the layout that OpenCLIP publishes on the Hub."""
        weights = [folder / name for name in (SAFE_WEIGHTS, PICKLED_WEIGHTS) if (folder / name).is_file()]
        if not (folder / CONFIG).is_file() or not weights:
            raise ValueError(
                f"{folder} is not an OpenCLIP folder: expected {CONFIG} with {SAFE_WEIGHTS} or {PICKLED_WEIGHTS}."
            )
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        return cls(config.get("model_cfg", config), config.get("preprocess_cfg", {}), weights[0])

    @classmethod
    def from_name(cls, name: str, pretrained: str | None) -> "OpenClipModel":
        """A name that OpenCLIP knows, with one of its pretrained tags or a weights file."""
        try:
            import open_clip
        except ImportError as error:
            raise ValueError(f"`{name}` needs open_clip_torch: pip install 'omnifusion_hf[open_clip]'.") from error
        model = open_clip.get_model_config(name)
        if model is None:
            near = difflib.get_close_matches(name, open_clip.list_models()) or open_clip.list_models()
            raise ValueError(f"`{name}` is neither a folder, a Hub id nor a model of open_clip; did you mean {near}?")
        if pretrained and Path(pretrained).is_file():
            return cls(model, {}, Path(pretrained))
        tag = open_clip.get_pretrained_cfg(name, pretrained or "")
        if not tag:
            known = open_clip.list_pretrained_tags_by_model(name)
            raise ValueError(f"`{pretrained}` is neither a file nor a pretrained tag of {name}; its tags are {known}.")
        # Without this, OpenCLIP itself would use the wrong activation for such a tag, and warn.
        model["quick_gelu"] = model.get("quick_gelu", False) or tag.get("quick_gelu", False)
        return cls(model, tag, Path(open_clip.download_pretrained(tag)))


def vision_config(model: dict) -> CLIPVisionConfig:
    """transformers' configuration of the tower; `ValueError` names a setting without a counterpart."""
    if missing := {"embed_dim", "vision_cfg"} - set(model):
        raise ValueError(f"The model's configuration lacks {sorted(missing)}; expected OpenCLIP's model_cfg.")
    vision = VISION_DEFAULTS | model["vision_cfg"]
    _check_plain(vision)
    norm = vision.get("norm_kwargs") or {}
    if set(norm) - {"eps"}:
        raise ValueError(f"norm_kwargs {norm} are not converted: only eps is configurable in transformers' CLIP.")
    return CLIPVisionConfig(
        hidden_size=vision["width"],
        intermediate_size=int(vision["width"] * vision["mlp_ratio"]),
        num_hidden_layers=vision["layers"],
        num_attention_heads=vision["width"] // vision["head_width"],
        image_size=_side(vision, "image_size"),
        patch_size=_side(vision, "patch_size"),
        projection_dim=model["embed_dim"],
        hidden_act=activation(model.get("quick_gelu", False), vision.get("act_kwargs")),
        layer_norm_eps=norm.get("eps", 1e-5),
    )


def _check_plain(vision: dict):
    if isinstance(vision["layers"], list | tuple):
        raise ValueError("The tower is a ResNet (layers is a list); only plain vision transformers are converted.")
    for name, (accepted, meaning) in PLAIN.items():
        if vision.get(name, accepted[0]) not in accepted:
            raise ValueError(
                f"vision_cfg has {name}={vision[name]!r}: {meaning}; only plain vision transformers are converted."
            )
    if unknown := sorted(set(vision) - set(PLAIN) - MAPPED - WITHOUT_EFFECT):
        raise ValueError(f"vision_cfg has settings that this converter does not know: {unknown}.")


def _side(vision: dict, name: str) -> int:
    sides = {vision[name]} if isinstance(vision[name], int) else set(vision[name])
    if len(sides) != 1:
        raise ValueError(f"{name} must be square, got {vision[name]}: transformers' CLIP has square images only.")
    return sides.pop()


def activation(quick_gelu: bool, act_kwargs: dict | None) -> str:
    """transformers' name of the activation in the feed-forward layers."""
    kinds = {"none": "gelu", "tanh": "gelu_pytorch_tanh"}
    options = act_kwargs or {}
    if quick_gelu and not options:
        return "quick_gelu"
    if quick_gelu or set(options) - {"approximate"} or options.get("approximate", "none") not in kinds:
        raise ValueError(f"act_kwargs {options} with quick_gelu={quick_gelu} have no counterpart in transformers.")
    return kinds[options.get("approximate", "none")]


def image_processor(preprocess: dict, size: int) -> CLIPImageProcessor:
    """OpenCLIP's inference transform: shortest edge and centre crop, or squash."""
    settings = PREPROCESS_DEFAULTS | {key: value for key, value in preprocess.items() if value is not None}
    mode, interpolation = settings["resize_mode"], settings["interpolation"]
    if mode not in ("shortest", "squash") or interpolation not in ("bicubic", "bilinear"):
        raise ValueError(
            f"preprocess_cfg has resize_mode={mode!r}, interpolation={interpolation!r}; "
            "expected 'shortest' or 'squash' and 'bicubic' or 'bilinear'."
        )
    return CLIPImageProcessor(
        size={"shortest_edge": size} if mode == "shortest" else {"height": size, "width": size},
        do_center_crop=mode == "shortest",
        crop_size={"height": size, "width": size},
        resample=PILImageResampling[interpolation.upper()],
        image_mean=list(settings["mean"]),
        image_std=list(settings["std"]),
    )


def find(source: str, pretrained: str | None) -> OpenClipModel:
    """A folder, a Hub id (owner/name), or a name of open_clip with `pretrained`."""
    if not Path(source).exists() and "/" not in source:
        return OpenClipModel.from_name(source, pretrained)
    if pretrained:
        raise ValueError(f"{source} has its own weights; omit --pretrained, or give the name of a model as source.")
    return OpenClipModel.from_folder(locate(source, [CONFIG, SAFE_WEIGHTS], [CONFIG, PICKLED_WEIGHTS]))


def convert(source: str, output: str, pretrained: str | None = None, dtype: torch.dtype | None = None) -> Path:
    """Writes the encoder folder `output` and returns its path.

    Args:
        source: a folder or Hub id with open_clip_config.json, or a model's name in open_clip.
        pretrained: for a name, one of its pretrained tags or a weights file.
        dtype: of the written weights; by default each tensor keeps its own.

    Raises `ValueError` (what was found, expected, to do) without leaving an output folder.
    """
    check_new(output)
    found = find(source, pretrained)
    config = vision_config(found.model)
    processor = image_processor(found.preprocess, config.image_size)
    return write_encoder(output, config, renamed_tensors([found.weights], KEYS), processor, dtype)


if __name__ == "__main__":
    from omnifusion_hf.cli import main

    sys.exit(main(["convert", "open-clip", *sys.argv[1:]]))

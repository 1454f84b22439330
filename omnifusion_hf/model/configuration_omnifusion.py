# Copyright 2026 The omnifusion_hf authors. All rights reserved.
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
# the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0 Unless required by
# applicable law or agreed to in writing, software distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied. See the License for the specific language
# governing permissions and limitations under the License.
"""Configuration of OmniFusion (arXiv 2404.06212): 1-N frozen vision encoders, a trainable adapter, a decoder-only LLM.

Provenance: fields as in transformers' `LlavaConfig`; encoders as in the paper's encoder table. Differences: several
encoders, and numbers that follow from them are properties. An invalid mix raises when the configuration is made.
"""

import re
from dataclasses import dataclass, field
from typing import Literal

import transformers
from packaging.version import Version


# The package and remote code both import this file first.
TRANSFORMERS_VERSIONS = ("5.13", "6")  # the oldest that works, the first that does not
if not Version(TRANSFORMERS_VERSIONS[0]) <= Version(transformers.__version__) < Version(TRANSFORMERS_VERSIONS[1]):
    raise ImportError(
        f"OmniFusion needs transformers {TRANSFORMERS_VERSIONS[0]} or newer, before {TRANSFORMERS_VERSIONS[1]}; "
        f"installed is {transformers.__version__}: "
        f"pip install 'transformers>={TRANSFORMERS_VERSIONS[0]},<{TRANSFORMERS_VERSIONS[1]}'"
    )

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, image_utils
from transformers.configuration_utils import PreTrainedConfig


# The remote code of a saved folder, for users without this package; TRL reads it from every configuration.
AUTO_MAP = {
    "AutoConfig": "configuration_omnifusion.OmniFusionConfig",
    "AutoModel": "modeling_omnifusion.OmniFusionModel",
    "AutoModelForImageTextToText": "modeling_omnifusion.OmniFusionForConditionalGeneration",
    "AutoProcessor": "processing_omnifusion.OmniFusionProcessor",
}

SPECIAL_TOKENS = {
    "image_token": "<image>",
    "image_start_token": "<img_start>",
    "image_end_token": "<img_end>",
    "user_token": "<user>",
    "bot_token": "<bot>",
}


# Adapters that read every layer of every encoder; the others read one layer of each.
ALL_LAYERS = ("summation", "attention")


@dataclass(frozen=True)
class EncoderFamily:
    """What differs between the families of transformers' vision models."""

    prefix_tokens: int  # before the patches (CLS), dropped by `vision_feature_select_strategy="default"`
    normalization: dict[str, list[float]]  # the published one, the default of `image_normalizations`
    blocks: str  # the path of its blocks
    after_blocks: tuple[str, ...]  # the names of modules after them, which are not used
    feature_layer: int = -2  # the default of `vision_feature_layer` (paper, encoder table)
    size_options: dict[str, bool] = field(default_factory=dict)  # of `forward`, for another image size than its own
    block_arguments: tuple = ()  # of a block's `forward`, after the hidden states


CLIP = {"image_mean": image_utils.OPENAI_CLIP_MEAN, "image_std": image_utils.OPENAI_CLIP_STD}
HALF = {"image_mean": image_utils.IMAGENET_STANDARD_MEAN, "image_std": image_utils.IMAGENET_STANDARD_STD}
IMAGENET = {"image_mean": image_utils.IMAGENET_DEFAULT_MEAN, "image_std": image_utils.IMAGENET_DEFAULT_STD}
ANY_SIZE = {"interpolate_pos_encoding": True}
ENCODER_FAMILIES = {
    "clip_vision_model": EncoderFamily(1, CLIP, "encoder.layers", ("post_layernorm",), -2, ANY_SIZE, (None,)),
    "siglip_vision_model": EncoderFamily(0, HALF, "encoder.layers", ("post_layernorm", "head"), -2, ANY_SIZE, (None,)),
    "dinov2": EncoderFamily(1, IMAGENET, "encoder.layer", ("layernorm",)),
    "internvl_vision": EncoderFamily(1, IMAGENET, "encoder.layer", ("layernorm",), -1),
    "donut-swin": EncoderFamily(0, HALF, "encoder.layers", ("pooler",), -1, ANY_SIZE),
}


def _side(size: int | list[int] | tuple[int, int], name: str) -> int:
    """The side of a square given as a number or as a pair of equal numbers."""
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) != 1:
        raise ValueError(f"{name} must be square, got {size}; set both sides to one number.")
    return sides.pop()


def check_one_per_encoder(name: str, values: list, encoders: list):
    if len(values) != len(encoders):
        raise ValueError(f"{name} has {len(values)} entries for {len(encoders)} encoders; give one per encoder.")


def saved_fields(config: PreTrainedConfig) -> dict:
    """A part's configuration as saved: all fields of its class, and the general fields that differ from defaults."""
    return {name: value for name, value in config.to_diff_dict().items() if name != "transformers_version"}


@strict
class OmniFusionVisionConfig(PreTrainedConfig):  # trf-ignore: TRF057
    r"""
    The vision encoders, in the order in which the adapter sees them (paper section 3.1 and the encoder table).

    encoder_configs: configurations (objects or dicts with `model_type`) of transformers' CLIP, SigLIP, DINOv2,
        InternVL and Donut-Swin vision models. Default: CLIP ViT-L/14-336.
    image_sizes: side in pixels of a view for each encoder; by default the encoder's own. The first one is the size of
        `pixel_values`; the model resizes views for the other encoders on the device.
    image_normalizations: `{"image_mean": [...], "image_std": [...]}` per encoder, RGB in [0, 1]. None, for one encoder
        or for all, is the family's published normalisation.
    """

    model_type = "omnifusion_vision"
    base_config_key = "vision_config"

    encoder_configs: list | None = None
    image_sizes: list[int] | None = None
    image_normalizations: list | None = None

    def __post_init__(self, **kwargs):
        if self.encoder_configs is None:
            self.encoder_configs = [
                {"model_type": "clip_vision_model", "image_size": 336, "patch_size": 14, "hidden_size": 1024}
                | {"intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
            ]
        self.encoder_configs = [
            AutoConfig.for_model(**config) if isinstance(config, dict) else config for config in self.encoder_configs
        ]
        self._check_families()
        if self.image_sizes is None:
            self.image_sizes = [_side(config.image_size, "image_size") for config in self.encoder_configs]
        if self.image_normalizations is None:
            self.image_normalizations = [None] * len(self.encoder_configs)
        for name in ("image_sizes", "image_normalizations"):
            check_one_per_encoder(name, getattr(self, name), self.encoder_configs)
        self._check_sizes()
        self.image_normalizations = [
            ENCODER_FAMILIES[config.model_type].normalization | (given or {})
            for given, config in zip(self.image_normalizations, self.encoder_configs)
        ]
        super().__post_init__(**kwargs)

    def _check_families(self):
        if not self.encoder_configs:
            raise ValueError("encoder_configs is empty; give at least one vision encoder configuration.")
        for config in self.encoder_configs:
            if config.model_type not in ENCODER_FAMILIES:
                raise ValueError(
                    f"Vision encoder `{config.model_type}` is not supported; use one of {sorted(ENCODER_FAMILIES)} "
                    "(of a two-tower model pass its vision_config)."
                )

    def _check_sizes(self):
        for size, config in zip(self.image_sizes, self.encoder_configs):
            # An encoder's own size need not be a multiple: SigLIP so400m has 384 and 14.
            patch = _side(config.patch_size, "patch_size")
            if size < patch or (size % patch and size != _side(config.image_size, "image_size")):
                below = max(size // patch, 1) * patch
                raise ValueError(
                    f"image size {size} of `{config.model_type}` is not a multiple of its patch size {patch}; "
                    f"use {below} or {below + patch}."
                )

    # transformers sets attention implementations and dtypes through `sub_configs`, which must be attributes: each
    # encoder is `encoder_<i>` there.
    @property
    def sub_configs(self) -> dict:
        return {f"encoder_{i}": AutoConfig for i in range(len(self.__dict__.get("encoder_configs") or ()))}

    def __getattr__(self, name):
        match = re.fullmatch(r"encoder_(\d+)", name)
        if match is None or int(match[1]) >= len(self.__dict__.get("encoder_configs") or ()):
            raise AttributeError(f"{type(self).__name__} has no attribute {name}")
        return self.__dict__["encoder_configs"][int(match[1])]

    def to_dict(self) -> dict:
        output = super().to_dict()
        return output | {"encoder_configs": [saved_fields(config) for config in self.encoder_configs]}

    @property
    def image_size(self) -> int:
        """Side in pixels of the views in `pixel_values`."""
        return self.image_sizes[0]

    @property
    def hidden_sizes(self) -> list[int]:
        """Width of each encoder's patch features."""
        return [config.hidden_size for config in self.encoder_configs]

    @property
    def hidden_size(self) -> int:
        """Width of the encoders' concatenated features."""
        return sum(self.hidden_sizes)

    def num_patches(self, index: int) -> int:
        """Patch features of encoder `index` for one view. Swin halves its grid after every stage but the last."""
        config = self.encoder_configs[index]
        side = self.image_sizes[index] // _side(config.patch_size, "patch_size")
        for _ in getattr(config, "depths", [None])[1:]:
            side = (side + 1) // 2
        return side**2


@strict
class OmniFusionConfig(PreTrainedConfig):  # trf-ignore: TRF057
    r"""
    Configuration of [`OmniFusionForConditionalGeneration`].

    projector_type: the adapter (paper section 3.2). `mlp` and `transformer` concatenate the encoders' channels and
        need equal token counts; `concatenation` concatenates their tokens; `summation` adds up all layers of all
        encoders; `attention` reads all layers with trained queries.
    projector_num_attention_heads, projector_intermediate_size, projector_dropout: heads, feed-forward width and
        dropout in training (defaults: v1.1's) of `transformer` and `concatenation`; heads and dropout of `attention`.
    projector_num_queries: rows of the trained matrix of `attention`, its visual tokens per view.
    vision_feature_layer: the hidden state of each encoder that is used: 0 is the output of the embeddings, -1 that of
        the last layer. `summation` and `attention` take `"all"` only. Default of the others: -2 as in the paper (-1
        for InternViT and Swin).
    vision_feature_select_strategy: `"default"` drops the CLS token, as the paper always does; `"full"` keeps it.
    image_token_id, ..., bot_token_id: vocabulary rows of the special tokens, trained in both stages, never generated.
    predicted_vocab_size: rows from this one on get no probability in loss and generation; by default every row is
        predicted. Converted v1.1 sets it, so that its added rows do not change its distribution. Labels of such rows
        raise `ValueError`. `resize_token_embeddings` unsets it; unset it to train tokens added to free rows.
    """

    model_type = "omnifusion"
    # Not `sub_configs_defaults` (transformers 5.20+): it omits default values, which differ between versions.
    sub_configs = {"vision_config": OmniFusionVisionConfig, "text_config": AutoConfig}
    # Trainer's evaluation collects the other outputs: the logits.
    keys_to_ignore_at_inference = ["past_key_values", "cache", "image_outputs"]

    vision_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    projector_type: Literal["mlp", "transformer", "concatenation", "summation", "attention"] = "mlp"
    projector_num_attention_heads: int = 4
    projector_intermediate_size: int = 2048
    projector_dropout: float | int = 0.1
    projector_num_queries: int = 576
    vision_feature_layer: int | list[int] | Literal["all"] | None = None
    vision_feature_select_strategy: Literal["default", "full"] = "default"
    image_token_id: int = 32000
    image_start_token_id: int = 32001
    image_end_token_id: int = 32002
    user_token_id: int = 32003
    bot_token_id: int = 32004
    predicted_vocab_size: int | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        if not isinstance(self.vision_config, PreTrainedConfig):
            self.vision_config = OmniFusionVisionConfig(**(self.vision_config or {}))
        if not isinstance(self.text_config, PreTrainedConfig):
            text_config = self.text_config or {"vocab_size": 32064}
            self.text_config = AutoConfig.for_model(**{"model_type": "mistral"} | text_config)
        super().__post_init__(**{"auto_map": dict(AUTO_MAP)} | kwargs)
        self._set_feature_layers()
        # Text configurations have the flag for their own head; ours needs it here.
        self.tie_word_embeddings = self.tie_word_embeddings or self.text_config.tie_word_embeddings
        self._check_feature_layers()
        self._check_projector()
        self._check_vocabulary()

    def to_diff_dict(self) -> dict:
        return super().to_diff_dict() | {name: saved_fields(getattr(self, name)) for name in self.sub_configs}

    def _set_feature_layers(self):
        encoders, given = self.vision_config.encoder_configs, self.vision_feature_layer
        if isinstance(given, int):
            self.vision_feature_layer = [given] * len(encoders)
        elif given is None:
            published = [ENCODER_FAMILIES[config.model_type].feature_layer for config in encoders]
            self.vision_feature_layer = "all" if self.projector_type in ALL_LAYERS else published

    def _check_feature_layers(self):
        if (self.vision_feature_layer == "all") != (self.projector_type in ALL_LAYERS):
            raise ValueError(
                f"vision_feature_layer {self.vision_feature_layer} with projector_type `{self.projector_type}`: "
                f"{' and '.join(ALL_LAYERS)} read all layers, the others one layer of each encoder; omit it."
            )
        if self.vision_feature_layer == "all":
            return
        encoders = self.vision_config.encoder_configs
        check_one_per_encoder("vision_feature_layer", self.vision_feature_layer, encoders)
        for layer, config in zip(self.vision_feature_layer, encoders):
            depth = config.num_hidden_layers
            if not -depth - 1 <= layer <= depth:
                raise ValueError(
                    f"vision_feature_layer {layer} does not exist: `{config.model_type}` has {depth} layers; "
                    f"use {-depth - 1} to {depth}."
                )
            if config.model_type == "donut-swin" and layer not in (-1, depth):
                raise ValueError(
                    f"vision_feature_layer {layer}: a Swin encoder changes its grid between stages, so that only its "
                    "last hidden state has a defined token count; use -1."
                )

    def _check_projector(self):
        counts = self.num_encoder_tokens
        if self.projector_type in ("mlp", "transformer") and len(set(counts)) > 1:
            raise ValueError(
                f"projector_type `{self.projector_type}` concatenates channels, but the encoders give {counts} tokens "
                f"per view; set image_sizes (now {self.vision_config.image_sizes}) to equal image size / patch size, "
                "or use concatenation, summation or attention."
            )
        families = [config.model_type for config in self.vision_config.encoder_configs]
        if self.projector_type in ALL_LAYERS and "donut-swin" in families:
            raise ValueError(
                f"projector_type `{self.projector_type}` reads all layers on one grid, but a Swin encoder changes its "
                f"grid between stages (encoders: {families}); use mlp, transformer or concatenation."
            )
        for name in ("projector_num_queries", "projector_num_attention_heads", "projector_intermediate_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}.")
        if not 0 <= self.projector_dropout < 1:
            raise ValueError(f"projector_dropout must be at least 0 and below 1, got {self.projector_dropout}.")
        width, heads = self.projector_attention_width, self.projector_num_attention_heads
        if width is not None and width % heads:
            raise ValueError(f"projector_num_attention_heads is {heads}, but must be a divisor of {width}, the width.")

    def _check_vocabulary(self):
        ids, rows = self.special_token_ids, self.text_config.vocab_size
        if len(set(ids)) < len(ids) or min(ids) < 0 or max(ids) >= rows:
            raise ValueError(
                f"Special token ids {ids} must be {len(ids)} different rows of the vocabulary of {rows}; "
                "resize the vocabulary (from_vision_text_pretrained does) or set the ids of your tokenizer."
            )
        if self.predicted_vocab_size is not None and not 0 < self.predicted_vocab_size <= rows:
            raise ValueError(
                f"predicted_vocab_size must be None or 1 to the {rows} rows of the vocabulary; "
                f"got {self.predicted_vocab_size}."
            )

    @property
    def special_token_ids(self) -> list[int]:
        """Rows that both stages train and that generation suppresses."""
        return [getattr(self, f"{name}_id") for name in SPECIAL_TOKENS]

    @property
    def num_encoder_tokens(self) -> list[int]:
        """Tokens per view of each encoder, with CLS if it is kept."""
        vision, keep_prefix = self.vision_config, self.vision_feature_select_strategy == "full"
        prefixes = [ENCODER_FAMILIES[config.model_type].prefix_tokens for config in vision.encoder_configs]
        return [vision.num_patches(i) + keep_prefix * prefix for i, prefix in enumerate(prefixes)]

    @property
    def projector_attention_width(self) -> int | None:
        """Width of the adapter's attention; None for adapters without one."""
        return {
            "transformer": self.vision_config.hidden_size,
            "concatenation": self.vision_config.hidden_sizes[0],
            "attention": self.text_config.hidden_size,
        }.get(self.projector_type)

    @property
    def image_seq_length(self) -> int:
        """P, the visual tokens of one view in the LLM."""
        if self.projector_type == "attention":
            return self.projector_num_queries
        return sum(self.num_encoder_tokens) if self.projector_type == "concatenation" else max(self.num_encoder_tokens)


__all__ = ["OmniFusionConfig", "OmniFusionVisionConfig"]

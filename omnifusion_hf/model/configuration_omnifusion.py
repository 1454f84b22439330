# Copyright 2026 The omnifusion_hf authors. All rights reserved.
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
# the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0 Unless required by
# applicable law or agreed to in writing, software distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied. See the License for the specific language
# governing permissions and limitations under the License.
"""Configuration of OmniFusion (arXiv 2404.06212): 1-N frozen vision encoders, a trainable adapter, a decoder-only LLM.

Provenance: fields as in transformers' `LlavaConfig`; encoders as in the paper's encoder table. Differences: several
encoders, and numbers that follow from them are properties. An invalid mix raises `ValueError` here.
"""

import re
from typing import Literal

import transformers
from packaging.version import Version


# The package and remote code both import this file first.
TRANSFORMERS_VERSIONS = oldest, too_new = "5.13", "6"  # the oldest that works, the first that does not
if not Version(oldest) <= Version(transformers.__version__) < Version(too_new):
    raise ImportError(
        f"OmniFusion needs transformers {oldest} or newer, before {too_new}; installed is {transformers.__version__}: "
        f"pip install 'transformers>={oldest},<{too_new}'"
    )

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, CLIPVisionConfig
from transformers.configuration_utils import PreTrainedConfig

from .encoder_families_omnifusion import EncoderOutputs, encoder_outputs, family_of, own_size, side_of
from .modeling_omnifusion_projector import PROJECTORS, Projector


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


def check_one_per_encoder(name: str, values: list, encoders: list):
    if len(values) != len(encoders):
        raise ValueError(f"{name} has {len(values)} entries for {len(encoders)} encoders; give one per encoder.")


def encoder_config(given: dict | PreTrainedConfig) -> PreTrainedConfig:
    config = AutoConfig.for_model(**given) if isinstance(given, dict) else given
    if config.model_type != "metaclip_2_vision_model":
        return config
    return CLIPVisionConfig(**saved_fields(config) | {"model_type": "clip_vision_model"})  # the same architecture


def published_normalization(config: PreTrainedConfig) -> dict[str, list[float]]:
    """Of an encoder's weights in timm, or of its family; empty if none is known."""
    timm = getattr(config, "pretrained_cfg", None) or {}
    if "mean" in timm:
        return {"image_mean": list(timm["mean"]), "image_std": list(timm["std"])}
    return family_of(config).normalization


def saved_fields(config: PreTrainedConfig) -> dict:
    """A part's configuration as saved: all fields of its class, and the general fields that differ from defaults."""
    return {name: value for name, value in config.to_diff_dict().items() if name != "transformers_version"}


@strict
class OmniFusionVisionConfig(PreTrainedConfig):  # trf-ignore: TRF057
    r"""The vision encoders, in the order in which the adapter sees them (paper section 3.1 and the encoder table).

    encoder_configs: configurations (or dicts with `model_type`) of vision models in transformers that give patch
        features: CLIP, SigLIP, DINOv2, DINOv3, Swin, timm … (docs/encoders.md). Default: CLIP ViT-L/14-336.
    image_sizes: side in pixels of a view for each encoder, by default its own. The first one is the size of
        `pixel_values`; the model resizes views for the other encoders on the device.
    image_normalizations: `{"image_mean": [...], "image_std": [...]}` per encoder, RGB in [0, 1]. None, for one encoder
        or for all, is the family's published normalisation."""

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
        if not self.encoder_configs:
            raise ValueError("encoder_configs is empty; give at least one vision encoder configuration.")
        self.encoder_configs = [encoder_config(given) for given in self.encoder_configs]
        self._set_normalizations()
        if self.image_sizes is None:
            self.image_sizes = [own_size(config) for config in self.encoder_configs]
        self._check_sizes()
        super().__post_init__(**kwargs)

    def _set_normalizations(self):
        given = [None] * len(self.encoder_configs) if self.image_normalizations is None else self.image_normalizations
        check_one_per_encoder("image_normalizations", given, self.encoder_configs)
        self.image_normalizations = []
        for config, normalization in zip(self.encoder_configs, given):
            self.image_normalizations.append(published_normalization(config) | (normalization or {}))
            if self.image_normalizations[-1].keys() != {"image_mean", "image_std"}:
                raise ValueError(
                    f"Vision encoder `{config.model_type}` is not supported: no normalisation of its images is known; "
                    "set image_normalizations or call register_encoder (of a two-tower model pass its vision_config)."
                )

    def _check_sizes(self):
        check_one_per_encoder("image_sizes", self.image_sizes, self.encoder_configs)
        for size, config in zip(self.image_sizes, self.encoder_configs):
            # An encoder's own size need not be a multiple: SigLIP so400m has 384 and 14.
            patch = side_of(getattr(config, "patch_size", None) or 1, "patch_size")
            if size < patch or (size % patch and size != own_size(config)):
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
    def encoder_outputs(self) -> list[EncoderOutputs]:
        """Tokens, widths and layers of each encoder for one view."""
        return [encoder_outputs(config, size) for config, size in zip(self.encoder_configs, self.image_sizes)]

    @property
    def hidden_sizes(self) -> list[int]:
        """Width of each encoder's patch features."""
        return [outputs.width for outputs in self.encoder_outputs]

    @property
    def hidden_size(self) -> int:
        """Width of the encoders' concatenated features."""
        return sum(self.hidden_sizes)


@strict
class OmniFusionConfig(PreTrainedConfig):  # trf-ignore: TRF057
    r"""Configuration of [`OmniFusionForConditionalGeneration`].

    projector_type: the adapter (paper section 3.2; docs/data_path.md). `mlp` and `transformer` concatenate the
        encoders' channels and need equal token counts; `concatenation` concatenates their tokens; `summation` and
        `attention` read all layers. `register_projector` adds others.
    projector_num_attention_heads, projector_intermediate_size, projector_dropout: heads, feed-forward width and
        dropout in training (defaults: v1.1's) of `transformer` and `concatenation`; heads and dropout of `attention`.
    projector_num_queries: rows of the trained matrix of `attention`, its visual tokens per view.
    vision_feature_layer: the hidden state of each encoder that is used: 0 is the output of the embeddings, -1 that of
        the last layer; `"all"` with `summation` and `attention`. Default: -2 as in the paper (-1 for InternViT, Swin).
    vision_feature_select_strategy: `"default"` drops the CLS token, as the paper always does; `"full"` keeps it.
    image_token_id, ..., bot_token_id: vocabulary rows of the special tokens, trained in both stages, never generated.
    predicted_vocab_size: rows from this one on get no probability in loss and generation, so that the rows added to
        v1.1 do not change its distribution; None predicts every row. A label of such a row raises `ValueError`.
        `resize_token_embeddings` unsets it; unset it to train tokens added to free rows."""

    model_type = "omnifusion"
    # Not `sub_configs_defaults` (transformers 5.20+): it omits default values, which differ between versions.
    sub_configs = {"vision_config": OmniFusionVisionConfig, "text_config": AutoConfig}
    # Trainer's evaluation collects the other outputs: the logits.
    keys_to_ignore_at_inference = ["past_key_values", "cache", "image_outputs"]

    vision_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    projector_type: str = "mlp"
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
        if self.projector_type not in PROJECTORS:
            raise ValueError(
                f"projector_type `{self.projector_type}` is unknown; use one of {list(PROJECTORS)}, or import the "
                "file that registers it (for commands set OMNIFUSION_EXTENSIONS=FILE.py)."
            )
        # Text configurations have the flag for their own head; ours needs it here.
        self.tie_word_embeddings = self.tie_word_embeddings or getattr(self.text_config, "tie_word_embeddings", False)
        self._set_feature_layers()
        self._check_projector()
        self._check_vocabulary()

    def to_diff_dict(self) -> dict:
        return super().to_diff_dict() | {name: saved_fields(getattr(self, name)) for name in self.sub_configs}

    def _set_feature_layers(self):
        encoders, reads_all = self.vision_config.encoder_configs, self.projector_class.reads_all_layers
        if isinstance(self.vision_feature_layer, int):
            self.vision_feature_layer = [self.vision_feature_layer] * len(encoders)
        elif self.vision_feature_layer is None:
            self.vision_feature_layer = "all" if reads_all else [family_of(each).feature_layer for each in encoders]
        if (self.vision_feature_layer == "all") != reads_all:
            readers = [name for name, cls in PROJECTORS.items() if cls.reads_all_layers]
            raise ValueError(
                f"vision_feature_layer {self.vision_feature_layer} with projector_type `{self.projector_type}`: "
                f"{' and '.join(readers)} read all layers, the others one layer of each encoder; omit it."
            )
        if reads_all:
            return
        check_one_per_encoder("vision_feature_layer", self.vision_feature_layer, encoders)
        for layer, config, output in zip(self.vision_feature_layer, encoders, self.vision_config.encoder_outputs):
            depth = output.num_layers
            lowest, highest = (-depth - 1, depth) if output.has_embeddings else (-depth, depth)
            if not lowest <= layer <= highest or (layer == 0 and not output.has_embeddings):
                raise ValueError(
                    f"vision_feature_layer {layer} does not exist: `{config.model_type}` has {depth} layers; "
                    f"use {lowest} to {highest}."
                )
            if output.is_pyramid and layer not in (-1, depth):
                raise ValueError(
                    f"vision_feature_layer {layer}: `{config.model_type}` changes its grid between stages, so that "
                    "only its last hidden state has a defined token count; use -1."
                )

    def _check_projector(self):
        counts = self.num_encoder_tokens
        if self.projector_class.needs_equal_tokens and len(set(counts)) > 1:
            raise ValueError(
                f"projector_type `{self.projector_type}` concatenates channels, but the encoders give {counts} tokens "
                f"per view; set image_sizes (now {self.vision_config.image_sizes}) to equal image size / patch size, "
                "or use concatenation, summation or attention."
            )
        has_pyramid = any(output.is_pyramid for output in self.vision_config.encoder_outputs)
        if self.projector_class.reads_all_layers and has_pyramid:
            families = [config.model_type for config in self.vision_config.encoder_configs]
            raise ValueError(
                f"projector_type `{self.projector_type}` reads all layers on one grid, but one of {families} changes "
                "its grid between stages; use mlp, transformer or concatenation."
            )
        for name in ("projector_num_queries", "projector_num_attention_heads", "projector_intermediate_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}.")
        if not 0 <= self.projector_dropout < 1:
            raise ValueError(f"projector_dropout must be at least 0 and below 1, got {self.projector_dropout}.")
        width, heads = self.projector_class.attention_width(self), self.projector_num_attention_heads
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
                f"predicted_vocab_size is None or 1 to the {rows} rows there are; got {self.predicted_vocab_size}."
            )

    @property
    def special_token_ids(self) -> list[int]:
        """Rows that both stages train and that generation suppresses."""
        return [getattr(self, f"{name}_id") for name in SPECIAL_TOKENS]

    @property
    def num_encoder_tokens(self) -> list[int]:
        """Tokens per view of each encoder, with CLS if it is kept."""
        keep = self.vision_feature_select_strategy == "full"
        return [output.num_patches + keep * output.prefix_tokens for output in self.vision_config.encoder_outputs]

    @property
    def projector_class(self) -> type[Projector]:
        return PROJECTORS[self.projector_type]

    @property
    def image_seq_length(self) -> int:
        """P, the visual tokens of one view in the LLM."""
        return self.projector_class.num_tokens(self)


__all__ = ["OmniFusionConfig", "OmniFusionVisionConfig"]

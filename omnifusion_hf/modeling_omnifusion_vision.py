# Copyright 2026 The omnifusion_hf authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""The frozen encoders: one set of views in, patch features of the layer asked for out, per encoder.

Encoders are transformers' own vision models under their own names, so their weights load unchanged. Their blocks are
called directly: layers above the one asked for, final norms and pooling heads are neither built nor computed.
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoModel
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_outputs import ModelOutput
from transformers.modeling_utils import PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, logging
from transformers.utils.output_capturing import capture_outputs

from .configuration_omnifusion import ENCODER_FAMILIES, OmniFusionVisionConfig


logger = logging.get_logger(__name__)

# Attention implementation -> the attribute by which a model says that it has it.
ATTENTION_FLAGS = {
    "sdpa": "_supports_sdpa",
    "flash_attention_2": "_supports_flash_attn",
    "flash_attention_3": "_supports_flash_attn",
    "flex_attention": "_supports_flex_attn",
}


@dataclass(frozen=True)
class EncoderParts:
    """Where a family keeps its blocks, and what lies behind them that patch features never pass."""

    blocks: str
    behind_blocks: tuple[str, ...]
    interpolates_on_request: bool


ENCODER_PARTS = {
    "clip_vision_model": EncoderParts("encoder.layers", ("post_layernorm",), True),
    "siglip_vision_model": EncoderParts("encoder.layers", ("post_layernorm", "head"), True),
    "dinov2": EncoderParts("encoder.layer", ("layernorm",), False),
    "internvl_vision": EncoderParts("encoder.layer", ("layernorm",), False),
    "donut-swin": EncoderParts("encoder.layers", ("pooler",), True),
}


def needed_blocks(layer: int, num_layers: int) -> int:
    """How many blocks hidden state `layer` needs (0: the embeddings alone; negative counts from the end)."""
    return layer if layer >= 0 else num_layers + 1 + layer


def trim_encoder(encoder: PreTrainedModel, layer: int) -> PreTrainedModel:
    """Removes, in place, what hidden state `layer` does not need."""
    parts = ENCODER_PARTS[encoder.config.model_type]
    del encoder.get_submodule(parts.blocks)[needed_blocks(layer, encoder.config.num_hidden_layers) :]
    for name in parts.behind_blocks:
        if getattr(encoder, name, None) is not None:
            setattr(encoder, name, nn.Identity())
    encoder.embeddings.mask_token = None  # masks patches while an encoder is pretrained
    return encoder


def build_encoder(config: PreTrainedConfig) -> PreTrainedModel:
    """The family's model; with eager attention, and a notice, where it has not the implementation asked for (Swin)."""
    flag = ATTENTION_FLAGS.get(config._attn_implementation)
    if flag is not None and not getattr(AutoModel._model_mapping[type(config)], flag):
        logger.warning_once(f"`{config.model_type}` has no {config._attn_implementation} attention; it uses eager.")
        config._attn_implementation = "eager"
    return AutoModel.from_config(config)


def needs_graph(encoder: PreTrainedModel, pixel_values: torch.Tensor) -> bool:
    """False for a frozen encoder. Activation checkpointing makes the output of every embedding require gradients, and
    the encoder would keep its whole graph for nothing."""
    return pixel_values.requires_grad or any(parameter.requires_grad for parameter in encoder.parameters())


def encode(encoder: PreTrainedModel, pixel_values: torch.Tensor) -> torch.Tensor:
    """The output of the last block that a trimmed encoder has, prefix tokens included."""
    parts = ENCODER_PARTS[encoder.config.model_type]
    pixel_values = pixel_values.to(encoder.dtype)  # (ΣV, 3, S_e, S_e)
    options = {"interpolate_pos_encoding": True} if parts.interpolates_on_request else {}
    hidden_states = encoder.embeddings(pixel_values, **options)
    if encoder.config.model_type == "donut-swin":
        return _encode_stages(encoder, *hidden_states)
    if hasattr(encoder, "pre_layrnorm"):  # CLIP, spelled so in its weights
        hidden_states = encoder.pre_layrnorm(hidden_states)
    for block in encoder.get_submodule(parts.blocks):
        # CLIP and SigLIP require the mask argument, InternVL has none
        masks = () if encoder.config.model_type == "internvl_vision" else (None,)
        hidden_states = block(hidden_states, *masks)
    return hidden_states  # (ΣV, prefix + P_e, d_e)


def _encode_stages(encoder: PreTrainedModel, hidden_states: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Swin stages hand on their grid, halved, beside the features."""
    for stage in encoder.encoder.layers:
        hidden_states, _, sizes = stage(hidden_states, grid)[:3]
        grid = sizes[-2:]
    return hidden_states  # (ΣV, P_e, d_e)


@dataclass
class OmniFusionVisionOutput(ModelOutput):  # trf-ignore: TRF057
    """features: one (ΣV, P_e, d_e) per encoder. hidden_states, attentions: of the blocks that are computed, encoder by
    encoder, behind the first encoder's embeddings; where asked for."""

    features: list[torch.Tensor] | None = None
    hidden_states: tuple[torch.Tensor] | None = None
    attentions: tuple[torch.Tensor] | None = None


class OmniFusionVisionModel(PreTrainedModel):  # trf-ignore: TRF057
    r"""
    1-N vision encoders over the same views.

    Args:
        config: the encoders, their sizes and normalisations.
        feature_layers: the hidden state wanted of each encoder.
        keep_prefix: whether CLS tokens stay in front of the patches (`vision_feature_select_strategy="full"`).
    """

    config: OmniFusionVisionConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    # Nothing of its own; each encoder says which of its modules give these.
    _can_record_outputs = {"hidden_states": [], "attentions": []}

    def __init__(self, config: OmniFusionVisionConfig, feature_layers: list[int], keep_prefix: bool = False):
        super().__init__(config)
        self.keep_prefix = keep_prefix
        self.encoders = nn.ModuleList(
            trim_encoder(build_encoder(encoder_config), layer)
            for encoder_config, layer in zip(config.encoder_configs, feature_layers)
        )
        # device_map must not split a block; post_init gathers this from direct children, not through a ModuleList.
        self._no_split_modules = set().union(*(encoder._no_split_modules for encoder in self.encoders))
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.encoders[0].get_input_embeddings()

    # trf-ignore: TRF057
    @capture_outputs(tie_last_hidden_states=False)
    def forward(self, pixel_values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> OmniFusionVisionOutput:
        """Patch features per encoder.

        Args:
            pixel_values: (ΣV, 3, S, S), normalised for the first encoder; any float dtype.
        """
        features = []
        for index, encoder in enumerate(self.encoders):
            with torch.set_grad_enabled(torch.is_grad_enabled() and needs_graph(encoder, pixel_values)):
                hidden_states = encode(encoder, self._views_for(index, pixel_values))
            if not self.keep_prefix:
                hidden_states = hidden_states[:, ENCODER_FAMILIES[encoder.config.model_type].prefix_tokens :]
            features.append(hidden_states)  # (ΣV, P_e, d_e)
        return OmniFusionVisionOutput(features=features)

    def _views_for(self, index: int, pixel_values: torch.Tensor) -> torch.Tensor:
        """The views at encoder `index`'s size and normalisation; float32 where these differ from the first's."""
        config, size = self.config, self.config.image_sizes[index]
        ours, given = config.image_normalizations[index], config.image_normalizations[0]
        if ours == given and size == pixel_values.shape[-1]:
            return pixel_values
        (mean, std), (first_mean, first_std) = (
            [
                torch.tensor(norm[key], device=pixel_values.device).view(1, 3, 1, 1)
                for key in ("image_mean", "image_std")
            ]
            for norm in (ours, given)
        )
        colours = pixel_values.float() * first_std + first_mean
        if size != pixel_values.shape[-1]:
            colours = nn.functional.interpolate(
                colours, size=(size, size), mode="bicubic", align_corners=False, antialias=True
            ).clamp(0, 1)  # (ΣV, 3, S_e, S_e)
        return (colours - mean) / std


__all__ = ["OmniFusionVisionModel"]

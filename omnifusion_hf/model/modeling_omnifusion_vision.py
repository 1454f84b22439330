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
"""The frozen encoders: one set of views in, patch features of one layer or of all layers out, encoder by encoder.

Encoders are transformers' own vision models under their own names, so their weights load unchanged. Their blocks are
called directly: layers above the one asked for, final norms and pooling heads are neither built nor computed, and the
adapter reads each layer as it is computed, so that no two need be in memory.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Literal

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


def last_layers(config: OmniFusionVisionConfig, feature_layers: list[int] | Literal["all"]) -> list[int]:
    """The topmost hidden state that is needed of each encoder."""
    return [-1] * len(config.encoder_configs) if feature_layers == "all" else feature_layers


def trim_encoder(encoder: PreTrainedModel, layer: int) -> PreTrainedModel:
    """Removes, in place, what hidden state `layer` does not need."""
    parts = ENCODER_PARTS[encoder.config.model_type]
    del encoder.get_submodule(parts.blocks)[needed_blocks(layer, encoder.config.num_hidden_layers) :]
    for name in parts.behind_blocks:
        if getattr(encoder, name, None) is not None:
            setattr(encoder, name, nn.Identity())
    encoder.embeddings.mask_token = None  # masks patches while an encoder is pretrained
    if encoder.config.model_type == "donut-swin":
        # Not a bound method: pickle would look for it by its name in the encoder's class.
        encoder.get_input_embeddings = partial(_patch_projection, encoder)
    return encoder


def _patch_projection(encoder: PreTrainedModel) -> nn.Module:
    """Swin's patch embeddings give a tuple, on which `enable_input_require_grads` (LoRA with checkpointing) fails."""
    return encoder.embeddings.patch_embeddings.projection


def build_encoder(config: PreTrainedConfig) -> PreTrainedModel:
    """The family's model; with eager attention, and a notice, where it has not the implementation asked for (Swin)."""
    flag = ATTENTION_FLAGS.get(config._attn_implementation)
    if flag is not None and not getattr(AutoModel._model_mapping[type(config)], flag):
        logger.warning_once(f"`{config.model_type}` has no {config._attn_implementation} attention; it uses eager.")
        config._attn_implementation = "eager"
    return AutoModel.from_config(config)


def usable_attention(config: PreTrainedConfig, states: torch.Tensor) -> str | None:
    """The implementation asked for, or sdpa, with a notice, where that is flash attention, which takes no float32:
    encoders and adapter keep it in a float16 model. (Autocast makes half precision of what it gets.)"""
    asked = config._attn_implementation
    if states.dtype != torch.float32 or "flash" not in str(asked) or torch.is_autocast_enabled(states.device.type):
        return asked
    logger.warning_once(
        f"{config.model_type}: encoders and adapter are in float32, which {asked} does not take; there they use sdpa."
        " In bfloat16 the whole model uses what was asked for."
    )
    return "sdpa"


def needs_graph(encoder: PreTrainedModel, pixel_values: torch.Tensor) -> bool:
    """False for a frozen encoder. Activation checkpointing makes the output of every embedding require gradients, and
    the encoder would keep its whole graph for nothing."""
    return pixel_values.requires_grad or any(parameter.requires_grad for parameter in encoder.parameters())


def hidden_states_of(encoder: PreTrainedModel, pixel_values: torch.Tensor) -> Iterator[torch.Tensor]:
    """The embeddings' output, then that of each block that a trimmed encoder has: (ΣV, prefix + P_e, d_e)."""
    blocks = encoder.get_submodule(ENCODER_PARTS[encoder.config.model_type].blocks)
    with_graph = torch.is_grad_enabled() and needs_graph(encoder, pixel_values)
    # The reader runs while this generator waits at a `yield`: no grad mode may be left set there.
    with torch.set_grad_enabled(with_graph):
        hidden_states, grid = _embed(encoder, pixel_values)
    encoder.config._attn_implementation = usable_attention(encoder.config, hidden_states)
    yield hidden_states
    for block in blocks:
        with torch.set_grad_enabled(with_graph):
            hidden_states, grid = _run_block(encoder.config.model_type, block, hidden_states, grid)
        yield hidden_states


def _embed(encoder: PreTrainedModel, pixel_values: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int] | None]:
    """Patch embeddings, and of Swin their grid."""
    family = encoder.config.model_type
    options = {"interpolate_pos_encoding": True} if ENCODER_PARTS[family].interpolates_on_request else {}
    hidden_states = encoder.embeddings(pixel_values.to(encoder.dtype), **options)
    if family == "donut-swin":
        return hidden_states
    if family == "clip_vision_model":
        hidden_states = encoder.pre_layrnorm(hidden_states)  # spelled so in its weights
    return hidden_states, None


def _run_block(
    family: str, block: nn.Module, hidden_states: torch.Tensor, grid: tuple[int, int] | None
) -> tuple[torch.Tensor, tuple[int, int] | None]:
    """One block, or one stage of Swin, which hands on its grid, halved."""
    if family == "donut-swin":
        hidden_states, _, sizes = block(hidden_states, grid)[:3]
        return hidden_states, sizes[-2:]
    mask = (None,) if family in ("clip_vision_model", "siglip_vision_model") else ()  # these require the argument
    hidden_states = block(hidden_states, *mask)
    return hidden_states, None


def side_by_side(features: list[torch.Tensor]) -> torch.Tensor:
    """(ΣV, max P_e, Σd): channel by channel, shorter sequences continued with zero vectors."""
    if len(features) == 1:
        return features[0]
    longest = max(feature.shape[1] for feature in features)
    padded = [nn.functional.pad(feature, (0, 0, 0, longest - feature.shape[1])) for feature in features]
    return torch.cat(padded, dim=-1)


@dataclass
class OmniFusionVisionOutput(ModelOutput):  # trf-ignore: TRF057
    """features: what `read` made of the features. last_features: the last of each encoder, (ΣV, P_e, d_e) each.
    hidden_states, attentions: of the blocks that are computed, encoder by encoder, behind the first encoder's
    embeddings; where asked for."""

    features: list[torch.Tensor] | torch.Tensor | None = None
    last_features: list[torch.Tensor] | None = None
    hidden_states: tuple[torch.Tensor] | None = None
    attentions: tuple[torch.Tensor] | None = None


class OmniFusionVisionModel(PreTrainedModel):  # trf-ignore: TRF057
    r"""
    1-N vision encoders over the same views.

    Args:
        config: the encoders, their sizes and normalisations.
        feature_layers: the hidden state wanted of each encoder, or "all".
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

    def __init__(
        self, config: OmniFusionVisionConfig, feature_layers: list[int] | Literal["all"], keep_prefix: bool = False
    ):
        super().__init__(config)
        self.keep_prefix = keep_prefix
        self.every_layer = feature_layers == "all"
        self.encoders = nn.ModuleList(
            trim_encoder(build_encoder(encoder_config), layer)
            for encoder_config, layer in zip(config.encoder_configs, last_layers(config, feature_layers))
        )
        # device_map must not split a block; post_init gathers this from direct children, not through a ModuleList.
        self._no_split_modules = set().union(*(encoder._no_split_modules for encoder in self.encoders))
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.encoders[0].get_input_embeddings()

    # trf-ignore: TRF057
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor,
        read: Callable[[Iterable[torch.Tensor]], Any] = list,
        **kwargs: Unpack[TransformersKwargs],
    ) -> OmniFusionVisionOutput:
        """Features of the views.

        Args:
            pixel_values: (ΣV, 3, S, S), normalised for the first encoder; any float dtype.
            read: gets the features (ΣV, P_e, d_e) one after another, each as soon as it is computed: one per encoder,
                or all layers of the first encoder, then of the next. By default they are listed.
        """
        last_features = [None] * len(self.encoders)
        features = read(self._features(pixel_values, last_features))
        return OmniFusionVisionOutput(features=features, last_features=last_features)

    def _features(self, pixel_values: torch.Tensor, last_features: list[torch.Tensor]) -> Iterator[torch.Tensor]:
        """What `forward` hands to its reader; notes the last features of each encoder in `last_features`."""
        for index, encoder in enumerate(self.encoders):
            num_blocks = len(encoder.get_submodule(ENCODER_PARTS[encoder.config.model_type].blocks))
            prefix = 0 if self.keep_prefix else ENCODER_FAMILIES[encoder.config.model_type].prefix_tokens
            states = hidden_states_of(encoder, self._views_for(index, pixel_values))
            for hidden_states in islice(states, 1 if self.every_layer else num_blocks, None):
                last_features[index] = hidden_states[:, prefix:]  # (ΣV, P_e, d_e)
                yield last_features[index]

    def _views_for(self, index: int, pixel_values: torch.Tensor) -> torch.Tensor:
        """The views at encoder `index`'s size and normalisation; float32 where these differ from the first's."""
        config, size = self.config, self.config.image_sizes[index]
        ours, given = config.image_normalizations[index], config.image_normalizations[0]
        if ours == given and size == pixel_values.shape[-1]:
            return pixel_values
        (mean, std), (first_mean, first_std) = (mean_and_std(each, pixel_values.device) for each in (ours, given))
        colours = pixel_values.float() * first_std + first_mean
        if size != pixel_values.shape[-1]:
            colours = nn.functional.interpolate(
                colours, size=(size, size), mode="bicubic", align_corners=False, antialias=True
            ).clamp(0, 1)  # (ΣV, 3, S_e, S_e)
        return (colours - mean) / std


def mean_and_std(normalization: dict, device: torch.device) -> list[torch.Tensor]:
    """`image_mean` and `image_std` of an image processor, each (1, 3, 1, 1)."""
    return [torch.tensor(normalization[key], device=device).view(1, 3, 1, 1) for key in ("image_mean", "image_std")]


__all__ = ["OmniFusionVisionModel"]

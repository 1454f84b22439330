# Copyright 2026 The omnifusion_hf authors. All rights reserved.
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
# the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0 Unless required by
# applicable law or agreed to in writing, software distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied. See the License for the specific language
# governing permissions and limitations under the License.
"""The frozen encoders: one set of views in, patch features of one layer or of all layers out, encoder by encoder.

Provenance: transformers' own vision models, whose published weights load unchanged. Differences: layers after the one
in use are not built, and an adapter of all layers (paper section 3.2) gets each as it is computed.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import distributed as dist
from torch import nn
from transformers import AutoModel
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_outputs import ModelOutput
from transformers.modeling_utils import PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple, logging

from .configuration_omnifusion import OmniFusionVisionConfig
from .encoder_families_omnifusion import as_sequences, encoder_inputs, family_of, size_options


logger = logging.get_logger(__name__)


def trim_encoder(encoder: PreTrainedModel, layer: int) -> PreTrainedModel:
    """Removes, in place, everything that hidden state `layer` does not need, from an encoder with `blocks`."""
    family = family_of(encoder.config)
    if family.blocks is None:
        return encoder
    # There is one hidden state more than blocks: 0 is the output of the embeddings.
    del encoder.get_submodule(family.blocks)[layer % (encoder.config.num_hidden_layers + 1) :]
    for name in family.after_blocks:
        if getattr(encoder, name, None) is not None:
            setattr(encoder, name, nn.Identity())
    if getattr(encoder.config, "use_mask_token", False):  # in the pretraining of encoders only
        encoder.embeddings.mask_token = None
        encoder.config.use_mask_token = False  # transformers before 5.18 initialises what this asks for
    return encoder


def build_encoder(config: PreTrainedConfig) -> PreTrainedModel:
    """The family's model; with eager attention, and a notice, if it does not have the chosen one (Swin)."""
    try:
        return AutoModel.from_config(config)
    except ValueError as error:
        encoder = AutoModel.from_config(config, attn_implementation="eager")
        logger.warning_once(f"`{config.model_type}` uses eager attention: {error}")
        return encoder


def use_attention_that_takes_float32(encoder: PreTrainedModel):
    """Flash attention takes half precision only, but a float16 model keeps its encoders in float32: they use sdpa.
    (Autocast makes half precision of the inputs of attention.)"""
    chosen = str(encoder.config._attn_implementation)
    if encoder.dtype == torch.float32 and "flash" in chosen and not torch.is_autocast_enabled(encoder.device.type):
        encoder.set_attn_implementation("sdpa")
        logger.warning_once(
            f"{encoder.config.model_type} is in float32, which {chosen} does not take; it uses sdpa. In bfloat16 the "
            "whole model uses the chosen attention."
        )


def each_layer(encoder: PreTrainedModel, pixel_values: torch.Tensor) -> Iterator[torch.Tensor]:
    """The output of each block (ΣV, prefix + P_e, d_e) as it is computed; the encoder's `forward` would keep all."""
    family = family_of(encoder.config)
    hidden_states = encoder.embeddings(pixel_values, **size_options(encoder.embeddings))
    if encoder.config.model_type == "clip_vision_model":
        hidden_states = encoder.pre_layrnorm(hidden_states)  # spelled so in its weights
    for block in encoder.get_submodule(family.blocks):
        hidden_states = block(hidden_states, *family.block_arguments)
        yield hidden_states


def side_by_side(features: list[torch.Tensor]) -> torch.Tensor:
    """(ΣV, max P_e, Σd): concatenated channels; shorter sequences are padded with zeros."""
    if len(features) == 1:
        return features[0]
    longest = max(feature.shape[1] for feature in features)
    padded = [nn.functional.pad(feature, (0, 0, 0, longest - feature.shape[1])) for feature in features]
    return torch.cat([feature.to(padded[0].device) for feature in padded], dim=-1)


@dataclass
class OmniFusionVisionOutput(ModelOutput):  # trf-ignore: TRF057
    features: list[torch.Tensor] | torch.Tensor | None = None  # the result of `projector`
    last_features: list[torch.Tensor] | None = None  # of each encoder, (ΣV, P_e, d_e)
    hidden_states: tuple[torch.Tensor] | None = None  # the first encoder's embeddings, then the blocks of all encoders
    attentions: tuple[torch.Tensor] | None = None  # of these blocks


class OmniFusionVisionModel(PreTrainedModel):  # trf-ignore: TRF057
    """1-N vision encoders over the same views. `feature_layers`: the hidden state in use of each, or "all";
    `keep_prefix`: whether CLS tokens stay before the patches (`vision_feature_select_strategy="full"`)."""

    config: OmniFusionVisionConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(
        self, config: OmniFusionVisionConfig, feature_layers: list[int] | Literal["all"], keep_prefix: bool = False
    ):
        super().__init__(config)
        # Left out before the patches of each encoder; counted once, not in each `forward`.
        self.prefixes = [0 if keep_prefix else outputs.prefix_tokens for outputs in config.encoder_outputs]
        self.every_layer = feature_layers == "all"
        # The topmost hidden state in use of each encoder.
        self.feature_layers = [-1] * len(config.encoder_configs) if self.every_layer else feature_layers
        self.encoders = nn.ModuleList(
            trim_encoder(build_encoder(encoder_config), layer)
            for encoder_config, layer in zip(config.encoder_configs, self.feature_layers)
        )
        # device_map must not split a block; post_init collects this from direct children, not through a ModuleList.
        self._no_split_modules = set().union(*(encoder._no_split_modules or () for encoder in self.encoders))
        self.post_init()

    def train(self, mode: bool = True) -> "OmniFusionVisionModel":
        """Frozen encoders stay in evaluation mode: they neither drop paths (Swin) nor adapt statistics (ResNet)."""
        super().train(mode)
        for encoder in self.encoders:
            encoder.train(mode and any(parameter.requires_grad for parameter in encoder.parameters()))
        return self

    def get_input_embeddings(self) -> nn.Module:
        return self.encoders[0].get_input_embeddings()

    @can_return_tuple
    def forward(  # trf-ignore: TRF057
        self, pixel_values: torch.Tensor, projector: Callable = list, **kwargs: Unpack[TransformersKwargs]
    ) -> OmniFusionVisionOutput:
        """pixel_values: (ΣV, 3, S, S), normalised for the first encoder; any float dtype.
        projector: gets the features (ΣV, P_e, d_e) one after another: one per encoder, or all layers of the first
            encoder, then of the next. It runs here, because layers are computed while it reads them and FSDP and
            ZeRO hold the encoders' weights only in this `forward`. By default features are listed."""
        given = {name: kwargs.get(name) for name in ("output_hidden_states", "output_attentions")}
        recorded = {name: getattr(self.config, name) if value is None else value for name, value in given.items()}
        hidden_states, attentions, last_features = [], [], {}

        def features() -> Iterator[torch.Tensor]:
            for index in range(len(self.encoders)):
                outputs, layers = self._encode(index, pixel_values, recorded)
                hidden_states.extend((outputs.get("hidden_states") or ())[min(index, 1) :])
                attentions.extend(outputs.get("attentions") or ())
                for states in layers:
                    last_features[index] = states[:, self.prefixes[index] :]  # (ΣV, P_e, d_e)
                    yield last_features[index]

        return OmniFusionVisionOutput(
            features=projector(features()),
            last_features=list(last_features.values()),
            hidden_states=tuple(hidden_states) or None,
            attentions=tuple(attentions) or None,
        )

    def _encode(self, index: int, pixel_values: torch.Tensor, recorded: dict) -> tuple[dict, Iterable[torch.Tensor]]:
        """Outputs of encoder `index`, empty if its layers are computed one by one, and its hidden states in use."""
        encoder = self.encoders[index]
        use_attention_that_takes_float32(encoder)
        views = self._views_for(index, pixel_values).to(encoder.dtype)
        # Reentrant checkpointing of trained blocks needs it; a compiled graph cannot have it.
        if encoder.training and not (views.requires_grad or torch.compiler.is_compiling()):
            views = views.detach().requires_grad_()
        can_stream = family_of(encoder.config).blocks is not None
        if self.every_layer and can_stream and not any(recorded.values()):
            return {}, each_layer(encoder, views)
        inputs = encoder_inputs(encoder, views) | recorded
        if self.every_layer or not can_stream:
            inputs["output_hidden_states"] = True
        outputs = encoder(**inputs, return_dict=True)
        if can_stream and not self.every_layer:
            return outputs, [outputs.last_hidden_state]
        layers, asked = as_sequences(encoder, outputs), recorded["output_hidden_states"]  # True, or indices
        kept = range(len(layers)) if asked is True else [i % len(layers) for i in asked or ()]
        reported = tuple(states if i in kept else None for i, states in enumerate(layers)) if asked else ()
        used = layers[1:] if self.every_layer else [layers[self.feature_layers[index]]]
        return outputs | {"hidden_states": reported}, used

    def _views_for(self, index: int, pixel_values: torch.Tensor) -> torch.Tensor:
        """The views at encoder `index`'s size and normalisation; float32 if these differ from the first one's."""
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


def trains_on_many_ranks() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def mean_and_std(normalization: dict, device: torch.device) -> list[torch.Tensor]:
    """`image_mean` and `image_std` of an image processor, each (1, 3, 1, 1)."""
    return [torch.tensor(normalization[key], device=device).view(1, 3, 1, 1) for key in ("image_mean", "image_std")]


__all__ = ["OmniFusionVisionModel"]

# Copyright 2026 The omnifusion_hf authors. All rights reserved.
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
# the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0 Unless required by
# applicable law or agreed to in writing, software distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied. See the License for the specific language
# governing permissions and limitations under the License.
"""What the configuration knows of vision encoders: what differs between families, and the shapes of hidden states.

Any vision model of transformers with hidden states on a grid can be an encoder. A family with `blocks` is trimmed to
the layer in use and yields its layers one by one; the others run as they are and report their hidden states.
"""

import inspect
import json
import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from transformers import AutoConfig, AutoModel, image_utils
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel


@dataclass(frozen=True)
class EncoderFamily:
    """What differs between the families of vision models.

    normalization: the published one, the default of `image_normalizations`.
    feature_layer: the default of `vision_feature_layer` (paper, encoder table).
    prefix_tokens: before the patches (CLS), dropped by `vision_feature_select_strategy="default"`; None: counted.
    blocks: the path of its blocks, if they can be called one by one.
    after_blocks: the names of modules after them, which are not used.
    block_arguments: of a block's `forward`, after the hidden states.
    """

    normalization: dict[str, list[float]]
    feature_layer: int = -2
    prefix_tokens: int | None = None
    blocks: str | None = None
    after_blocks: tuple[str, ...] = ()
    block_arguments: tuple = ()


CLIP = {"image_mean": image_utils.OPENAI_CLIP_MEAN, "image_std": image_utils.OPENAI_CLIP_STD}
HALF = {"image_mean": image_utils.IMAGENET_STANDARD_MEAN, "image_std": image_utils.IMAGENET_STANDARD_STD}
IMAGENET = {"image_mean": image_utils.IMAGENET_DEFAULT_MEAN, "image_std": image_utils.IMAGENET_DEFAULT_STD}
ENCODER_FAMILIES = {
    "clip_vision_model": EncoderFamily(CLIP, -2, 1, "encoder.layers", ("post_layernorm",), (None,)),
    "siglip_vision_model": EncoderFamily(HALF, -2, 0, "encoder.layers", ("post_layernorm", "head"), (None,)),
    "dinov2": EncoderFamily(IMAGENET, -2, 1, "encoder.layer", ("layernorm",)),
    "internvl_vision": EncoderFamily(IMAGENET, -1, 1, "encoder.layer", ("layernorm",)),
    "donut-swin": EncoderFamily(HALF, -1, 0, "encoder.layers", ("pooler",)),
    "siglip2_vision_model": EncoderFamily(HALF, prefix_tokens=0),
    "aimv2_vision_model": EncoderFamily(CLIP),
    "mlcd_vision_model": EncoderFamily(CLIP),
    "vit": EncoderFamily(HALF),
    "beit": EncoderFamily(HALF),
}
ENCODER_FAMILIES |= dict.fromkeys(("dinov2_with_registers", "dinov3_vit", "ijepa", "deit"), EncoderFamily(IMAGENET))
GRIDS = ("dinov3_convnext", "convnext", "convnextv2", "swin", "swinv2", "hiera", "resnet", "timm_wrapper")
ENCODER_FAMILIES |= dict.fromkeys(GRIDS, EncoderFamily(IMAGENET, -1))


def register_encoder(model_type: str, normalization: dict[str, list[float]], feature_layer: int = -2):
    """Adds a family: the defaults of its normalisation and of its layer in use. Its configuration and model classes
    are registered with `AutoConfig` and `AutoModel`, as for transformers."""
    ENCODER_FAMILIES[model_type] = EncoderFamily(normalization, feature_layer)


@dataclass(frozen=True)
class EncoderOutputs:
    """The hidden states of one view.

    num_patches, width: of the last one. num_layers: how many there are after that of the embeddings.
    is_pyramid: whether their shapes differ, so that only the last one can be used.
    has_embeddings: whether hidden state 0, the output of the embeddings, is reported.
    """

    prefix_tokens: int
    num_patches: int
    width: int
    num_layers: int
    is_pyramid: bool = False
    has_embeddings: bool = True


def side_of(size: int | list[int] | tuple[int, int], name: str) -> int:
    """The side of a square given as a number or as a pair of equal numbers."""
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) != 1:
        raise ValueError(f"{name} must be square, got {size}; set both sides to one number.")
    return sides.pop()


def own_size(config: PreTrainedConfig) -> int:
    """The side in pixels that an encoder was made for. Raises `ValueError` if its configuration does not tell."""
    if getattr(config, "image_size", None):
        return side_of(config.image_size, "image_size")
    if getattr(config, "num_patches", None):  # SigLIP 2 for any aspect
        return math.isqrt(config.num_patches) * config.patch_size
    if getattr(config, "pretrained_cfg", None):  # timm
        return side_of(config.pretrained_cfg["input_size"][1:], "input_size")
    raise ValueError(f"The configuration of `{config.model_type}` has no image size; set image_sizes.")


def encoder_outputs(config: PreTrainedConfig, size: int) -> EncoderOutputs:
    """What an encoder yields for a view of side `size`. Raises `ValueError` if it cannot be an encoder, or not so."""
    family = ENCODER_FAMILIES.get(config.model_type, EncoderFamily({}))
    if family.prefix_tokens is None:
        return outputs_on_meta(config.to_json_string(), size)
    side = size // side_of(config.patch_size, "patch_size")
    for _ in getattr(config, "depths", [None])[1:]:  # Swin halves its grid after every stage but the last
        side = (side + 1) // 2
    pyramid = hasattr(config, "depths")
    return EncoderOutputs(family.prefix_tokens, side**2, config.hidden_size, config.num_hidden_layers, pyramid)


@torch.compiler.assume_constant_result
@lru_cache
def outputs_on_meta(config_json: str, size: int) -> EncoderOutputs:
    """Runs the encoder without weights on the meta device, which computes shapes only."""
    config = AutoConfig.for_model(**json.loads(config_json))
    try:
        with torch.device("meta"), torch.no_grad():
            encoder = AutoModel.from_config(config).eval()
            states = hidden_states(encoder, torch.zeros(1, 3, size, size))
    except (AttributeError, TypeError, ValueError, RuntimeError, NotImplementedError, AssertionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"`{config.model_type}` gives no hidden states of a view of {size} px: {reason}") from None
    return outputs_of(config, states, size)


def outputs_of(config: PreTrainedConfig, states: list[torch.Tensor], size: int) -> EncoderOutputs:
    """From hidden states of one view, (1, tokens, d) or None each. Raises `ValueError` if patches are not a grid."""
    shapes = [tuple(state.shape[1:]) for state in states if state is not None]
    (tokens, width), is_pyramid = shapes[-1], len(set(shapes)) > 1
    patch = getattr(config, "patch_size", None)
    patches = tokens if is_pyramid or patch is None else (size // side_of(patch, "patch_size")) ** 2
    if tokens < patches or math.isqrt(patches) ** 2 != patches:
        raise ValueError(
            f"`{config.model_type}` gives {tokens} tokens for a view of {size} px, which are not a square grid of "
            f"patches ({patches} expected); use an encoder that keeps all of them."
        )
    return EncoderOutputs(tokens - patches, patches, width, len(states) - 1, is_pyramid, states[0] is not None)


def hidden_states(encoder: PreTrainedModel, views: torch.Tensor) -> list[torch.Tensor]:
    """Of views (V, 3, S, S): each hidden state of an encoder (V, tokens, d), by its public outputs."""
    return as_sequences(
        encoder, encoder(**encoder_inputs(encoder, views), output_hidden_states=True, return_dict=True)
    )


def as_sequences(encoder: PreTrainedModel, outputs) -> list[torch.Tensor | None]:
    """The hidden states of an encoder's outputs as (V, tokens, d); None in place of embeddings that it leaves out."""
    if not outputs.hidden_states:
        raise ValueError("it reports none (output_hidden_states=True)")
    states = [state.flatten(2).mT if state.dim() == 4 else state for state in outputs.hidden_states]
    return [None, *states] if encoder.config.model_type == "timm_wrapper" else states


def size_options(module: torch.nn.Module) -> dict[str, bool]:
    """The argument that lets an encoder, or its embeddings, run at another size than its own, if it has one."""
    takes_it = "interpolate_pos_encoding" in inspect.signature(module.forward).parameters
    return {"interpolate_pos_encoding": True} if takes_it else {}


def encoder_inputs(encoder: PreTrainedModel, views: torch.Tensor) -> dict[str, torch.Tensor | bool]:
    """The arguments of an encoder's `forward` for views (V, 3, S, S)."""
    if encoder.config.model_type != "siglip2_vision_model":
        return {"pixel_values": views} | size_options(encoder)
    patch = encoder.config.patch_size
    side = views.shape[-1] // patch
    patches = views.unflatten(3, (side, patch)).unflatten(2, (side, patch))  # (V, 3, side, patch, side, patch)
    patches = patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)  # (V, side², patch² · 3)
    mask = torch.ones(patches.shape[:2], dtype=torch.long, device=views.device)  # (V, side²)
    shapes = torch.full((len(views), 2), side, device=views.device)  # (V, 2)
    return {"pixel_values": patches, "pixel_attention_mask": mask, "spatial_shapes": shapes}


__all__ = ["ENCODER_FAMILIES", "register_encoder"]

# Copyright 2026 The omnifusion_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""What the configuration knows of vision encoders: what differs between families, and the shapes of hidden states.

Any vision model of transformers with hidden states on a grid can be one. A family with `blocks` is trimmed to the
layer in use and yields its layers one by one; the others run as they are and report their hidden states.
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
    """What differs between the families of vision models."""

    normalization: dict[str, list[float]]  # the published one, the default of `image_normalizations`
    feature_layer: int = -2  # the default of `vision_feature_layer` (paper, encoder table)
    prefix_tokens: int | None = None  # before the patches (CLS), dropped by "default"; None: counted
    blocks: str | None = None  # the path of its blocks, if they can be called one by one
    after_blocks: tuple[str, ...] = ()  # the names of modules after them, which are not used
    block_arguments: tuple = ()  # of a block's `forward`, after the hidden states


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


def family_of(config: PreTrainedConfig) -> EncoderFamily:
    return ENCODER_FAMILIES.get(config.model_type, EncoderFamily({}, -1))


@dataclass(frozen=True)
class EncoderOutputs:
    """The hidden states of one view."""

    prefix_tokens: int
    num_patches: int  # of the last one, as is its width
    width: int
    num_layers: int  # how many there are after that of the embeddings
    is_pyramid: bool = False  # their shapes differ, so that only the last one can be used
    has_embeddings: bool = True  # hidden state 0, the output of the embeddings, is reported


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
    prefix = family_of(config).prefix_tokens
    if prefix is None:
        return outputs_on_meta(config.to_json_string(), size)
    side = size // side_of(config.patch_size, "patch_size")
    for _ in getattr(config, "depths", [None])[1:]:  # Swin halves its grid after every stage but the last
        side = (side + 1) // 2
    return EncoderOutputs(prefix, side**2, config.hidden_size, config.num_hidden_layers, hasattr(config, "depths"))


@torch.compiler.assume_constant_result
@lru_cache
def outputs_on_meta(config_json: str, size: int) -> EncoderOutputs:
    """Runs the encoder without weights on the meta device. Raises `ValueError` if its patches are not a grid."""
    config = AutoConfig.for_model(**json.loads(config_json))
    try:
        with torch.device("meta"), torch.no_grad():
            encoder = AutoModel.from_config(config).eval()
            inputs = encoder_inputs(encoder, torch.zeros(1, 3, size, size))
            states = as_sequences(encoder, encoder(**inputs, output_hidden_states=True, return_dict=True))
    except (AttributeError, TypeError, ValueError, RuntimeError, NotImplementedError, AssertionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"`{config.model_type}` gives no hidden states of a view of {size} px: {reason}") from None
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

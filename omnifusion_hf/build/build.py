# Copyright 2026 The omnifusion_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""`omnifusion build`: pretrained parts, by preset name, Hub id or folder, to a folder that is ready to train."""

import math
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import torch
from jinja2 import TemplateError
from transformers import AutoConfig

from ..io import check_new, staged_folder
from ..model.configuration_omnifusion import OmniFusionVisionConfig
from ..model.encoder_families_omnifusion import encoder_outputs, family_of
from ..model.modeling_omnifusion import OmniFusionForConditionalGeneration
from ..model.modeling_omnifusion_projector import PROJECTORS
from ..model.processing_omnifusion import OmniFusionProcessor
from .assemble import assemble_vision_config
from .gguf import source_of
from .presets import ENCODERS, TEXTS, EncoderPreset


ADAPTER_FIELDS = {
    "heads": "projector_num_attention_heads",
    "intermediate_size": "projector_intermediate_size",
    "dropout": "projector_dropout",
    "queries": "projector_num_queries",
}
# What each adapter of this package reads; one that a user registered may read any.
ADAPTER_SETTINGS = {
    **dict.fromkeys(("mlp", "summation"), ()),
    **dict.fromkeys(("transformer", "concatenation"), ("heads", "intermediate_size", "dropout")),
    "attention": ("heads", "dropout", "queries"),
}


@dataclass
class Build:
    """The parts and settings; projector, views and image_fit as in OmniFusionConfig and OmniFusionImageProcessor.
    heads, intermediate_size, dropout and queries are its fields `projector_…` (`ADAPTER_FIELDS`).

    vision: per encoder a preset's name, `PRESET=FOLDER` (its settings, weights from that folder), a folder, a Hub id.
    text: a preset's name, a folder or a Hub id.
    image_sizes, layers: one per encoder; by default the presets', the encoders' own.
    image_fit: by default the first preset's, or `crop`.
    """

    vision: list[str]
    text: str
    projector: str = "mlp"
    heads: int | None = None
    intermediate_size: int | None = None
    dropout: float | None = None
    queries: int | None = None
    views: str = "whole"
    chat_template: str = "omnifusion"
    image_sizes: list[int] | None = None
    layers: list[int] | None = None
    image_fit: str | None = None
    dtype: str = "auto"


def build(plan: Build, folder: str | Path) -> tuple[OmniFusionForConditionalGeneration, OmniFusionProcessor]:
    """Writes the folder, whole or not at all; returns what it holds.

    Raises `ValueError` for a folder that exists, a missing part, one that must be converted first, and an invalid mix.
    """
    folder = Path(folder)
    check_new(folder)
    encoders, text = [resolve_encoder(given) for given in plan.vision], TEXTS.get(plan.text, plan.text)
    check_exists(text)
    fields = adapter_fields(plan) | config_fields(plan, encoders)
    parts = {"vision": [source for _, source in encoders], "text": text, "projector_type": plan.projector} | fields
    first = encoders[0][0]
    image_options = {
        "view_strategy": plan.views,
        "image_fit": plan.image_fit or (first.image_fit if first else "crop"),
    }
    processor = OmniFusionProcessor.from_vision_text_pretrained(
        **parts, chat_template=plan.chat_template, image_options=image_options
    )
    torch.manual_seed(0)
    model = OmniFusionForConditionalGeneration.from_vision_text_pretrained(**parts, dtype=plan.dtype)
    stop_where_answers_end(model, processor)
    if known := hub_ids(encoders, text):
        model.config.built_from = known  # the base models of the card, also of models that are trained from this one
    with staged_folder(folder, replace=False) as staged:
        model.save_pretrained(staged)
        processor.save_pretrained(staged)
    return model, processor


def resolve_encoder(given: str) -> tuple[EncoderPreset | None, str]:
    """The preset, if one is named, and the folder or Hub id of the weights."""
    name, _, source = given.partition("=")
    preset = ENCODERS.get(name)
    if source and preset is None:
        raise ValueError(f"`{name}` in {given} is not a preset; use one of {list(ENCODERS)}.")
    if preset is not None and preset.convert and not source:
        raise ValueError(
            f"{name} has weights of another layout, convert them once: `omnifusion convert {preset.convert} --source "
            f"{preset.hub_id} --output {name}`; then use --vision {name}={name}."
        )
    source = source or (preset.hub_id if preset else given)
    check_exists(source)
    return preset, source


def hub_ids(encoders: list[tuple[EncoderPreset | None, str]], text: str) -> list[str]:
    """The parts' Hub ids, that of a preset also for weights in a folder; other folders have none."""
    sources = [(preset.hub_id if preset else source) for preset, source in encoders]
    repositories = [source_of(source)[0] for source in (*sources, text)]
    return [repository for repository in repositories if not Path(repository).exists()]


def check_exists(source: str):
    """Raises `ValueError` for a part that neither a folder nor the Hub has."""
    folder, options = source_of(source)
    try:
        AutoConfig.from_pretrained(folder, **options)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"cannot load `{source}`: it is not a folder with a config.json that transformers knows, not a reachable "
            f"Hub id, and not a preset ({', '.join([*ENCODERS, *TEXTS])}). {reason[:90]}…"
        ) from None


def adapter_fields(plan: Build) -> dict:
    """The given settings of the adapter, as fields. Raises `ValueError` for one that this adapter does not read."""
    given = [name for name in ADAPTER_FIELDS if getattr(plan, name) is not None]
    known = ADAPTER_SETTINGS.get(plan.projector, ADAPTER_FIELDS)
    if unread := [name for name in given if name not in known]:
        options = [f"--{name.replace('_', '-')}" for name in (unread[0], *known)]
        has = f"it has {', '.join(options[1:])}" if known else "it has no settings"
        raise ValueError(f"the adapter {plan.projector} has no {options[0]}; {has}.")
    return {ADAPTER_FIELDS[name]: getattr(plan, name) for name in given}


def config_fields(plan: Build, encoders: list[tuple[EncoderPreset | None, str]]) -> dict:
    """The fields of the configuration that follow from presets and options. Raises `ValueError` for a wrong count."""
    for option, values in (("--image-size", plan.image_sizes), ("--layer", plan.layers)):
        if values and len(values) != len(encoders):
            raise ValueError(f"{option} is given {len(values)} times for {len(encoders)} encoders; give one for each.")
    vision = assemble_vision_config([source for _, source in encoders])
    for index, (preset, _) in enumerate(encoders):
        if preset is not None:
            preset.check(plan.vision[index].partition("=")[0], vision, index)
    presets = [preset for preset, _ in encoders]
    fields = {"image_sizes": plan.image_sizes or default_sizes(presets, vision)}
    reads_all_layers = plan.projector in PROJECTORS and PROJECTORS[plan.projector].reads_all_layers
    if plan.layers or not reads_all_layers:
        fields["vision_feature_layer"] = plan.layers or [
            preset.layer if preset else family_of(config).feature_layer
            for preset, config in zip(presets, vision.encoder_configs)
        ]
    return fields


def default_sizes(presets: list[EncoderPreset | None], vision: OmniFusionVisionConfig) -> list[int]:
    """Each encoder's own size; an encoder with `follows_grid` takes the size that gives the first one's tokens."""
    sizes = [preset.image_size if preset else size for preset, size in zip(presets, vision.image_sizes)]
    first = encoder_outputs(vision.encoder_configs[0], sizes[0]).num_patches
    for index, preset in enumerate(presets[1:], 1):
        if preset is not None and preset.follows_grid:
            sizes[index] = math.isqrt(first) * vision.encoder_configs[index].patch_size
    return sizes


def stop_where_answers_end(model: OmniFusionForConditionalGeneration, processor: OmniFusionProcessor):
    """Makes generation stop at the token that ends answers in the chat template, which need not be EOS in an LLM's own
    one. Raises `ValueError` for a template whose answers cannot be marked or have no end."""
    messages = [{"role": role, "content": [{"type": "text", "text": "A"}]} for role in ("user", "assistant")]
    try:
        inputs = processor.apply_chat_template(
            [messages], tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
    except TemplateError as error:
        raise ValueError(
            f"the LLM's own chat template refuses a question with its answer ({error}); "
            "use --chat-template omnifusion."
        ) from None
    special = {index for index, token in processor.tokenizer.added_tokens_decoder.items() if token.special}
    answer = [token for token, marked in zip(inputs["input_ids"][0], inputs["assistant_masks"][0]) if marked]
    end = takewhile(lambda token: token in special or not processor.decode([token]).strip(), reversed(answer))
    ends = [token for token in end if token in special]  # the last one first
    if not ends:
        raise ValueError(
            "the LLM's own chat template ends answers without a special token, or rewrites the prompt before them, so "
            "that nothing could be trained; use --chat-template omnifusion."
        )
    known = model.generation_config.eos_token_id
    model.generation_config.eos_token_id = list(dict.fromkeys([*known, ends[-1]]))

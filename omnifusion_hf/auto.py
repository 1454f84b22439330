# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""Registers the classes with transformers' Auto classes, when it is imported (see `omnifusion_hf/__init__.py`)."""

import transformers
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageTextToText, AutoProcessor

from .extensions import import_extensions
from .model.configuration_omnifusion import OmniFusionConfig, OmniFusionVisionConfig
from .model.image_processing_omnifusion import OmniFusionImageProcessor
from .model.modeling_omnifusion import OmniFusionForConditionalGeneration, OmniFusionModel
from .model.processing_omnifusion import OmniFusionProcessor


AutoModelForVision2Seq = AutoModelForImageTextToText  # its name in transformers 4


def register():
    """Makes the classes known by their model type and lets `save_pretrained` write a folder of remote code."""
    AutoConfig.register(OmniFusionConfig.model_type, OmniFusionConfig)
    AutoConfig.register(OmniFusionVisionConfig.model_type, OmniFusionVisionConfig)
    AutoModel.register(OmniFusionConfig, OmniFusionModel)
    AutoModelForImageTextToText.register(OmniFusionConfig, OmniFusionForConditionalGeneration)
    if hasattr(transformers, "AutoModelForMultimodalLM"):
        transformers.AutoModelForMultimodalLM.register(OmniFusionConfig, OmniFusionForConditionalGeneration)
    # One class under both names: without a torchvision class, transformers warns that it falls back to the other one.
    AutoImageProcessor.register(
        OmniFusionConfig,
        image_processor_classes={"pil": OmniFusionImageProcessor, "torchvision": OmniFusionImageProcessor},
    )
    AutoProcessor.register(OmniFusionConfig, OmniFusionProcessor)

    OmniFusionConfig.register_for_auto_class()
    OmniFusionModel.register_for_auto_class("AutoModel")
    OmniFusionForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")
    OmniFusionImageProcessor.register_for_auto_class("AutoImageProcessor")
    OmniFusionProcessor.register_for_auto_class("AutoProcessor")


register()
import_extensions()

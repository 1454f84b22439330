"""OmniFusion for Hugging Face Transformers. Importing this package registers its classes with the Auto classes."""

import transformers
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageTextToText, AutoProcessor

from .build.tokenization import add_special_tokens
from .model.configuration_omnifusion import OmniFusionConfig, OmniFusionVisionConfig
from .model.image_processing_omnifusion import OmniFusionImageProcessor
from .model.modeling_omnifusion import OmniFusionForConditionalGeneration, OmniFusionModel, OmniFusionPreTrainedModel
from .model.modeling_omnifusion_vision import OmniFusionVisionModel
from .model.processing_omnifusion import OmniFusionProcessor


__version__ = "0.1.0"

# transformers 5 gave the class of transformers 4 this name; both import from here.
AutoModelForVision2Seq = AutoModelForImageTextToText


def _register():
    """Makes the classes known by their model type and lets save_pretrained write a folder of remote code."""
    AutoConfig.register(OmniFusionConfig.model_type, OmniFusionConfig)
    AutoConfig.register(OmniFusionVisionConfig.model_type, OmniFusionVisionConfig)
    AutoModel.register(OmniFusionConfig, OmniFusionModel)
    AutoModelForImageTextToText.register(OmniFusionConfig, OmniFusionForConditionalGeneration)
    if hasattr(transformers, "AutoModelForMultimodalLM"):
        transformers.AutoModelForMultimodalLM.register(OmniFusionConfig, OmniFusionForConditionalGeneration)
    # One class under both names: asked for torchvision, transformers would warn of a fallback that is none.
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


_register()

__all__ = [
    "AutoModelForVision2Seq",
    "OmniFusionConfig",
    "OmniFusionForConditionalGeneration",
    "OmniFusionImageProcessor",
    "OmniFusionModel",
    "OmniFusionPreTrainedModel",
    "OmniFusionProcessor",
    "OmniFusionVisionConfig",
    "OmniFusionVisionModel",
    "add_special_tokens",
]

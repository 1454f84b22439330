"""The reference: transformers' own LLaVA in the same harness. Ours has to pass whatever it passes."""

from unittest import TestCase

import tiny
import transformers
from conformance.harness import ImageProcessorTester, ImageProcessorTests, ModelTester, ModelTests
from conformance.standins import register
from tests.test_processing_common import ProcessorTesterMixin


MODELS = (transformers.LlavaModel, transformers.LlavaForConditionalGeneration)
register("llava", *MODELS, transformers.LlavaProcessor, transformers.CLIPImageProcessor)


class LlavaModelTester(ModelTester):
    def get_config(self):
        parts = {"vision_config": tiny.encoder_config("clip"), "text_config": tiny.text_config("mistral")}
        parts["vision_config"].num_hidden_layers = 2
        parts |= {"image_token_id": tiny.tokenizer_with_special_tokens().image_token_id}
        return transformers.LlavaConfig(**parts, vision_feature_layer=-1, image_seq_length=16)

    def num_image_tokens(self, config):
        return 16


class ModelTest(ModelTests, TestCase):
    model_tester_class = LlavaModelTester
    all_model_classes = MODELS
    test_all_params_have_gradient = False  # nothing reads CLIP's post_layernorm

    def save_checkpoint(self, folder):
        transformers.LlavaForConditionalGeneration(self.model_tester.get_config()).save_pretrained(folder)
        sizes = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
        parts = transformers.CLIPImageProcessor(**sizes), tiny.tokenizer_with_special_tokens()
        fields = ProcessorTest.prepare_processor_dict() | {"patch_size": 8}
        transformers.LlavaProcessor(*parts, **fields).save_pretrained(folder)


class ProcessorTest(ProcessorTesterMixin, TestCase):
    processor_class = transformers.LlavaProcessor

    @classmethod
    def _setup_tokenizer(cls):
        return tiny.tokenizer_with_special_tokens()

    @classmethod
    def _setup_image_processor(cls):
        return transformers.CLIPImageProcessor()

    @staticmethod
    def prepare_processor_dict():
        fields = {"patch_size": 128, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
        return fields | {"chat_template": tiny.processor(tiny.config()).chat_template}


class LlavaImageProcessorTester(ImageProcessorTester):
    classes = {"torchvision": transformers.CLIPImageProcessor, "pil": transformers.CLIPImageProcessorPil}

    def __init__(self, parent):
        sizes = {"size": {"shortest_edge": 20}, "crop_size": {"height": 18, "width": 18}}
        super().__init__(parent, **sizes, image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.3, 0.25])


class ImageProcessorTest(ImageProcessorTests, TestCase):
    image_processor_tester_class = LlavaImageProcessorTester

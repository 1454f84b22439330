"""Our classes in the common tests' harness, in the set-up that the environment names (see run.py)."""

import os
from unittest import TestCase, mock

import tiny
import torch
from conformance.harness import ImageProcessorTester, ImageProcessorTests, ModelTester, ModelTests
from conformance.run import SETUPS
from conformance.standins import register
from tests.test_modeling_common import ids_tensor
from tests.test_processing_common import ProcessorTesterMixin
from transformers import PreTrainedModel
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING

import omnifusion_hf as ours
from tests import test_modeling_common


MODELS = (ours.OmniFusionModel, ours.OmniFusionForConditionalGeneration)
register("omnifusion", *MODELS, ours.OmniFusionProcessor, ours.OmniFusionImageProcessor)
SETUP = os.environ["OMNIFUSION_SETUP"]
IMAGE_OPTIONS, NUM_VIEWS = ({"view_strategy": "grid"}, 3) if SETUP.endswith("grid") else ({}, 1)


def text_ids(shape, vocab_size=None, **kwargs):
    """Random ids without `<image>`, which our models refuse where no image is passed."""
    return ids_tensor(shape, tiny.config().image_token_id, **kwargs)


class OmniFusionModelTester(ModelTester):
    num_views = NUM_VIEWS

    def get_config(self):
        return tiny.config(**SETUPS[SETUP])

    def num_image_tokens(self, config):
        return self.num_views * config.image_seq_length

    def prepare_config_and_inputs_for_common(self):
        config, inputs = super().prepare_config_and_inputs_for_common()
        if ".test_eager_matches_sdpa_inference_" in self.parent.id():  # these pass on `input_ids` alone
            ids = text_ids(inputs["input_ids"].shape)
            return config, {"input_ids": ids, "attention_mask": inputs["attention_mask"]}
        return config, inputs | {"image_view_index": torch.arange(self.num_views).repeat(self.batch_size)}


class ModelTest(ModelTests, TestCase):
    model_tester_class = OmniFusionModelTester
    all_model_classes = MODELS

    def setUp(self):
        super().setUp()
        random_ids = mock.patch.object(test_modeling_common, "ids_tensor", text_ids)
        random_ids.start()
        self.addCleanup(random_ids.stop)

    def save_checkpoint(self, folder):
        config = self.model_tester.get_config()
        tiny.model(config).save_pretrained(folder)
        tiny.processor(config, **IMAGE_OPTIONS).save_pretrained(folder)

    def _image_features_get_expected_num_attentions(self, model_tester=None):
        config = self.model_tester.get_config()
        blocks = 3 if config.vision_feature_layer == "all" else 2  # of 3, layer -2 needs 2
        return blocks * len(config.vision_config.encoder_configs)

    def test_can_init_all_missing_weights(self):
        # transformers initialises custom code, which is any class outside its tree, in a way that leaves the parts
        # with a generic initialisation; here as if inside the tree.
        with mock.patch.object(PreTrainedModel, "is_custom_code", classmethod(lambda cls: False)):
            super().test_can_init_all_missing_weights()


class ProcessorTest(ProcessorTesterMixin, TestCase):
    processor_class = ours.OmniFusionProcessor

    @classmethod
    def _setup_tokenizer(cls):
        return tiny.tokenizer_with_special_tokens()

    @classmethod
    def _setup_image_processor(cls):
        return ours.OmniFusionImageProcessor(size={"height": 32, "width": 32}, **IMAGE_OPTIONS)

    def _test_apply_chat_template(self, modality, *args):
        if modality == "image" and NUM_VIEWS > 1:
            self.skipTest("The test counts one row of pixel_values per image; the grid gives one per view")
        super()._test_apply_chat_template(modality, *args)

    def test_apply_chat_template_tool_calls_no_content(self):
        # The test looks for "tool" in the template, which names tools to refuse them: nothing of a call may vanish.
        with self.assertRaisesRegex(ValueError, "message 1 .assistant. has the content None"):
            super().test_apply_chat_template_tool_calls_no_content()

    @staticmethod
    def prepare_processor_dict():
        return {"image_seq_length": 4, "chat_template": tiny.processor(tiny.config()).chat_template}


class OmniFusionImageProcessorTester(ImageProcessorTester):
    classes = IMAGE_PROCESSOR_MAPPING[ours.OmniFusionConfig]

    def __init__(self, parent):
        mean, std = [0.4, 0.5, 0.6], [0.2, 0.3, 0.25]
        super().__init__(parent, size={"height": 18, "width": 18}, image_mean=mean, image_std=std)


class ImageProcessorTest(ImageProcessorTests, TestCase):
    image_processor_tester_class = OmniFusionImageProcessorTester


if SETUP not in ("clip_mlp_mistral", "clip_dinov2_grid"):
    del ProcessorTest
if SETUP != "clip_mlp_mistral":
    del ImageProcessorTest

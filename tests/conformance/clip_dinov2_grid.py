"""Set-up 3: CLIP of 32 pixels beside a DINOv2 of 48 run at 32, the grid's several views per image, Mistral."""

from unittest import TestCase

from conformance import omnifusion as base


class ModelTester(base.OmniFusionModelTester):
    parts = {"encoders": ("clip", "dinov2"), "encoder_sizes": (32, 48), "image_sizes": [32, 32]}
    num_views = 3


class ModelTest(base.OmniFusionModelTests, TestCase):
    model_tester_class = ModelTester
    image_options = {"view_strategy": "grid"}


class ProcessorTest(base.OmniFusionProcessorTests, TestCase):
    image_options = {"view_strategy": "grid"}

    def _test_apply_chat_template(self, modality, *args):
        if modality == "image":
            self.skipTest("The test counts one row of pixel_values per image; the grid gives one per view")
        super()._test_apply_chat_template(modality, *args)

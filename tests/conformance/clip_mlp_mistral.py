"""Set-up 1: CLIP, the mlp adapter, Mistral; with the processor and the image processor."""

from unittest import TestCase

from conformance import omnifusion as base


class ModelTester(base.OmniFusionModelTester):
    parts = {"encoders": ("clip",), "projector_type": "mlp", "text": "mistral"}


class ModelTest(base.OmniFusionModelTests, TestCase):
    model_tester_class = ModelTester


class ProcessorTest(base.OmniFusionProcessorTests, TestCase):
    pass


class ImageProcessorTest(base.OmniFusionImageProcessorTests, TestCase):
    pass

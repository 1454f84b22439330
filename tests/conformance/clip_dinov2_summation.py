"""Set-up 4: the summation adapter over all layers of a CLIP and of a DINOv2 with more tokens, Mistral."""

from unittest import TestCase

from conformance import omnifusion as base


class ModelTester(base.OmniFusionModelTester):
    parts = {"encoders": ("clip", "dinov2"), "encoder_sizes": (32, 48), "projector_type": "summation"}


class ModelTest(base.OmniFusionModelTests, TestCase):
    model_tester_class = ModelTester

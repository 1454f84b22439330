"""Set-up 2: SigLIP, the transformer adapter, Llama."""

from unittest import TestCase

from conformance import omnifusion as base


class ModelTester(base.OmniFusionModelTester):
    parts = {"encoders": ("siglip",), "projector_type": "transformer", "text": "llama"}


class ModelTest(base.OmniFusionModelTests, TestCase):
    model_tester_class = ModelTester

"""Set-up 5: the attention adapter's 20 queries over all layers of a SigLIP and an InternViT, Llama."""

from unittest import TestCase

from conformance import omnifusion as base


class ModelTester(base.OmniFusionModelTester):
    parts = {
        "encoders": ("siglip", "internvl"),
        "projector_type": "attention",
        "projector_num_queries": 20,
        "text": "llama",
    }


class ModelTest(base.OmniFusionModelTests, TestCase):
    model_tester_class = ModelTester

"""Bugs planted on purpose, each with a test that has to turn red: shows that the harness can fail.

`python -m conformance.planted` prints, as JSON, per bug whether its test is green without the bug and red with it.
"""

import functools
import json
import unittest
from contextlib import nullcontext
from unittest import mock

from conformance import omnifusion as setup

import omnifusion_hf as ours


def patch(cls, method: str, bug):
    """Replaces a method by `bug(original, self, *args, **kwargs)`."""
    original = getattr(cls, method)

    @functools.wraps(original)  # tests read signatures
    def with_bug(self, *args, **kwargs):
        return bug(original, self, *args, **kwargs)

    return mock.patch.object(cls, method, with_bug)


def one_token_too_many(old, *args, **kwargs):
    return old(*args, **kwargs) + "<image>"


def loss_options_dropped(old, self, *args, shift_labels=None, **kwargs):
    return old(self, *args, **kwargs)


def hidden_states_dropped(old, *args, **kwargs):
    outputs = old(*args, **kwargs)
    outputs.hidden_states = None
    return outputs


ADAPTER = ["multi_modal_projector.linear_1.weight", "model.multi_modal_projector.linear_1.weight"]
GENERATOR = ours.OmniFusionForConditionalGeneration
BUGS = {  # by the test that sees it
    "test_pipeline_image_text_to_text": patch(ours.OmniFusionProcessor, "replace_image_token", one_token_too_many),
    "test_causal_lm_loss_honors_shift_labels": patch(GENERATOR, "forward", loss_options_dropped),
    "test_save_load": mock.patch.object(ours.OmniFusionPreTrainedModel, "_keys_to_ignore_on_save", ADAPTER),
    "test_get_image_features_hidden_states": patch(ours.OmniFusionModel, "get_image_features", hidden_states_dropped),
}


def outcome(name: str, bug) -> str:
    result = unittest.TestResult()
    with bug:
        unittest.TestSuite([setup.ModelTest(name)]).run(result)
    if result.skipped:
        return "skipped"
    return "passed" if result.wasSuccessful() else "failed"


if __name__ == "__main__":
    print(json.dumps({name: [outcome(name, nullcontext()), outcome(name, bug)] for name, bug in BUGS.items()}))

"""Bugs planted on purpose, each with a test that has to turn red: shows that the harness can fail.

`python -m conformance.planted` prints, as JSON, per bug whether its test is green without the bug and red with it.
"""

import functools
import json
import unittest
from contextlib import nullcontext
from unittest import mock

from conformance import omnifusion as setup

import omnifusion_hf


def patch(cls, method: str, bug):
    """Replaces a method by `bug(original, self, *args, **kwargs)`."""
    original = getattr(cls, method)

    @functools.wraps(original)  # tests read signatures
    def with_bug(self, *args, **kwargs):
        return bug(original, self, *args, **kwargs)

    return mock.patch.object(cls, method, with_bug)


def option_set(cls, method: str, **option):
    """A method that overrides an option."""
    return patch(cls, method, lambda old, *args, **kwargs: old(*args, **kwargs | option))


def attention_mask_dropped():
    return option_set(omnifusion_hf.OmniFusionModel, "forward", attention_mask=None)


def token_count_unchecked():
    def bug(old, self, input_ids, *args):
        return (input_ids == self.config.image_token_id).unsqueeze(-1)

    return patch(omnifusion_hf.OmniFusionModel, "get_placeholder_mask", bug)


def one_image_token_too_many():
    cls = omnifusion_hf.OmniFusionProcessor
    return patch(cls, "replace_image_token", lambda old, *args, **kwargs: old(*args, **kwargs) + "<image>")


def normalisation_dropped():
    return option_set(omnifusion_hf.OmniFusionImageProcessor, "_preprocess", do_normalize=False)


def loss_options_dropped():
    def bug(old, self, *args, shift_labels=None, **kwargs):
        return old(self, *args, **kwargs)

    return patch(omnifusion_hf.OmniFusionForConditionalGeneration, "forward", bug)


def adapter_not_saved():
    names = ["multi_modal_projector.linear_1.weight", "model.multi_modal_projector.linear_1.weight"]
    return mock.patch.object(omnifusion_hf.OmniFusionPreTrainedModel, "_keys_to_ignore_on_save", names)


def hidden_states_dropped():
    def bug(old, *args, **kwargs):
        outputs = old(*args, **kwargs)
        outputs.hidden_states = None
        return outputs

    return patch(omnifusion_hf.OmniFusionModel, "get_image_features", bug)


BUGS = {
    attention_mask_dropped: (setup.ModelTest, "test_masked_tokens_change_nothing"),
    token_count_unchecked: (setup.ModelTest, "test_mismatching_num_image_tokens"),
    one_image_token_too_many: (setup.ModelTest, "test_pipeline_image_text_to_text"),
    normalisation_dropped: (setup.ImageProcessorTest, "test_normalisation"),
    loss_options_dropped: (setup.ModelTest, "test_causal_lm_loss_honors_shift_labels"),
    adapter_not_saved: (setup.ModelTest, "test_save_load"),
    hidden_states_dropped: (setup.ModelTest, "test_get_image_features_hidden_states"),
}


def outcome(cls, name: str, bug) -> str:
    result = unittest.TestResult()
    with bug:
        unittest.TestSuite([cls(name)]).run(result)
    if result.skipped:
        return "skipped"
    return "passed" if result.wasSuccessful() else "failed"


if __name__ == "__main__":
    print(json.dumps({b.__name__: [outcome(*test, nullcontext()), outcome(*test, b())] for b, test in BUGS.items()}))

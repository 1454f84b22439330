"""The common tests as base classes for set-ups."""

from conformance import standins  # isort: skip; makes `tests.…` importable
import torch
from tests.test_configuration_common import ConfigTester
from tests.test_image_processing_common import ImageProcessingTester, ImageProcessingTestMixin
from tests.test_modeling_common import GenerationTesterMixin, ModelTesterMixin, floats_tensor, ids_tensor
from tests.test_pipeline_mixin import PipelineTesterMixin
from tests.test_training_mixin import TrainingTesterMixin


class ModelTester:
    """What the common tests ask of a model: a tiny configuration and inputs with the right number of placeholders.

    Subclasses define `get_config()` and `num_image_tokens(config)`, the placeholders of one sample.
    """

    is_training = True
    batch_size = 3
    num_views = 1
    num_hidden_layers = 2
    num_attention_heads = 4
    hidden_size = 32

    def __init__(self, parent):
        self.parent = parent

    def image_size(self, config) -> int:
        return config.vision_config.image_size

    @property
    def seq_length(self) -> int:
        return self.num_image_tokens(self.get_config()) + 7

    def prepare_config_and_inputs_for_common(self):
        """Images first, then text; sample i is padded on the right by i tokens."""
        config = self.get_config()
        input_ids = ids_tensor([self.batch_size, self.seq_length], 90) + 3  # text only, no end of sequence
        input_ids[:, : self.num_image_tokens(config)] = config.image_token_id
        attention_mask = torch.ones_like(input_ids)
        for sample in range(self.batch_size):
            attention_mask[sample, self.seq_length - sample :] = 0
        side = self.image_size(config)
        pixel_values = floats_tensor([self.batch_size * self.num_views, 3, side, side])
        return config, {"input_ids": input_ids, "attention_mask": attention_mask, "pixel_values": pixel_values}


class ModelTests(ModelTesterMixin, GenerationTesterMixin, PipelineTesterMixin, TrainingTesterMixin):
    """Subclasses name `model_tester_class` and `all_model_classes` = (base, generation), and define
    `save_checkpoint(folder)`, which saves a generation model and the processor that works with it."""

    model_tester = None  # abstract in the training mixin
    _is_composite = True

    def setUp(self):
        self.model_tester = self.model_tester_class(self)
        config_class = self.all_model_classes[0].config_class
        self.config_tester = ConfigTester(self, config_class=config_class, has_text_modality=False)
        self.pipeline_model_mapping = dict.fromkeys(("image-text-to-text", "any-to-any"), self.all_model_classes[1])

    def run_task_tests(self, task, dtype="float32"):
        model_class = self.all_model_classes[1]
        folder = standins.CHECKPOINTS / model_class.config_class.model_type / model_class.__name__
        if not folder.exists():
            self.save_checkpoint(folder)
        super().run_task_tests(task, dtype=dtype)

    def _get_trainable_model_class(self):
        return self.all_model_classes[1]

    def test_config(self):
        self.config_tester.run_common_tests()

    def test_training_overfit(self):
        get_config = self.model_tester.get_config

        def with_vocab_size():  # the test reads it off the outer configuration
            config = get_config()
            config.vocab_size = config.get_text_config().vocab_size
            return config

        self.model_tester.get_config = with_vocab_size
        super().test_training_overfit()


class ImageProcessorTester(ImageProcessingTester):
    """Subclasses set `classes` (backend to class) and options other than the defaults, so that a dropped one shows."""

    classes = {}

    def _get_image_processing_classes(self):
        return dict(self.classes)


class ImageProcessorTests(ImageProcessingTestMixin):
    """Subclasses name `image_processor_tester_class`."""

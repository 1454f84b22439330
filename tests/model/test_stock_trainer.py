"""Evaluation by transformers' own Trainer: batches with and without images, losses and predictions as by hand."""

import conversations
import numpy as np
import pytest
import tiny
import torch
from transformers import Trainer, TrainingArguments

from omnifusion_hf.training.collators import PaddingCollator
from omnifusion_hf.training.preprocessing import ConversationEncoder


@pytest.fixture
def trainer(processor, tmp_path) -> Trainer:
    """Of a model of its own, with three samples in two batches: one image, none, two images."""
    encode, collate = ConversationEncoder(processor), PaddingCollator(processor.tokenizer.pad_token_id)
    samples = [encode(sample) for sample in (conversations.ONE, conversations.NONE, conversations.TWO)]
    options = {"per_device_eval_batch_size": 2, "remove_unused_columns": False, "report_to": "none", "use_cpu": True}
    settings = TrainingArguments(str(tmp_path), **options)
    return Trainer(tiny.model(), settings, data_collator=collate, eval_dataset=samples)


def test_predictions_are_the_logits_of_every_sample_and_the_loss_is_theirs(trainer):
    found = trainer.predict(trainer.eval_dataset)
    with torch.no_grad():
        alone = [trainer.model(**trainer.data_collator([sample])) for sample in trainer.eval_dataset]
    assert isinstance(found.predictions, np.ndarray)
    assert not np.allclose(found.predictions[0], found.predictions[1], atol=1e-4)  # control: samples differ
    for row, labels, sample, expected in zip(found.predictions, found.label_ids, trainer.eval_dataset, alone):
        length = len(sample["input_ids"])
        np.testing.assert_allclose(row[:length], expected.logits[0].numpy(), atol=1e-4)
        assert labels[:length].tolist() == sample["labels"]
    losses = [output.loss.item() for output in alone]
    assert min(losses) < found.metrics["test_loss"] < max(losses)


def test_control_other_outputs_would_be_collected_as_well(trainer):
    trainer.model.config.keys_to_ignore_at_inference = []
    with pytest.raises((AttributeError, TypeError, ValueError, RuntimeError, AssertionError)):
        assert isinstance(trainer.predict(trainer.eval_dataset).predictions, np.ndarray)

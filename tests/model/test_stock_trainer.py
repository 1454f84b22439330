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


def by_hand(trainer: Trainer) -> list:
    """Outputs for each sample alone."""
    with torch.no_grad():
        return [trainer.model(**trainer.data_collator([sample])) for sample in trainer.eval_dataset]


def test_predictions_are_the_logits_of_every_sample_and_the_loss_is_theirs(trainer):
    found, alone = trainer.predict(trainer.eval_dataset), by_hand(trainer)
    assert isinstance(found.predictions, np.ndarray)
    assert not np.allclose(found.predictions[0], found.predictions[1], atol=1e-4)  # control: samples differ
    for row, labels, sample, expected in zip(found.predictions, found.label_ids, trainer.eval_dataset, alone):
        length = len(sample["input_ids"])
        np.testing.assert_allclose(row[:length], expected.logits[0].numpy(), atol=1e-4)
        assert labels[:length].tolist() == sample["labels"]
    losses = [output.loss.item() for output in alone]
    assert min(losses) < found.metrics["test_loss"] < max(losses)


def test_metrics_are_computed_from_the_logits_and_labels_of_mixed_batches(trainer):
    def accuracy(predicted) -> dict:
        guesses, labels = predicted.predictions.argmax(-1)[:, :-1], predicted.label_ids[:, 1:]
        return {"accuracy": float((guesses == labels)[labels != -100].mean())}

    trainer.compute_metrics = accuracy
    expected = accuracy(trainer.predict(trainer.eval_dataset))
    assert trainer.evaluate()["eval_accuracy"] == expected["accuracy"]
    trainer.eval_dataset = trainer.eval_dataset[:1]  # control: another set, another figure
    [alone], labels = by_hand(trainer), torch.tensor(trainer.eval_dataset[0]["labels"])[1:]
    right = (alone.logits[0, :-1].argmax(-1) == labels)[labels != -100].float().mean().item()
    assert trainer.evaluate()["eval_accuracy"] == pytest.approx(right)


def test_control_other_outputs_would_be_collected_as_well(trainer):
    trainer.model.config.keys_to_ignore_at_inference = []
    with pytest.raises((AttributeError, TypeError, ValueError, RuntimeError, AssertionError)):
        assert isinstance(trainer.predict(trainer.eval_dataset).predictions, np.ndarray)

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
def trainer_of(processor, tmp_path):
    """Of a model of its own, with three samples in two batches: one image, none, two images."""

    def make(**options) -> Trainer:
        encode = ConversationEncoder(processor)
        samples = [encode(sample) for sample in (conversations.ONE, conversations.NONE, conversations.TWO)]
        settings = TrainingArguments(
            str(tmp_path), per_device_eval_batch_size=2, remove_unused_columns=False, report_to="none", use_cpu=True
        )
        collate = PaddingCollator(processor.tokenizer.pad_token_id)
        return Trainer(tiny.model(), settings, data_collator=collate, eval_dataset=samples, **options)

    return make


def by_hand(trainer: Trainer) -> list:
    """Outputs for each sample alone."""
    with torch.no_grad():
        return [trainer.model(**trainer.data_collator([sample])) for sample in trainer.eval_dataset]


def test_predictions_are_the_logits_of_every_sample(trainer_of):
    trainer = trainer_of()
    found = trainer.predict(trainer.eval_dataset)
    assert isinstance(found.predictions, np.ndarray)
    first, second = found.predictions[0], found.predictions[1]
    assert not np.allclose(first, second, atol=1e-4)  # control: samples differ
    for row, sample, alone in zip(found.predictions, trainer.eval_dataset, by_hand(trainer)):
        length = len(sample["input_ids"])
        np.testing.assert_allclose(row[:length], alone.logits[0].numpy(), atol=1e-4)


def test_metrics_are_computed_from_logits_and_labels(trainer_of):
    def accuracy(predicted) -> dict:
        guesses, labels = predicted.predictions.argmax(-1)[:, :-1], predicted.label_ids[:, 1:]
        return {"accuracy": float((guesses == labels)[labels != -100].mean())}

    trainer = trainer_of(compute_metrics=accuracy)
    metrics = trainer.evaluate()
    right, total, losses = 0, 0, []
    for sample, alone in zip(trainer.eval_dataset, by_hand(trainer)):
        labels = torch.tensor(sample["labels"])[1:]
        right += (alone.logits[0, :-1].argmax(-1) == labels)[labels != -100].sum().item()
        total += (labels != -100).sum().item()
        losses.append(alone.loss.item())
    assert metrics["eval_accuracy"] == pytest.approx(right / total)
    assert min(losses) < metrics["eval_loss"] < max(losses)


def test_control_other_outputs_would_be_collected_as_well(trainer_of):
    trainer = trainer_of()
    trainer.model.config.keys_to_ignore_at_inference = []
    with pytest.raises((AttributeError, TypeError, ValueError, RuntimeError, AssertionError)):
        assert isinstance(trainer.predict(trainer.eval_dataset).predictions, np.ndarray)

# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""Changes of the views that nobody can see, found by gradient: PGD (Madry et al. 2018) against the true answer.

Views are changed as colours in 0..1, after resizing and before the encoders, by at most epsilon per value. Encoders of
another size or normalisation derive their input from the same views, so all encoders are attacked together.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from transformers.feature_extraction_utils import BatchFeature

from ...model.modeling_omnifusion_vision import mean_and_std
from ..questions import Question


@dataclass(frozen=True)
class Attack:
    """epsilon: the largest change of a value (L-infinity), in levels of 0..255.
    steps: number of gradients; step: change per gradient, in the same levels, by default 2.5 epsilon / steps.
    seed: of the random start."""

    epsilon: float
    steps: int = 10
    step: float | None = None
    seed: int = 0

    def __post_init__(self):
        if not 0 <= self.epsilon <= 255 or self.steps < 1:
            raise ValueError(f"epsilon must lie in 0..255 and steps in 1 or more, got {self.epsilon}, {self.steps}.")

    @property
    def bound(self) -> float:
        return self.epsilon / 255

    @property
    def stride(self) -> float:
        return 2.5 * self.bound / self.steps if self.step is None else self.step / 255

    def draw(self, views: torch.Tensor) -> torch.Tensor:
        """Uniform in -1..1, (1, 3, S, S): equal for all views, so that a question's start does not depend on its
        batch."""
        generator = torch.Generator().manual_seed(self.seed)
        return (2 * torch.rand(1, *views.shape[1:], generator=generator) - 1).to(views.device)


class NormalizedPixels:
    """The model's `pixel_values` (ΣV, 3, S, S) and their colours in 0..1."""

    def __init__(self, model, pixel_values: torch.Tensor):
        mean, self.std = mean_and_std(model.config.vision_config.image_normalizations[0], pixel_values.device)
        self.pixel_values = pixel_values
        self.colours = (pixel_values * self.std + mean).clamp(0, 1)

    def allowed(self, change: torch.Tensor, bound: float) -> torch.Tensor:
        """The nearest change within the bound that leaves colours in 0..1."""
        return (self.colours + change.clamp(-bound, bound)).clamp(0, 1) - self.colours

    def changed(self, change: torch.Tensor) -> torch.Tensor:
        return self.pixel_values + change / self.std  # bit-identical for a change of 0


@contextmanager
def frozen(model) -> Iterator[None]:
    """No weight requires a gradient inside, which saves the activations that weight gradients need."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def pgd(model, batch: BatchFeature, attack: Attack) -> torch.Tensor:
    """`pixel_values` of a batch, changed in steps that make its `labels` unlikely."""
    views = NormalizedPixels(model, batch["pixel_values"])
    rest = {name: value for name, value in batch.items() if name != "pixel_values"}
    change = views.allowed(attack.draw(views.colours) * attack.bound, attack.bound)
    for _ in range(attack.steps):
        change.requires_grad_(True)
        with torch.enable_grad(), frozen(model):
            loss = model(pixel_values=views.changed(change), **rest).loss
        (gradient,) = torch.autograd.grad(loss, change)
        change = views.allowed(change.detach() + attack.stride * gradient.sign(), attack.bound)
    return views.changed(change)


def random_signs(model, batch: BatchFeature, attack: Attack) -> torch.Tensor:
    """The control: every value moves by epsilon, up or down at random."""
    views = NormalizedPixels(model, batch["pixel_values"])
    return views.changed(views.allowed(attack.draw(views.colours).sign() * attack.bound, attack.bound))


def with_labels(processor, conversations: list[list[dict]], questions: list[Question]) -> BatchFeature:
    """A batch of the chats with their true answers; `labels` are the tokens of these answers, -100 elsewhere.

    Raises `ValueError` for a chat template that does not mark answers.
    """
    truths = [{"role": "assistant", "content": [{"type": "text", "text": question.truth}]} for question in questions]
    batch = processor.apply_chat_template(
        [[*messages, truth] for messages, truth in zip(conversations, truths)],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        return_assistant_tokens_mask=True,
        processor_kwargs={"padding": True, "regions": [question.regions for question in questions]},
    )
    answered = last_run(torch.as_tensor(batch.pop("assistant_masks")))
    if not answered.any(-1).all():
        raise ValueError(
            "the chat template marks no answer; PGD needs {% generation %} … {% endgeneration %} around each: build "
            "the model with --chat-template omnifusion, or leave pgd out."
        )
    return BatchFeature(batch | {"labels": batch["input_ids"].masked_fill(~answered, -100)})


def last_run(mask: torch.Tensor) -> torch.Tensor:
    """The last run of ones in each row of a mask (B, L): the answer of the last turn."""
    starts = mask.diff(dim=-1, prepend=torch.zeros_like(mask[:, :1])) == 1
    number = starts.cumsum(-1)
    return mask.bool() & (number == number[:, -1:])

# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""OmniFusion's Trainer. The model also trains with the stock Trainer, TRL and PEFT; this adds what recipes need."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler
from transformers import PreTrainedModel, Trainer, TrainerCallback

from ..model.processing_omnifusion import OmniFusionProcessor
from .arguments import ModelDataArguments, OmniFusionTrainingArguments
from .callbacks import SpeedCallback, outlive_sigterm
from .collators import PaddingCollator, packing_collator
from .optimizer import MuonWithAdamW, check_optimizer, optimizer_by_part
from .validation import Validation


class OmniFusionTrainer(Trainer):
    """Trains a stage on encoded samples: packed or grouped by length, with learning rates of single parts or Muon.

    It adds the figures of [`SpeedCallback`] to every log line with a loss.

    Args:
        model: prepared by `apply_stage`.
        args: the recipe's TrainingArguments.
        recipe: the other fields of the recipe.
        train_dataset: encoded samples, see preprocessing.py and feature_cache.py.
        processor: saved next to every checkpoint.
        callbacks: further ones.
        validation: what `evaluate()` measures.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: OmniFusionTrainingArguments,
        recipe: ModelDataArguments,
        train_dataset: Dataset | IterableDataset,
        processor: OmniFusionProcessor,
        callbacks: Sequence[TrainerCallback] = (),
        validation: Validation | None = None,
    ):
        self.recipe, self.speed, self.validation = recipe, SpeedCallback(processor.image_token_id), validation
        check_optimizer(recipe.optimizer, args, recipe.learning_rates)
        pad = processor.tokenizer.pad_token_id
        if recipe.packing:
            collator = packing_collator(model, pad, recipe.max_length, recipe.attn_implementation)
        else:
            collator = PaddingCollator(pad)
        self.lengths = train_dataset.lengths() if args.train_sampling_strategy == "group_by_length" else None
        super().__init__(
            model=model,
            args=args,
            data_collator=collator,
            train_dataset=train_dataset,
            eval_dataset=validation and validation.dataset,
            processing_class=processor,
            callbacks=[self.speed, *callbacks],
        )

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        if self.lengths is None:
            return super()._get_train_sampler(train_dataset)
        # Trainer's own would measure each sample by encoding it, and resume in another order.
        return LengthGroupedSampler(self.lengths, self.args.global_batch, self.args.order_seed, self.current_epoch)

    def get_train_dataloader(self) -> DataLoader:
        loader = super().get_train_dataloader()
        inner = getattr(loader, "base_dataloader", loader)  # accelerate's wrapper does not pass attributes on
        inner.worker_init_fn = partial(outlive_sigterm, inner.worker_init_fn)
        return loader

    def current_epoch(self) -> int:
        return int(self.state.epoch or 0)

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        recipe, args = self.recipe, self.args
        if self.optimizer is None and (recipe.optimizer or recipe.learning_rates):
            model_to_train = self.model if model is None else model
            decayed = set(self.get_decay_parameter_names(model_to_train))
            if recipe.optimizer == "muon":
                adamw = {"betas": (args.adam_beta1, args.adam_beta2), "eps": args.adam_epsilon}
                self.optimizer = MuonWithAdamW(model_to_train, args.learning_rate, args.weight_decay, decayed, **adamw)
            else:
                self.optimizer = optimizer_by_part(model_to_train, args, recipe.learning_rates, decayed)
        return super().create_optimizer(model)

    def get_batch_samples(self, *args, **kwargs) -> tuple[list, torch.Tensor | int | None]:
        # Trainer looks at this after a step only, so a complete run that is resumed would take one more.
        if self.control.should_training_stop:
            return [], None
        return super().get_batch_samples(*args, **kwargs)

    def training_step(self, model: torch.nn.Module, inputs: dict, *args, **kwargs) -> torch.Tensor:
        self.speed.count(inputs)
        return super().training_step(model, inputs, *args, **kwargs)

    def evaluate(self, *args, metric_key_prefix: str = "eval", **kwargs) -> dict[str, float]:
        """As transformers' own, but exact and with scores of answers: [`Validation`]."""
        found = self.validation.measure(self)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, float], *args, **kwargs):
        if "loss" in logs:
            logs |= self.speed.figures(self.state)
        super().log(logs, *args, **kwargs)


class LengthGroupedSampler(Sampler):
    """Indices in an order in which neighbours have similar lengths, so that batches hold less padding.

    The order is a function of `seed` and epoch. It shuffles the samples, divides them into up to 50 batches at a time
    and sorts these by length. The batch with the longest sample comes first, so that a lack of memory shows early.

    Args:
        lengths: tokens of each sample.
        batch_size: samples of one optimizer step.
        current_epoch: gives the epoch when it begins; a resumed run begins within one.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int, current_epoch: Callable[[], int]):
        self.lengths, self.batch_size, self.seed, self.current_epoch = lengths, batch_size, seed, current_epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.current_epoch())
        shuffled = torch.randperm(len(self), generator=generator).tolist()
        size = self.batch_size * max(1, min(len(self) // (4 * self.batch_size), 50))
        parts = [shuffled[start : start + size] for start in range(0, len(self), size)]
        parts = [sorted(part, key=self.lengths.__getitem__, reverse=True) for part in parts]
        longest = max(range(len(parts)), key=lambda part: self.lengths[parts[part][0]])
        parts[0][0], parts[longest][0] = parts[longest][0], parts[0][0]
        return (index for part in parts for index in part)

# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""Evaluation while training, on samples that do not train: the loss per answer token, and scores of greedy answers.

Both are exact on any number of processes: each computes its share, and sums are joined. Random generators are left as
they are, so that a run with evaluation trains as one without.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from accelerate.utils import reduce, send_to_device
from torch.utils.data import DataLoader, Dataset, IterableDataset
from tqdm import tqdm
from transformers import Trainer, TrainingArguments
from transformers.feature_extraction_utils import BatchFeature

from ..inference import generate_text, prompts
from ..scores import METRICS
from .callbacks import outlive_sigterm
from .collators import PaddingCollator
from .conversations import BadSamples, map_good, open_images
from .mixture import load_data
from .preprocessing import ConversationEncoder, EncodedDataset
from .sharding import is_sharded


MAX_NEW_TOKENS = 128


class Share(Dataset):
    """Some of a dataset's raw samples."""

    def __init__(self, dataset: Dataset, indices: np.ndarray):
        self.dataset, self.indices = dataset, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict:
        return self.dataset[int(self.indices[index])]

    def identity(self) -> list[dict]:
        return [one | {"samples of it": len(self)} for one in self.dataset.identity()]


def hold_out(dataset: Dataset | IterableDataset, share: float, seed: int) -> tuple[Share, Share]:
    """The samples to train on and those held out; which these are is a function of the seed. A sample that a mixture
    draws several times is in one part only, once if it is held out.

    Raises `ValueError` for a stream, and for a share that leaves one part empty.
    """
    if isinstance(dataset, IterableDataset):
        raise ValueError("eval_share takes samples by their index, but these are streamed; give eval_data_path.")
    origins = getattr(dataset, "origins", np.arange(len(dataset)))
    different, first = np.unique(origins, return_index=True)
    held_out = round(share * len(different))
    if not 0 < held_out < len(different):
        raise ValueError(f"eval_share {share} of {len(different)} samples is {held_out}; leave some for each part.")
    chosen = np.random.default_rng(seed).permutation(len(different))[:held_out]
    trained = np.flatnonzero(~np.isin(origins, different[chosen]))
    return Share(dataset, trained), Share(dataset, np.sort(first[chosen]))


def without_broken(conversations: Dataset, encoder: ConversationEncoder, bad_samples: BadSamples) -> Dataset:
    """The held-out samples that can be encoded, tried once before training. A broken one that is an error is one when
    it is evaluated."""
    if bad_samples.policy == "error":
        return conversations
    indices = tqdm(range(len(conversations)), "checking held-out samples", leave=False, disable=None)
    good = list(map_good(lambda index: encoder(conversations[index]) and index, indices, bad_samples))
    if not good:
        raise ValueError("None of the held-out samples can be used; the log names each with its reason.")
    return Share(conversations, np.array(good))


@dataclass
class Validation:
    """Measures a model in training.

    conversations: raw samples, whose first questions are asked.
    metrics: names of [`METRICS`]; answers: the number of questions for them.
    """

    conversations: Dataset
    encoder: ConversationEncoder
    metrics: list[str]
    answers: int

    @property
    def dataset(self) -> EncodedDataset:
        return EncodedDataset(self.conversations, self.encoder)

    def measure(self, trainer: Trainer) -> dict[str, float]:
        """`loss`, the mean over all answer tokens, and each metric's mean over the answers."""
        trainer.model.eval()
        with torch.no_grad(), trainer.compute_loss_context_manager():
            return {"loss": self._loss(trainer)} | self._scores(trainer)

    def _loss(self, trainer: Trainer) -> float:
        args, shares = trainer.args, shares_of(len(self.conversations), trainer.args)
        loader = DataLoader(
            self.dataset,
            batch_sampler=[indices for indices, _ in shares],
            collate_fn=PaddingCollator(self.encoder.processor.tokenizer.pad_token_id),
            num_workers=args.dataloader_num_workers,
            worker_init_fn=partial(outlive_sigterm, None),
            generator=torch.Generator(),  # leaves the global one as it is
        )
        losses, tokens = 0.0, 0
        for batch, (_, counts) in zip(with_bar(loader, "evaluating", args), shares):
            loss = trainer.model_wrapped(**send_to_device(batch, args.device)).loss.item()
            number = (batch["labels"][:, 1:] != -100).sum().item()
            losses, tokens = losses + counts * number * loss, tokens + counts * number
        losses, tokens = sums_over_processes([losses, tokens], args)
        return losses / tokens

    def _scores(self, trainer: Trainer) -> dict[str, float]:
        if not self.metrics:
            return {}
        model, scores = trainer.accelerator.unwrap_model(trainer.model), []
        shares = shares_of(min(self.answers, len(self.conversations)), trainer.args)
        for indices, counts in with_bar(shares, "answering", trainer.args):
            samples = [self.conversations[index] for index in indices]
            texts = generate_text(model, self._prompts(samples), self.encoder.processor, MAX_NEW_TOKENS)
            for text, sample in zip(texts, samples):
                truth = sample["messages"][first_answer(sample)]["content"][0]["text"]
                scores += [[*(METRICS[name](text, [truth]) for name in self.metrics), 1.0]] * counts
        *sums, number = sums_over_processes(np.sum(scores or [[0.0] * (len(self.metrics) + 1)], axis=0), trainer.args)
        return {name: score / number for name, score in zip(self.metrics, sums)}

    def _prompts(self, samples: list[dict]) -> BatchFeature:
        """The chats up to their first answers."""
        processor = self.encoder.processor
        chats, regions = [], []
        for sample in samples:
            chat = open_images(sample, processor.image_processor.max_image_pixels)[: first_answer(sample)]
            images = sum(part["type"] == "image" for message in chat for part in message["content"])
            chats, regions = [*chats, chat], [*regions, sample["regions"][:images]]
        return prompts(processor, chats, regions)


def first_answer(sample: dict) -> int:
    return [message["role"] for message in sample["messages"]].index("assistant")


def shares_of(number: int, args: TrainingArguments) -> list[tuple[range, bool]]:
    """This process's batches of indices below `number`, and whether each counts. All processes have as many, because
    sharded weights need all of them; a batch that fills up does not count."""
    size, step = args.eval_batch_size, args.eval_batch_size * args.world_size
    starts = range(args.process_index * size, math.ceil(number / step) * step, step)
    own = [range(number)[start : start + size] for start in starts]
    return [(indices or range(1), bool(indices)) for indices in own]


def with_bar(items, title: str, args: TrainingArguments) -> tqdm:
    return tqdm(items, title, leave=False, disable=args.disable_tqdm or args.process_index > 0)


def sums_over_processes(numbers: Sequence[float], args: TrainingArguments) -> list[float]:
    if args.world_size == 1:
        return list(numbers)
    return reduce(torch.tensor(numbers, dtype=torch.float64, device=args.device), "sum").tolist()


def held_out_data(recipe, args: TrainingArguments, conversations: Dataset | IterableDataset, bad_samples: BadSamples):
    """The samples to train on, and those for evaluation (None without).

    Raises `ValueError` for settings of evaluation that do not fit together.
    """
    check_evaluation(recipe, args)
    if recipe.eval_share is not None:
        return hold_out(conversations, recipe.eval_share, args.order_seed)
    if recipe.eval_data_path is None:
        return conversations, None
    source = replace(recipe.source, path=recipe.eval_data_path, image_folder=recipe.eval_image_folder)
    held_out = load_data(source, args.order_seed, bad_samples)
    if isinstance(held_out, IterableDataset):
        raise ValueError(f"eval_data_path {recipe.eval_data_path} is streamed, so it has no end; download it.")
    return conversations, held_out


def check_evaluation(recipe, args: TrainingArguments):
    has_data = recipe.eval_data_path is not None or recipe.eval_share is not None
    mistakes = {
        "give eval_data_path or eval_share, not both": recipe.eval_data_path and recipe.eval_share,
        "eval_data_path or eval_share need eval_strategy: steps (with eval_steps) or epoch": has_data
        and args.eval_strategy == "no",
        f"eval_strategy {args.eval_strategy.value} needs eval_data_path or eval_share": not has_data
        and args.eval_strategy != "no",
        "early_stopping_patience needs load_best_model_at_end: true": recipe.early_stopping_patience is not None
        and not args.load_best_model_at_end,
        "eval_metrics generates answers, which FSDP and DeepSpeed do not; leave it out": recipe.eval_metrics
        and is_sharded(args),
        f"eval_metrics knows {', '.join(METRICS)}, got {recipe.eval_metrics}": set(recipe.eval_metrics) - set(METRICS),
        f"metric_for_best_model {args.metric_for_best_model} is neither loss nor one of eval_metrics": has_data
        and (args.metric_for_best_model or "loss").removeprefix("eval_") not in ("loss", *recipe.eval_metrics),
        "load_best_model_at_end needs save_total_limit: 2 or more: a stopped run continues from the last checkpoint": (
            args.load_best_model_at_end and args.save_total_limit == 1
        ),
    }
    for mistake, is_made in mistakes.items():
        if is_made:
            raise ValueError(f"{mistake}.")
    for metric in recipe.eval_metrics:
        METRICS[metric]("", [""])  # raises if its library is missing

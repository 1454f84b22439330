# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""A queue of answers: those that wait at the same time and have the same settings share a call of `generate`."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from transformers.utils import logging

from .writing import Answer, write_together


logger = logging.get_logger(__name__)

# Settings with which an answer would depend on its batch, and the value that changes nothing: beams take several rows,
# the others read the padding before a prompt.
SHARES_WITH = {"num_beams": 1, "repetition_penalty": 1, "no_repeat_ngram_size": 0}


@dataclass(eq=False)
class Waiting:
    answer: Answer
    seed: int | None
    options: dict


class Batches:
    """Writes the answers of one model, a batch at a time, in a thread of its own.

    Args:
        size: most answers that are written together.
    """

    def __init__(self, model, processor, size: int):
        self.model, self.processor, self.size = model, processor, size
        self.waiting: list[Waiting] = []
        self.thread = ThreadPoolExecutor(1, "batches")

    def add(self, answer: Answer, seed: int | None = None, **options):
        """Queues an answer. Its `send` also gets the error if generation fails.

        Args:
            seed: of a sampled answer, which then has a batch of its own.
            options: of `generate`.
        """
        self.waiting.append(Waiting(answer, seed, options))
        self.thread.submit(self._write_next)  # finds nothing to do if an earlier batch took this answer along

    def _write_next(self):
        batch = self._take()
        if not batch:
            return
        logger.info("A batch of %d.", len(batch))
        answers = [each.answer for each in batch]
        try:
            if batch[0].seed is not None:
                torch.manual_seed(batch[0].seed)
            write_together(self.model, self.processor, answers, **batch[0].options)
        except Exception as error:
            for answer in answers:
                answer.send(error)
        finally:
            if batch[0].seed is not None:
                torch.seed()  # later answers must not follow from this seed

    def _take(self) -> list[Waiting]:
        """The answer that waits longest, and those that can be written with it; they wait no more."""
        waiting = list(self.waiting)  # other threads add to it
        batch = [each for each in waiting if not each.answer.closed.is_set()]
        if batch:
            batch = [each for each in batch if each is batch[0] or self._go_together(batch[0], each)][: self.size]
        for each in waiting:
            if each in batch or each.answer.closed.is_set():
                self.waiting.remove(each)
        return batch

    def _go_together(self, first: Waiting, other: Waiting) -> bool:
        if first.options != other.options or first.seed is not None or other.seed is not None:
            return False
        settings = self.model.generation_config.to_dict() | first.options
        return all((settings.get(name) or value) == value for name, value in SHARES_WITH.items())

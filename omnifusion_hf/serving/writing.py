# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""Streaming of answers for the page and the server.

The final answer is that of `inference.generate_text`; every earlier piece is a prefix of it.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from os.path import commonprefix
from queue import SimpleQueue
from threading import Event

import torch

from ..inference import cut, texts_of


UNSETTLED = 3  # last tokens whose text may still change: a character has up to 4 bytes, and each may be a token


@dataclass(frozen=True)
class Written:
    """The answer so far. finish_reason: None during generation, then "stop" (the answer ended) or "length"."""

    text: str
    num_tokens: int
    finish_reason: str | None = None


def write(
    model, processor, inputs, stop: Sequence[str] = (), closed: Event | None = None, **options
) -> Iterator[Written]:
    """Yields, after each token, the certain part of the answer to one prompt, and at the end the whole answer.

    The model generates in another thread. That ends with the answer, at a text of `stop` (the answer is cut before
    it), when generation fails (its error is raised here), and at the next token after `closed` is set or this iterator
    is closed. With beams nothing is certain before the end.

    Args:
        options: of `generate`; the default is greedy decoding.
    """
    options, closed = {"do_sample": False} | options, closed or Event()
    steps, prompt_length = SimpleQueue(), inputs["input_ids"].shape[1]

    def report_step(input_ids, scores, **kwargs):
        """A stopping criterion: `generate` calls it after each token."""
        steps.put(input_ids[0, prompt_length:].tolist())
        return torch.full(input_ids.shape[:1], closed.is_set(), device=input_ids.device)

    with ThreadPoolExecutor(1, "answer") as writer:
        try:
            writing = writer.submit(
                model.generate, **inputs.to(model.device), **options, stopping_criteria=[report_step]
            )
            writing.add_done_callback(lambda _: steps.put(None))
            for ids in iter(steps.get, None):
                if closed.is_set():
                    break
                text = "" if _has_beams(model, options) else _settled(processor, ids)
                if (answer := cut(text, stop)) != text:
                    yield Written(answer, len(ids), "stop")
                    return
                yield Written(_surely_before(text, stop), len(ids))
            ids = writing.result()[0, prompt_length:].tolist()
            if not closed.is_set():
                yield _finished(model, processor, ids, stop, options.get("max_new_tokens"))
        finally:
            closed.set()


def _has_beams(model, options: dict) -> bool:
    return (options.get("num_beams") or model.generation_config.num_beams or 1) > 1


def _settled(processor, ids: list[int]) -> str:
    """The part of the text that no later token can change."""
    return commonprefix(texts_of(processor, [ids[:-UNSETTLED], ids])).rstrip()


def _surely_before(text: str, stop: Sequence[str]) -> str:
    """The text without an end that may be the beginning of a text of `stop`."""
    longest = max(map(len, stop), default=1)
    return text[: max(len(text) - longest + 1, 0)].rstrip()


def _finished(model, processor, ids: list[int], stop: Sequence[str], most: int | None) -> Written:
    (text,), settings = texts_of(processor, [ids]), model.generation_config
    ends = settings.eos_token_id if isinstance(settings.eos_token_id, list) else [settings.eos_token_id]
    was_forced = settings.forced_eos_token_id is not None and len(ids) == most  # v1.1 forces its last token
    answer = cut(text, stop)
    has_ended = answer != text or (ids and ids[-1] in ends and not was_forced)
    return Written(answer, len(ids), "stop" if has_ended else "length")

# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""Streaming of answers for the page and the server: of one prompt, or of several that share a call of `generate`.

The final answer is that of `inference.generate_text`; every earlier piece is a prefix of it.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from os.path import commonprefix
from queue import SimpleQueue
from threading import Event

import torch
from torch.nn.functional import pad

from ..inference import cut, texts_of


UNSETTLED = 3  # last tokens whose text may still change: a character has up to 4 bytes, and each may be a token


@dataclass(frozen=True)
class Written:
    """The answer so far. finish_reason: None during generation, then "stop" (the answer ended) or "length"."""

    text: str
    num_tokens: int
    finish_reason: str | None = None


@dataclass(eq=False)
class Answer:
    """A prompt whose answer is wanted.

    Args:
        inputs: model inputs of one prompt.
        send: gets the certain part of the answer after each token, and at the end the whole; called in the thread that
            generates.
        stop: texts that end the answer, which is cut before the first of them.
        closed: set when the answer is complete. If the reader sets it, the answer ends at the next token.
    """

    inputs: dict
    send: Callable[[Written], None]
    stop: Sequence[str] = ()
    closed: Event = field(default_factory=Event)

    def give(self, written: Written):
        self.send(written)
        if written.finish_reason:
            self.closed.set()


def write(model, processor, inputs, stop: Sequence[str] = (), **options) -> Iterator[Written]:
    """Yields, after each token, the certain part of the answer to one prompt, and at the end the whole answer.

    The model generates in another thread. That ends with the answer, at a text of `stop`, when generation fails (its
    error is raised here), and at the next token after this iterator is closed. `options` are those of
    [`write_together`].
    """
    pieces = SimpleQueue()
    answer = Answer(inputs, pieces.put, stop)
    with ThreadPoolExecutor(1, "answer") as writer:
        try:
            writing = writer.submit(write_together, model, processor, [answer], **options)
            writing.add_done_callback(lambda _: pieces.put(None))
            yield from iter(pieces.get, None)
            writing.result()
        finally:
            answer.closed.set()


def write_together(model, processor, answers: list[Answer], **options):
    """Writes answers by one call of `generate`. With beams, nothing is certain before the end, and `answers` has one.

    Args:
        options: of `generate`; the default is greedy decoding.
    """
    options, most = {"do_sample": False} | options, options.get("max_new_tokens")
    inputs = join([answer.inputs for answer in answers], processor.tokenizer.pad_token_id)
    prompt_length = inputs["input_ids"].shape[1]
    has_beams = (options.get("num_beams") or model.generation_config.num_beams or 1) > 1

    def report_step(input_ids, scores, **kwargs):
        """A stopping criterion: `generate` calls it after each token. True for the rows of complete answers."""
        rows = len(input_ids) // len(answers)  # of an answer: several with beams
        for answer, ids in zip(answers, input_ids[::rows, prompt_length:].tolist()):
            if not answer.closed.is_set():
                nothing = Written("", len(ids))
                answer.give(nothing if has_beams else _written(model, processor, ids, answer.stop, most))
        closed = [answer.closed.is_set() for answer in answers]
        return torch.tensor(closed, device=input_ids.device).repeat_interleave(rows)

    inputs = {name: tensor.to(model.device) for name, tensor in inputs.items()}
    ids = model.generate(**inputs, **options, stopping_criteria=[report_step])
    for answer, row in zip(answers, ids[:, prompt_length:].tolist()):
        if not answer.closed.is_set():
            answer.give(_finished(model, processor, row, answer.stop, most))


def join(inputs: list[dict], pad_token_id: int) -> dict[str, torch.Tensor]:
    """Model inputs of prompts as those of a batch, padded on the left."""
    length, joined = max(one["input_ids"].shape[1] for one in inputs), {}
    for name in {name: None for one in inputs for name in one}:
        tensors = [one[name] for one in inputs if name in one]
        if name in ("input_ids", "attention_mask"):
            value = pad_token_id if name == "input_ids" else 0
            tensors = [pad(tensor, (length - tensor.shape[1], 0), value=value) for tensor in tensors]  # (1, L)
        joined[name] = torch.cat(tensors)
    return joined


def _written(model, processor, ids: list[int], stop: Sequence[str], most: int | None) -> Written:
    if ids[-1] in _ends(model) or len(ids) == most:
        return _finished(model, processor, ids, stop, most)
    text = _settled(processor, ids)
    if (answer := cut(text, stop)) != text:
        return Written(answer, len(ids), "stop")
    return Written(_surely_before(text, stop), len(ids))


def _ends(model) -> list[int]:
    ends = model.generation_config.eos_token_id
    return ends if isinstance(ends, list) else [ends]


def _settled(processor, ids: list[int]) -> str:
    """The part of the text that no later token can change."""
    return commonprefix(texts_of(processor, [ids[:-UNSETTLED], ids])).rstrip()


def _surely_before(text: str, stop: Sequence[str]) -> str:
    """The text without an end that may be the beginning of a text of `stop`."""
    longest = max(map(len, stop), default=1)
    return text[: max(len(text) - longest + 1, 0)].rstrip()


def _finished(model, processor, ids: list[int], stop: Sequence[str], most: int | None) -> Written:
    (text,) = texts_of(processor, [ids])
    # v1.1 forces its last token
    was_forced = model.generation_config.forced_eos_token_id is not None and len(ids) == most
    answer = cut(text, stop)
    has_ended = answer != text or (ids and ids[-1] in _ends(model) and not was_forced)
    return Written(answer, len(ids), "stop" if has_ended else "length")

# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""Many questions to one model: `omnifusion ask --data` and `omnifusion ask FOLDER`.

Each process of `accelerate launch` or `torchrun` answers its share and logs it in the folder OUTPUT.part. Process 0
joins the logs to the file OUTPUT, in the order of the questions. A rerun, also with another number of processes,
continues with what the logs lack.
"""

import shutil
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import PartialState
from tqdm import tqdm

from ..inference import load
from ..io import check_new, named, write_whole
from ..training.preprocessing import measure
from .answers import CLEAN, AnswerLog, Evaluator, keep_settings, read_answers
from .provenance import model_facts
from .questions import Question, image_sources, prompts_of, with_images


LONGEST_WAIT = timedelta(days=1)  # of one process for the others


def ask_questions(
    questions: list[Question],
    output: str | Path,
    model: str | Path,
    batch_size: int = 16,
    max_new_tokens: int = 128,
    device: str | None = None,
    **loading,
):
    """Writes the greedy answers of `model`, a folder or Hub id, to the file `output`, as [`~answers.Answer`] records.
    `device` and `loading` are options of [`~inference.load`]; by default each process has its own device.

    Raises `ValueError` for an output that exists, and for a log of other questions or under other settings.
    """
    check_new(output)
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=LONGEST_WAIT)
    folder = Path(f"{output}.part")
    loaded = load(str(model), device or str(state.device), **loading)
    given = {name: value for name, value in loading.items() if value is not None}
    settings = {"model": str(model), "max_new_tokens": max_new_tokens} | given | model_facts(*loaded)
    evaluator = Evaluator(*loaded, open_share(folder, state.process_index, settings), batch_size, max_new_tokens)
    missing = evaluator.missing(questions, CLEAN)
    state.wait_for_everyone()  # nobody writes before all have read
    share = share_of(missing, loaded[1], batch_size, state)
    with tqdm(total=len(share), unit="answer", disable=None if state.is_main_process else True) as bar:
        evaluator.run(share, CLEAN, lambda batch: prompts_of(loaded[1], batch), bar)
    state.wait_for_everyone()
    if state.is_main_process:
        join(questions, folder, output)


def open_share(folder: Path, process: int, settings: dict) -> AnswerLog:
    """The log of one process; its `answers` are those of all logs in the folder."""
    keep_settings(folder, settings)
    own = AnswerLog(folder / f"{process}.jsonl")
    others = [AnswerLog(path) for path in sorted(folder.glob("*.jsonl")) if path != own.path]
    own.answers += [answer for log in others for answer in log.answers]
    return own


def share_of(questions: list[Question], processor, batch_size: int, state: PartialState) -> list[Question]:
    """The questions of this process: whole batches of similar length. The longest come first, so that a prompt that
    does not fit shows early."""
    bar = tqdm(questions, desc="measuring", leave=False, disable=None if state.is_main_process else True)
    lengths = [prompt_length(question, processor) for question in bar]
    order = sorted(range(len(questions)), key=lengths.__getitem__, reverse=True)
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    return [questions[index] for batch in batches[state.process_index :: state.num_processes] for index in batch]


def prompt_length(question: Question, processor) -> int:
    """Approximate tokens of a prompt, without the template's own. Decodes no image."""
    with named(f"{question.task}, {question.name}"):
        messages = with_images(question.messages, image_sources(question))
        text, image_tokens = measure({"messages": messages, "regions": question.regions}, processor)
    return len(processor.tokenizer(text)["input_ids"]) + image_tokens


def join(questions: list[Question], folder: Path, output: str | Path):
    """Writes the answers of all logs to one file, in the order of the questions, and removes the logs."""
    logged = [answer for path in sorted(folder.glob("*.jsonl")) for answer in read_answers(path)]
    by_name = {(answer.task, answer.name): answer for answer in logged}
    if absent := [question for question in questions if (question.task, question.name) not in by_name]:
        raise ValueError(f"{folder} lacks {len(absent)} answers; give an output on a disk that all processes share.")
    write_whole(output, "".join(by_name[question.task, question.name].as_line() for question in questions))
    shutil.rmtree(folder)
    print(f"wrote {output}: {len(questions)} answers")

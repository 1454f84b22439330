# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""Ctrl-C and SIGTERM end a run with a checkpoint; a run that was cut off goes on from its last whole one."""

import json
import os
import re
import signal
import sys
import zipfile
from pathlib import Path

import torch
from torch import distributed as dist
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..files import write_whole
from .progress import SUMMARY


SETTINGS = "training_settings.json"
MAY_CHANGE = ("precision", "max_length", "packing")  # neither the optimiser nor the order of samples depends on them


class SaveAndStop(TrainerCallback):
    """At SIGINT (Ctrl-C) or SIGTERM: finish the step, save a checkpoint, stop. Another Ctrl-C stops at once.

    Ranks agree after every step, so that a signal to one of them stops all at the same step. (transformers'
    `enable_jit_checkpoint` knows SIGTERM alone, saves in the middle of a step and on each rank by itself.)
    """

    def __init__(self):
        self.signal, self.handlers, self.process = 0, {}, os.getpid()

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        self.handlers = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        if dist.is_initialized():
            asked = torch.tensor(self.signal, device=args.device)
            dist.all_reduce(asked, dist.ReduceOp.MAX)
            self.signal = asked.item()
        if self.signal:
            control.should_save = control.should_training_stop = True

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame):
        if os.getpid() != self.process:
            return  # a data loader's worker, which a terminal signals too: the last step needs it
        # Launchers hand on what the terminal has already sent to everyone.
        if self.signal and number == signal.SIGINT and "TORCHELASTIC_RUN_ID" not in os.environ:
            raise KeyboardInterrupt
        self.signal = number

    def leave_if_stopped(self, state: TrainerState):
        """Ends the process as one that a signal ended, exit code 128 + signal, unless all steps were done."""
        if not self.signal or state.global_step >= state.max_steps:
            return
        if state.is_world_process_zero:
            name = signal.Signals(self.signal).name
            print(
                f"{name}: stopped with a checkpoint at step {state.global_step} of {state.max_steps}; "
                "the same command with --resume goes on from there.",
                file=sys.stderr,
            )
        sys.exit(128 + self.signal)


class NoStepTooMany(TrainerCallback):
    """A complete run that is resumed makes no step. (Trainer asks whether it is at `max_steps` after a step only.)"""

    def __init__(self, trainer: Trainer):
        self.trainer = trainer

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        if state.global_step >= state.max_steps:
            self.trainer.get_batch_samples = lambda *_: ([], None)


def checkpoint_to_resume(args: TrainingArguments, settings: dict) -> str | None:
    """`resume_from_checkpoint` as Trainer wants it: true means the last whole checkpoint in output_dir, if any.

    Raises `ValueError` where a run would start anew among the checkpoints of another, for nobody could tell them apart
    later, and for a checkpoint of a run with other `settings`.
    """
    wanted = str(args.resume_from_checkpoint or "false")
    if wanted.lower() in ("true", "false"):
        numbered = {path: re.fullmatch(r"checkpoint-(\d+)", path.name) for path in Path(args.output_dir).glob("*")}
        whole = {int(name[1]): str(path) for path, name in numbered.items() if name and is_whole(path)}
        last = whole[max(whole)] if whole else None
        if last and wanted.lower() == "false":
            raise ValueError(f"{last} is of an earlier run: go on from it by --resume, or change output_dir.")
        wanted = last
    if wanted is not None:
        _check_same_run(wanted, settings)
    return wanted


def _check_same_run(checkpoint: str, settings: dict):
    """Trainer would keep the checkpoint's learning rates, and skip as many of other samples as the run had seen."""
    noted = Path(checkpoint).parent / SETTINGS
    before = json.loads(noted.read_text(encoding="utf-8")) if noted.is_file() else settings
    changed = [
        f"{name} was {before.get(name)} and is {value}"
        for name, value in settings.items()
        if name not in MAY_CHANGE and before.get(name) != value
    ]
    if changed:
        raise ValueError(
            f"{checkpoint} is of a run with other settings: {'; '.join(changed)}. Go on with the recipe as it was, or "
            "start a run of its own in another output_dir."
        )


def begin_run(args: TrainingArguments, settings: dict):
    """Notes a run's settings, to be compared when it is resumed. A summary goes: it says that a run is complete."""
    if args.process_index == 0:
        (Path(args.output_dir) / SUMMARY).unlink(missing_ok=True)
        write_whole(Path(args.output_dir) / SETTINGS, json.dumps(settings, indent=2))


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint was written to its end: rank 0 writes its state last, the others their random state."""
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return False
    return all(zipfile.is_zipfile(path) for path in checkpoint.glob("rng_state*.pth"))

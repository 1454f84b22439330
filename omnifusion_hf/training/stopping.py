# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""Ctrl-C and SIGTERM end a run with a checkpoint; which checkpoint of a run that was cut off is whole."""

import json
import os
import signal
import sys
import zipfile
from pathlib import Path

import torch
from torch import distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


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


def checkpoint_to_resume(args: TrainingArguments) -> str | None:
    """`resume_from_checkpoint` as Trainer wants it: true means the last whole checkpoint in output_dir, if any."""
    wanted = str(args.resume_from_checkpoint or "false")
    if wanted.lower() not in ("true", "false"):
        return wanted
    whole = [folder for folder in Path(args.output_dir).glob("checkpoint-*") if is_whole(folder)]
    if wanted.lower() == "false" or not whole:
        return None
    return str(max(whole, key=lambda path: int(path.name.split("-")[-1])))


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint was written to its end: rank 0 writes its state last, the others their random state."""
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return False
    return all(zipfile.is_zipfile(path) for path in checkpoint.glob("rng_state*.pth"))

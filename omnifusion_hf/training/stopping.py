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
from safetensors import safe_open
from torch import distributed as dist
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging

from ..io import SUMMARY, read_json, read_text, write_whole
from .identity import SETTINGS, changes_of_run


logger = logging.get_logger(__name__)


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


class Begin(TrainerCallback):
    """Begins a run, or makes no step of one that was complete. (Trainer asks whether it is at `max_steps` after a step
    only, and no earlier than here is it known how many there are.) `finished` is then what its summary says."""

    def __init__(self, trainer: Trainer, identity: dict):
        self.trainer, self.identity, self.finished = trainer, identity, None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        if state.global_step >= state.max_steps:
            self.trainer.get_batch_samples = lambda *_: ([], None)
            summary = Path(args.output_dir) / SUMMARY
            self.finished = read_json(read_text(summary), str(summary)) if summary.is_file() else None
        else:
            begin_run(args, self.identity)


def checkpoint_to_resume(args: TrainingArguments, identity: dict) -> str | None:
    """`resume_from_checkpoint` as Trainer wants it: true means the last whole checkpoint in output_dir, if any.

    Raises `ValueError` where a run would start anew among the checkpoints of another, for nobody could tell them apart
    later, and for a checkpoint of a run of another `identity`.
    """
    wanted = str(args.resume_from_checkpoint or "false")
    if wanted.lower() in ("true", "false"):
        numbered = {path: re.fullmatch(r"checkpoint-(\d+)", path.name) for path in Path(args.output_dir).glob("*")}
        whole = {int(name[1]): str(path) for path, name in numbered.items() if name and is_whole(path)}
        last = whole[max(whole)] if whole else None
        if last and wanted.lower() == "false":
            raise ValueError(f"{last} is of an earlier run: go on from it by --resume, or change output_dir.")
        wanted = last
    elif Path(wanted).is_dir() and not is_whole(Path(wanted)):
        raise ValueError(f"{wanted} was not written to its end or is damaged; resume from another checkpoint.")
    if wanted is not None:
        _check_same_run(wanted, identity)
    return wanted


def _check_same_run(checkpoint: str, identity: dict):
    """Trainer would keep the checkpoint's learning rates, and skip as many of other samples as the run had seen."""
    noted = Path(checkpoint).parent / SETTINGS
    before = read_json(read_text(noted), f"{noted} is not JSON") if noted.is_file() else identity
    if changed := changes_of_run(before, identity):
        raise ValueError(
            f"{checkpoint} is of a run with other settings: {'; '.join(changed)}. Go on with the recipe as it was, or "
            "start a run of its own in another output_dir."
        )


def begin_run(args: TrainingArguments, identity: dict):
    """Notes a run's identity, to be compared when it is resumed. A summary goes: it says that a run is complete."""
    if args.process_index == 0:
        (Path(args.output_dir) / SUMMARY).unlink(missing_ok=True)
        write_whole(Path(args.output_dir) / SETTINGS, json.dumps(identity, indent=2))


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint was written to its end: rank 0 writes its state last, the others their random state; and
    whether no file has been cut off since."""
    files = [path for path in checkpoint.rglob("*") if path.is_file()]
    broken = [path.name for path in files if not _is_whole_file(path)]
    if broken:
        logger.warning(f"{checkpoint} is not whole: {', '.join(broken)}")
    return not broken and (checkpoint / "trainer_state.json").is_file()


def _is_whole_file(path: Path) -> bool:
    """Whether a file ends where its head says, and an index has its shards."""
    try:
        if path.suffix == ".json":
            content = json.loads(path.read_text(encoding="utf-8"))
            shards = content.get("weight_map", {}).values() if isinstance(content, dict) else ()
            return all((path.parent / shard).is_file() for shard in shards)
        if path.suffix == ".safetensors":
            safe_open(path, "pt")
        return path.suffix not in (".pt", ".pth", ".bin") or zipfile.is_zipfile(path)
    except Exception:  # whatever a damaged file makes its reader raise
        return False

# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""Callbacks of a run: its speed, stopping by a signal, its identity; and the checkpoint that a run resumes from."""

import json
import os
import re
import signal
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

import torch
from accelerate.utils import reduce
from safetensors import safe_open
from torch import distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import get_reporting_integration_callbacks
from transformers.utils import logging

from ..figures import new_figure, save_figure
from ..io import LOSS_PLOT, SUMMARY, read_json, read_text, write_whole
from .identity import SETTINGS, changes_of_run
from .sharding import is_sharded


logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class Progress:
    """The counts of all processes together at one time, in seconds of a monotonic clock."""

    seconds: float
    step: int
    samples: int
    tokens: int
    visual_tokens: int

    def rates_since(self, earlier: "Progress") -> dict[str, float]:
        seconds, tokens = self.seconds - earlier.seconds, self.tokens - earlier.tokens
        return {
            "samples_per_second": round((self.samples - earlier.samples) / seconds, 3),
            "tokens_per_second": round(tokens / seconds, 1),
            "visual_token_share": round((self.visual_tokens - earlier.visual_tokens) / tokens, 4),
        }


class SpeedCallback(TrainerCallback):
    """Measures a run. The trainer calls `count` with each training batch and logs `figures`.

    Figures: `samples_per_second`, `tokens_per_second` (padding excluded), `visual_token_share` of these tokens,
    `peak_memory_gb` and `minutes_left`. `summary()` gives those of the whole run since it started or resumed.
    """

    def __init__(self, image_token_id: int):
        self.image_token_id = image_token_id

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        self.counts = torch.zeros(3, dtype=torch.long, device=args.device)  # samples, tokens, visual tokens
        self.start = self.last = self._progress(state)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        self.last = self._progress(state)

    def count(self, batch: dict):
        """Adds a batch, padded or packed."""
        positions = batch.get("position_ids")
        if positions is None:
            samples, tokens = len(batch["input_ids"]), batch["attention_mask"].sum()
        else:  # packed: each sample has positions 0, 1, …; padding stays at 0
            samples = (positions == 1).sum()
            tokens = (positions > 0).sum() + samples
        visual_tokens = (batch["input_ids"] == self.image_token_id).sum()
        for index, number in enumerate((samples, tokens, visual_tokens)):
            self.counts[index] += number

    def figures(self, state: TrainerState) -> dict[str, float]:
        """The figures since the last call."""
        now = self._progress(state)
        seconds_per_step = (now.seconds - self.start.seconds) / (now.step - self.start.step)
        minutes_left = round((state.max_steps - now.step) * seconds_per_step / 60, 2)
        rates, self.last = now.rates_since(self.last), now
        return rates | {"peak_memory_gb": peak_memory_gb(self.counts.device), "minutes_left": minutes_left}

    def summary(self) -> dict[str, float]:
        """The figures of the whole run; empty if a resumed run had no step left."""
        if self.last.step == self.start.step:
            return {}
        return self.last.rates_since(self.start) | {"peak_memory_gb": peak_memory_gb(self.counts.device)}

    def _progress(self, state: TrainerState) -> Progress:
        return Progress(time.monotonic(), state.global_step, *reduce(self.counts, "sum").tolist())


def peak_memory_gb(device: torch.device) -> float:
    """The peak memory of this process in 10^9 bytes: GPU memory if it trains on a GPU, else RAM."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 1e9, 3)
    import resource  # not on Windows

    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9, 3)


def check_reporting(args: TrainingArguments):
    """Raises `ValueError` for a tool of `report_to` that is not installed, before anything is loaded."""
    for name in args.report_to:
        try:
            for callback in get_reporting_integration_callbacks([name]):
                callback()
        except (RuntimeError, ImportError) as error:
            install = "" if "pip install" in str(error) else f" pip install {name}"
            raise ValueError(f"report_to {name}: {error}{install}") from None


def plot_loss(log_history: list[dict], folder: Path):
    """Draws the logged losses, and scores of evaluation, to `LOSS_PLOT`. Errors are logged, so that they do not fail a
    finished run."""
    curves = curves_of(log_history)
    if "loss" not in curves:
        logger.warning("no plot of the loss: none was logged; logging_steps sets how often.")
        return
    try:
        figure = new_figure(7, 4)
        axes = figure.subplots()
        scores = axes.twinx() if curves.keys() - {"loss", "eval_loss"} else None
        for name, points in curves.items():
            style = {"label": name} if name == "loss" else {"label": name, "marker": "o", "markersize": 3}
            drawn_on = axes if name in ("loss", "eval_loss") else scores
            drawn_on.plot(*zip(*points), linewidth=1, color=f"C{[*curves].index(name)}", **style)
        axes.set(xlabel="step", ylabel="loss")
        axes.grid(alpha=0.3)
        if len(curves) > 1:
            figure.legend(loc="outside lower center", ncols=len(curves), frameon=False)
        save_figure(figure, folder / LOSS_PLOT, dpi=120)
    except Exception as error:
        logger.warning(f"no plot of the loss: {error}")


def curves_of(log_history: list[dict]) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of the loss and of what evaluation measured."""
    curves = {}
    for entry in log_history:
        for name in entry:
            if name == "loss" or name.startswith("eval_"):
                curves.setdefault(name, []).append((entry["step"], entry[name]))
    return curves


class SaveAndStop(TrainerCallback):
    """At SIGINT (Ctrl-C) or SIGTERM: finishes the step, saves a checkpoint, stops. A second Ctrl-C stops at once.

    Ranks agree after every step, so a signal to one of them stops all at the same step. (transformers'
    `enable_jit_checkpoint` handles SIGTERM only, and saves in the middle of a step, each rank on its own.)
    """

    def __init__(self):
        self.signal, self.handlers, self.process = 0, {}, os.getpid()

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        self.handlers = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        if dist.is_initialized():
            received = torch.tensor(self.signal, device=args.device)
            dist.all_reduce(received, dist.ReduceOp.MAX)
            self.signal = received.item()
        if self.signal:
            control.should_save = control.should_training_stop = True

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        if self.signal and state.epoch % 1:  # Trainer takes the stop for the end of the epoch
            control.should_evaluate = control.should_save = False

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame):
        if os.getpid() != self.process:
            return  # a data loader's worker: a terminal signals it too, but the last step needs it
        # Launchers send the signal again that the terminal has already sent to every process.
        if self.signal and number == signal.SIGINT and "TORCHELASTIC_RUN_ID" not in os.environ:
            raise KeyboardInterrupt
        self.signal = number

    def leave_if_stopped(self, state: TrainerState):
        """Exits with code 128 + signal, as a process that a signal ended, unless all steps were done."""
        if not self.signal or state.global_step >= state.max_steps:
            return
        if state.is_world_process_zero:
            name = signal.Signals(self.signal).name
            print(
                f"{name}: stopped with a checkpoint at step {state.global_step} of {state.max_steps}; "
                "the same command with --resume continues from there.",
                file=sys.stderr,
            )
        sys.exit(128 + self.signal)


def outlive_sigterm(initialize: Callable[[int], None] | None, worker: int):
    """Makes a data loader's worker ignore SIGTERM, except for that of the main process, which ends it. Schedulers
    signal all processes of a job, but the last step needs its workers."""
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        Thread(target=_end_with_parent, daemon=True).start()
    if initialize is not None:
        initialize(worker)


def _end_with_parent():
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


class IdentityCallback(TrainerCallback):
    """Writes the identity of a run when it begins, to be compared when it resumes, and removes the summary of an
    earlier, complete run. A resumed run without steps left does not begin: `complete` is True then."""

    def __init__(self, identity: dict):
        self.identity, self.complete = identity, False

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        state.compute_steps(args, state.max_steps)  # a checkpoint has those of the interrupted run
        summary = Path(args.output_dir) / SUMMARY
        is_over = state.global_step >= state.max_steps or has_stopped_early(state)
        self.complete = is_over or (summary.is_file() and was_complete(summary, state.max_steps))
        control.should_training_stop = self.complete
        if not self.complete and args.process_index == 0:
            summary.unlink(missing_ok=True)
            write_whole(Path(args.output_dir) / SETTINGS, json.dumps(self.identity, indent=2))


def was_complete(summary: Path, max_steps: int) -> bool:
    """Whether a run ended after its last checkpoint, as its summary says, and its weights are there."""
    noted, weights = read_json(read_text(summary), str(summary)), summary.parent.glob("*.safetensors")
    return any(weights) and (noted.get("steps", 0) >= max_steps or noted.get("stopped_early", False))


def has_stopped_early(state: TrainerState) -> bool:
    """Whether early stopping ended the run of which this is the last state."""
    saved = state.stateful_callbacks.get("EarlyStoppingCallback")
    if saved is None:
        return False
    return saved["attributes"]["early_stopping_patience_counter"] >= saved["args"]["early_stopping_patience"]


def checkpoint_to_resume(args: TrainingArguments, identity: dict) -> str | None:
    """`resume_from_checkpoint` as Trainer expects it; true means the last complete checkpoint in output_dir, if any.

    Raises `ValueError` for a checkpoint of a run of another `identity`, or without an optimizer's state, and for a new
    run among the checkpoints or in place of the model of an earlier one.
    """
    wanted = str(args.resume_from_checkpoint or "false")
    if wanted.lower() in ("true", "false"):
        numbered = {path: re.fullmatch(r"checkpoint-(\d+)", path.name) for path in Path(args.output_dir).glob("*")}
        whole = {int(name[1]): str(path) for path, name in numbered.items() if name and is_whole(path)}
        last = whole[max(whole)] if whole else None
        if last and wanted.lower() == "false":
            raise ValueError(f"{last} is of an earlier run: continue it with --resume, or change output_dir.")
        if last is None and (Path(args.output_dir) / SUMMARY).is_file():
            raise ValueError(f"{args.output_dir} holds the model of a finished run; remove it, or change output_dir.")
        wanted = last
    elif Path(wanted).is_dir() and not is_whole(Path(wanted)):
        raise ValueError(f"{wanted} is incomplete or damaged; resume from another checkpoint.")
    if wanted is not None:
        _check_same_run(wanted, identity)
        _check_can_continue(Path(wanted), args)
    return wanted


def _check_same_run(checkpoint: str, identity: dict):
    """With other settings, Trainer would keep the checkpoint's learning rates and skip the wrong samples."""
    noted = Path(checkpoint).parent / SETTINGS
    before = read_json(read_text(noted), f"{noted} is not JSON") if noted.is_file() else identity
    if changed := changes_of_run(before, identity):
        raise ValueError(
            f"{checkpoint} is of a run with other settings: {'; '.join(changed)}. Continue with the recipe as it was, "
            "or start a new run in another output_dir."
        )


def _check_can_continue(checkpoint: Path, args: TrainingArguments):
    """Without these files, which `save_only_model` omits, the schedule begins anew. Sharded runs have others."""
    is_finished = (checkpoint.parent / SUMMARY).is_file()
    if not checkpoint.is_dir() or is_finished or is_sharded(args):
        return
    if missing := [name for name in ("optimizer.pt", "scheduler.pt") if not (checkpoint / name).is_file()]:
        raise ValueError(
            f"{checkpoint} has no {missing[0]} (save_only_model?), so that its run cannot continue; start a new one "
            "from it: model_name_or_path=… and another output_dir."
        )


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint is complete (its `trainer_state.json` is written last) and no file of it is cut off."""
    files = [path for path in checkpoint.rglob("*") if path.is_file()]
    broken = [path.name for path in files if not _is_whole_file(path)]
    if broken:
        logger.warning(f"{checkpoint} is damaged: {', '.join(broken)}")
    return not broken and (checkpoint / "trainer_state.json").is_file()


def _is_whole_file(path: Path) -> bool:
    """Whether a file ends where its header says, and an index has its shards."""
    try:
        if path.suffix == ".json":
            content = json.loads(path.read_text(encoding="utf-8"))
            shards = content.get("weight_map", {}).values() if isinstance(content, dict) else ()
            return all((path.parent / shard).is_file() for shard in shards)
        if path.suffix == ".safetensors":
            safe_open(path, "pt")
        return path.suffix not in (".pt", ".pth", ".bin") or zipfile.is_zipfile(path)
    except Exception:  # any error of a reader on a damaged file
        return False

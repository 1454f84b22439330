# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""Seeing a run: speed, visual tokens, memory and time left in Trainer's log lines; a plot of the loss at its end."""

import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate.utils import reduce
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.integrations import get_reporting_integration_callbacks
from transformers.utils import logging

from ..io import LOSS_PLOT, staged_file


logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class Mark:
    """What all processes together had seen when."""

    seconds: float
    step: int
    samples: int
    tokens: int
    visual_tokens: int

    def rates_since(self, earlier: "Mark") -> dict[str, float]:
        seconds, tokens = self.seconds - earlier.seconds, self.tokens - earlier.tokens
        return {
            "samples_per_second": round((self.samples - earlier.samples) / seconds, 3),
            "tokens_per_second": round(tokens / seconds, 1),
            "visual_token_share": round((self.visual_tokens - earlier.visual_tokens) / tokens, 4),
        }


class SpeedCallback(TrainerCallback):
    """Adds to every log line that has a loss what was done since the one before: `samples_per_second`,
    `tokens_per_second` (padding is none), `visual_token_share` of these tokens; and `peak_memory_gb`, `minutes_left`.

    `summary()` gives the same of the whole run, from where it was resumed.
    """

    def __init__(self, image_token_id: int):
        self.image_token_id = image_token_id

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.counts = torch.zeros(3, dtype=torch.long, device=args.device)  # samples, tokens, visual tokens
        self.start = self.last = self._mark(state)
        self.hook = model.register_forward_pre_hook(self._count, with_kwargs=True)

    def on_train_end(self, args, state, control, **kwargs):
        self.hook.remove()
        self.last, self.device = self._mark(state), args.device

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" not in logs:
            return
        now = self._mark(state)
        seconds_per_step = (now.seconds - self.start.seconds) / (now.step - self.start.step)
        added = now.rates_since(self.last) | {
            "peak_memory_gb": peak_memory_gb(args.device),
            "minutes_left": round((state.max_steps - now.step) * seconds_per_step / 60, 2),
        }
        self.last = now
        logs |= added  # for the progress bar and report_to
        state.log_history[-1] |= added

    def summary(self) -> dict[str, float]:
        """Empty where a resumed run had nothing left to do."""
        if self.last.step == self.start.step:
            return {}
        return self.last.rates_since(self.start) | {"peak_memory_gb": peak_memory_gb(self.device)}

    def _count(self, model, args: tuple, batch: dict):
        if not model.training:
            return
        positions = batch.get("position_ids")
        if positions is None:
            samples, tokens = len(batch["input_ids"]), batch["attention_mask"].sum()
        else:  # packed: each sample counts from 0 to 1 at least, padding stays at 0
            samples = (positions == 1).sum()
            tokens = (positions > 0).sum() + samples
        visual_tokens = (batch["input_ids"] == self.image_token_id).sum()
        for index, count in enumerate((samples, tokens, visual_tokens)):
            self.counts[index] += count

    def _mark(self, state) -> Mark:
        return Mark(time.monotonic(), state.global_step, *reduce(self.counts, "sum").tolist())


def watch(trainer: Trainer, image_token_id: int) -> SpeedCallback:
    """Lets a [`SpeedCallback`] see the run, in front of the callbacks that show and report what it adds."""
    callback = SpeedCallback(image_token_id)
    trainer.callback_handler.callbacks.insert(0, callback)
    return callback


def peak_memory_gb(device: torch.device) -> float:
    """The most memory that this process has held, in 10^9 bytes: of a GPU where it trains on one, else of RAM."""
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
    """Draws the logged losses to `LOSS_PLOT`. What keeps it from that is logged; a finished run never fails for it."""
    points = [(entry["step"], entry["loss"]) for entry in log_history if "loss" in entry]
    if not points:
        logger.warning("no plot of the loss: none was logged; logging_steps sets how often.")
        return
    try:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        axes.plot(*zip(*points), linewidth=1)
        axes.set(xlabel="step", ylabel="loss")
        axes.grid(alpha=0.3)
        with staged_file(folder / LOSS_PLOT) as part:
            figure.savefig(part, format="png", dpi=120)
    except ImportError:
        logger.warning("no plot of the loss: matplotlib is missing, pip install 'omnifusion_hf[plot]'.")
    except Exception as error:
        logger.warning(f"no plot of the loss: {error}")

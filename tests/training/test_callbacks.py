"""Seeing a run: what the log lines say is what was done; the plot is drawn, and never fails a run."""

import json
import logging
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import conversations
import pytest
import tiny
import torch
from PIL import Image
from transformers import TrainerCallback
from transformers.trainer_callback import TrainerControl, TrainerState

from omnifusion_hf import hub
from omnifusion_hf.training import progress
from omnifusion_hf.training.arguments import parse_recipe
from omnifusion_hf.training.collators import PaddingCollator
from omnifusion_hf.training.packing import PackingCollator
from omnifusion_hf.training.preprocessing import ConversationEncoder
from omnifusion_hf.training.progress import LOSS_PLOT, Mark, SpeedCallback, peak_memory_gb, plot_loss
from omnifusion_hf.training.train import train


FIGURES = {"samples_per_second", "tokens_per_second", "visual_token_share", "peak_memory_gb"}
PROCESSOR = tiny.processor(tiny.config())
SAMPLES = [ConversationEncoder(PROCESSOR)(item) for item in (conversations.NONE, conversations.ONE, conversations.TWO)]
TOKENS = sum(len(sample["input_ids"]) for sample in SAMPLES)


def test_rates_are_of_what_lies_between_two_marks():
    earlier = Mark(seconds=10, step=3, samples=8, tokens=100, visual_tokens=60)
    later = Mark(seconds=14, step=5, samples=16, tokens=500, visual_tokens=160)
    rates = {"samples_per_second": 2.0, "tokens_per_second": 100.0, "visual_token_share": 0.25}
    assert later.rates_since(earlier) == rates


@pytest.mark.parametrize("packed", [False, True])
def test_padding_is_not_counted_and_packed_samples_are(packed):
    pad = PROCESSOR.tokenizer.pad_token_id
    longest = max(len(sample["input_ids"]) for sample in SAMPLES)
    batch = (PackingCollator(pad, longest + 9) if packed else PaddingCollator(pad))(SAMPLES)
    assert batch["input_ids"].numel() > TOKENS
    model = torch.nn.Identity()
    callback, state = SpeedCallback(PROCESSOR.image_token_id), TrainerState(max_steps=9)
    callback.on_train_begin(type("Args", (), {"device": torch.device("cpu")}), state, TrainerControl(), model=model)
    model.register_forward_hook(lambda *_: None)
    model.forward = lambda **_: None
    model(**batch)
    visual_tokens = 3 * PROCESSOR.image_seq_length
    assert callback.counts.tolist() == [3, TOKENS, visual_tokens]
    model.eval()(**batch)  # an evaluation
    assert callback.counts.tolist() == [3, TOKENS, visual_tokens]


def test_a_log_line_is_of_what_was_done_since_the_one_before(monkeypatch):
    clock = iter([0, 10, 12])
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    callback, state = SpeedCallback(0), TrainerState(max_steps=10)
    args = SimpleNamespace(device=torch.device("cpu"))
    callback.on_train_begin(args, state, TrainerControl(), model=torch.nn.Identity())
    for state.global_step in (1, 2):
        callback.counts += torch.tensor([20, 400, 100])
        state.log_history.append({"loss": 1.0})
        callback.on_log(args, state, TrainerControl(), logs={"loss": 1.0})
    assert [line["samples_per_second"] for line in state.log_history] == [2, 10]
    assert [line["minutes_left"] for line in state.log_history] == [1.5, 0.8]  # 9 steps of 10 s, 8 of 6 s


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of six steps: its folder, its summary and what a reporting tool was told."""
    folder, told = tmp_path_factory.mktemp("run"), []

    class Reporter(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            told.append(dict(logs))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.trainer.get_reporting_integration_callbacks", lambda report_to: [Reporter])
        base = conversations.write_model(folder / "base")
        recipe = conversations.write_recipe(folder, base, max_steps=6, gradient_accumulation_steps=2)
        summary = train(*parse_recipe(recipe))
    return folder / "out", summary, told


def test_log_lines_and_reports_say_speed_memory_and_time_left(finished):
    folder, _, told = finished
    history = json.loads((folder / "checkpoint-6/trainer_state.json").read_text())["log_history"]
    lines = [entry for entry in history if "loss" in entry]
    assert len(lines) == 6
    assert lines == [entry | {"step": step} for step, entry in enumerate(told[:6], 1)]
    assert all(FIGURES <= line.keys() and min(line[figure] for figure in FIGURES) > 0 for line in lines)
    left = [line["minutes_left"] for line in lines]
    assert left[-1] == 0 and all(minutes >= 0 for minutes in left)


def test_summary_is_of_the_whole_run_and_reaches_the_card(finished):
    folder, summary, told = finished
    assert FIGURES <= summary.keys()
    # Trainer's own figure, of the same time; six steps of two times two samples are three whole epochs.
    assert summary["samples_per_second"] == pytest.approx(told[-1]["train_samples_per_second"], rel=0.05)
    assert 0.25 < summary["visual_token_share"] < 0.4
    card = hub.render_card(folder, hub.CardFacts()).text
    assert f"| tokens per second | {summary['tokens_per_second']} |" in card
    assert f"![Loss of each logged step]({LOSS_PLOT})" in card
    (folder / LOSS_PLOT).unlink()
    assert LOSS_PLOT not in hub.render_card(folder, hub.CardFacts()).text


def test_resumed_run_with_nothing_left_to_do_says_no_speed():
    callback, state = SpeedCallback(0), TrainerState(max_steps=4, global_step=4)
    args = type("Args", (), {"device": torch.device("cpu")})
    callback.on_train_begin(args, state, TrainerControl(), model=torch.nn.Identity())
    callback.on_train_end(args, state, TrainerControl())
    assert callback.summary() == {}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the kernel's own figure is Linux's")
def test_peak_memory_is_that_of_this_process():
    kilobytes = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]
    assert peak_memory_gb(torch.device("cpu")) == pytest.approx(int(kilobytes) * 1024 / 1e9, rel=0.01)


def test_plot_is_an_image_of_the_losses(tmp_path):
    history = [{"step": step, "loss": 1 / step} for step in range(1, 9)] + [{"step": 8, "train_runtime": 1}]
    drawn = []
    for entries in (history, history, history[:4]):
        plot_loss(entries, tmp_path)
        drawn.append(Image.open(tmp_path / LOSS_PLOT).convert("RGB").tobytes())
    assert drawn[0] == drawn[1] != drawn[2]


def test_without_matplotlib_or_with_a_full_disk_the_log_says_so(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(progress.logger, "propagate", True, raising=False)
    logging.getLogger("transformers").propagate = True
    history = [{"step": 1, "loss": 1.0}]
    (tmp_path / "no_folder").touch()
    plot_loss(history, tmp_path / "no_folder")
    assert "no plot of the loss" in caplog.text and "no_folder" in caplog.text
    plot_loss([{"step": 1, "train_runtime": 1}], tmp_path)
    assert "none was logged" in caplog.text
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    plot_loss(history, tmp_path)
    assert "pip install 'omnifusion_hf[plot]'" in caplog.text and len(list(tmp_path.iterdir())) == 1

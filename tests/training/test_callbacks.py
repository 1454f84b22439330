"""Callbacks of a run: figures of its speed, its plot; signals that stop it; resuming as if it had not stopped."""

import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import conversations
import pytest
import ranks
import tiny
import torch
import training_runs
from PIL import Image
from training_runs import changed, command, log_of, run, weights
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from omnifusion_hf import hub
from omnifusion_hf.io import LOSS_PLOT
from omnifusion_hf.training import callbacks
from omnifusion_hf.training.arguments import parse_recipe
from omnifusion_hf.training.callbacks import IdentityCallback, SaveAndStop, SpeedCallback, checkpoint_to_resume
from omnifusion_hf.training.collators import PackingCollator, PaddingCollator
from omnifusion_hf.training.preprocessing import ConversationEncoder


FIGURES = {"samples_per_second", "tokens_per_second", "visual_token_share", "peak_memory_gb"}
PROCESSOR = tiny.processor(tiny.config())
SAMPLES = list(map(ConversationEncoder(PROCESSOR), (conversations.NONE, conversations.ONE, conversations.TWO)))
ON_CPU = SimpleNamespace(device=torch.device("cpu"))
TOKENS = sum(len(sample["input_ids"]) for sample in SAMPLES)


@pytest.mark.parametrize("packed", [False, True])
def test_padding_is_not_counted_and_packed_samples_are(packed):
    pad = PROCESSOR.tokenizer.pad_token_id
    longest = max(len(sample["input_ids"]) for sample in SAMPLES)
    batch = (PackingCollator(pad, longest + 9) if packed else PaddingCollator(pad))(SAMPLES)
    assert batch["input_ids"].numel() > TOKENS
    callback = SpeedCallback(PROCESSOR.image_token_id)
    callback.on_train_begin(ON_CPU, TrainerState(max_steps=9), TrainerControl())
    callback.count(batch)
    assert callback.counts.tolist() == [3, TOKENS, 3 * PROCESSOR.image_seq_length]


def test_a_log_line_is_of_what_was_done_since_the_one_before_and_nothing_has_no_speed(monkeypatch):
    """In a run that was resumed at step 4."""
    clock = iter([5, 15, 18, 18, 20, 20])
    monkeypatch.setattr(callbacks, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    callback, state = SpeedCallback(0), TrainerState(max_steps=14, global_step=4)
    callback.on_train_begin(ON_CPU, state, TrainerControl())
    lines = []
    for state.global_step in (5, 6):
        callback.counts += torch.tensor([20, 700, 100])
        lines.append(callback.figures(state))
    assert [line["samples_per_second"] for line in lines] == [2, 6.667]
    assert [line["tokens_per_second"] for line in lines] == [70, 233.3]
    assert [line["visual_token_share"] for line in lines] == [0.1429, 0.1429]
    assert [line["minutes_left"] for line in lines] == [1.5, 0.87]  # 9 steps of 10 s, 8 of 6.5 s
    callback.on_train_end(ON_CPU, state, TrainerControl())
    assert (callback.summary()["samples_per_second"], callback.summary()["tokens_per_second"]) == (3.077, 107.7)
    callback.on_train_begin(ON_CPU, state, TrainerControl())  # a resumed run without a step left
    callback.on_train_end(ON_CPU, state, TrainerControl())
    assert callback.summary() == {}


def test_speed_memory_and_time_left_reach_log_lines_reports_summary_and_card(base, tmp_path, monkeypatch):
    folder, reported = tmp_path / "out", []

    class Reporter(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            reported.append(dict(logs))

    monkeypatch.setattr("transformers.trainer.get_reporting_integration_callbacks", lambda report_to: [Reporter])
    summary = run(tmp_path, base, max_steps=6, gradient_accumulation_steps=2)
    lines = log_of(folder)
    assert len(lines) == 6 and lines == [entry | {"step": step} for step, entry in enumerate(reported[:6], 1)]
    assert all(FIGURES <= line.keys() and min(line[figure] for figure in FIGURES) > 0 for line in lines)
    assert lines[-1]["minutes_left"] == 0 == min(line["minutes_left"] for line in lines)
    assert FIGURES <= summary.keys()
    # Trainer's own figure, of the same time; six steps of two times two samples are three whole epochs.
    assert summary["samples_per_second"] == pytest.approx(reported[-1]["train_samples_per_second"], rel=0.05)
    assert 0.25 < summary["visual_token_share"] < 0.4
    card = hub.render_card(folder, hub.CardFacts()).text
    assert f"| tokens per second | {summary['tokens_per_second']} |" in card
    assert f"![Loss of each logged step]({LOSS_PLOT})" in card
    (folder / LOSS_PLOT).unlink()
    assert LOSS_PLOT not in hub.render_card(folder, hub.CardFacts()).text


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the kernel's own figure is Linux's")
def test_peak_memory_is_that_of_this_process():
    kilobytes = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]
    assert callbacks.peak_memory_gb(torch.device("cpu")) == pytest.approx(int(kilobytes) * 1024 / 1e9, rel=0.01)


def test_plot_is_an_image_of_the_losses_and_the_log_says_why_there_is_none(tmp_path, monkeypatch):
    history = [{"step": step, "loss": 1 / step} for step in range(1, 9)] + [{"step": 8, "train_runtime": 1}]
    drawn, warned = [], []
    for entries in (history, history, history[:4]):
        callbacks.plot_loss(entries, tmp_path)
        drawn.append(Image.open(tmp_path / LOSS_PLOT).convert("RGB").tobytes())
    assert drawn[0] == drawn[1] != drawn[2]
    monkeypatch.setattr(callbacks.logger, "warning", warned.append)
    callbacks.plot_loss(history, tmp_path / LOSS_PLOT)
    callbacks.plot_loss(history[8:], tmp_path)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    callbacks.plot_loss(history, tmp_path)
    reasons = LOSS_PLOT, "none was logged", "pip install 'omnifusion_hf[plot]'"
    for warning, reason in zip(warned, reasons, strict=True):
        assert warning.startswith("no plot of the loss: ") and reason in warning
    assert len(list(tmp_path.iterdir())) == 1


STEPS = 8


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A model with dropout in its adapter: the state of the random numbers counts too."""
    return conversations.write_model(tmp_path_factory.mktemp("base"), projector_type="transformer")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, base) -> Path:
    """The folder of an undisturbed run."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert command(recipe(folder, base)) == 0
    return folder


def recipe(folder: Path, base: Path, **changes) -> Path:
    """Two epochs over shuffled samples, a checkpoint every third step."""
    fields = {"max_steps": STEPS, "save_steps": 3, "lr_scheduler_type": "cosine"}
    return conversations.write_recipe(folder, base, **fields | changes)


def mixed_and_packed(folder: Path, base: Path) -> Path:
    """As `recipe`, of a mixture of two sources, several samples to a row, read by a worker process."""
    sources = ({"path": str(folder / "data/samples.json"), "weight": weight} for weight in (1, 2))
    changes = {"stage": "finetune", "packing": True, "max_length": 160, "dataloader_num_workers": 1}
    path = recipe(folder, base, data_path=str(folder / "mixture.yaml"), **changes)
    conversations.write_mixture(folder, *sources)
    return path


def checkpoints(folder: Path) -> set[int]:
    return {int(path.name.split("-")[1]) for path in (folder / "out").glob("checkpoint-*")}


def assert_same_run(one: Path, other: Path):
    keys = ("step", "loss", "grad_norm", "learning_rate")
    logs = [training_runs.figures(folder / "out", *keys) for folder in (one, other)]
    assert logs[0] == logs[1] and len(logs[0]) == STEPS
    assert not changed(weights(one / "out"), weights(other / "out"))


def send_in_step(patch: pytest.MonkeyPatch, number: int, step: int):
    """Sends this process a signal in the middle of a step."""

    def send(callback, args, state, control, **kwargs):
        if state.global_step + 1 == step:
            os.kill(os.getpid(), number)

    patch.setattr(SaveAndStop, "on_pre_optimizer_step", send)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_saves_at_the_steps_end_and_the_run_goes_on_as_if_undisturbed(tmp_path, base, whole, capsys, number):
    path, before = recipe(tmp_path / "stopped", base), signal.getsignal(number)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stop:
        send_in_step(patch, number, step=5)
        command(path)
    assert stop.value.code == 128 + number and signal.getsignal(number) is before
    assert f"{number.name}: stopped with a checkpoint at step 5 of {STEPS}" in capsys.readouterr().err
    assert checkpoints(tmp_path / "stopped") == {3, 5}
    assert not (tmp_path / "stopped/out/training_summary.json").exists()
    with pytest.MonkeyPatch.context() as patch:
        send_in_step(patch, number, step=STEPS)  # in the last step: nothing is left to resume
        assert command(path, "--resume") == 0
    assert_same_run(tmp_path / "stopped", whole)
    assert (tmp_path / "stopped/out/training_summary.json").exists()


def test_second_ctrl_c_stops_at_once_unless_a_launcher_repeats_the_first(monkeypatch):
    stop = SaveAndStop()
    stop._note(signal.SIGINT, None)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    stop._note(signal.SIGINT, None)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    with pytest.raises(KeyboardInterrupt):
        stop._note(signal.SIGINT, None)


def die_while_saving(path: Path, step: int):
    """Trains until, in the middle of writing this step's checkpoint, kill -9 ends it."""
    multiprocessing.set_start_method("fork", force=True)  # the loader's workers see that this process is dead, and end
    save = Trainer._save_rng_state

    def die(trainer: Trainer, folder: str):
        if trainer.state.global_step == step:
            os.kill(os.getpid(), signal.SIGKILL)
        save(trainer, folder)

    Trainer._save_rng_state = die
    command(path)


@pytest.mark.parametrize("make", [recipe, mixed_and_packed])
def test_run_killed_in_the_middle_of_a_checkpoint_goes_on_from_the_one_before_as_if_undisturbed(tmp_path, base, make):
    assert command(make(tmp_path / "whole", base)) == 0
    path = make(tmp_path / "killed", base)
    process = multiprocessing.get_context("forkserver").Process(target=die_while_saving, args=(path, 6))
    process.start()
    process.join(150)
    assert process.exitcode == -signal.SIGKILL
    assert (tmp_path / "killed/out/checkpoint-6/model.safetensors").exists()
    assert command(path, "--resume") == 0
    assert_same_run(tmp_path / "killed", tmp_path / "whole")


def test_control_without_the_random_state_the_runs_differ(tmp_path, whole):
    out = shutil.copytree(whole / "out", tmp_path / "out")
    for file in out.glob("checkpoint-*/rng_state.pth"):
        file.unlink()
    for step in (6, STEPS):
        (out / f"checkpoint-{step}/trainer_state.json").unlink()
    assert command(whole / "recipe.yaml", f"output_dir={out}", "--resume") == 0
    with pytest.raises(AssertionError):
        assert_same_run(tmp_path, whole)


def test_resuming_takes_the_last_checkpoint_or_the_named_one_and_nothing_starts_among_others(tmp_path):
    def resumed(given: str) -> str | None:
        return checkpoint_to_resume(TrainingArguments(str(tmp_path), resume_from_checkpoint=given, use_cpu=True), {})

    assert [resumed(given) for given in ("true", "false", "a/b")] == [None, None, "a/b"]
    for name in ("checkpoint-3", "checkpoint-10", "checkpoint-old", "checkpoint-12-copy", "my-checkpoint-19"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "trainer_state.json").write_text("{}")
        for part in ("optimizer.pt", "scheduler.pt"):
            torch.save({}, tmp_path / name / part)
    assert [resumed(given) for given in ("true", "a/b")] == [str(tmp_path / "checkpoint-10"), "a/b"]
    with pytest.raises(ValueError, match="checkpoint-10 is of an earlier run"):
        resumed("false")
    (tmp_path / "checkpoint-10/optimizer.pt").unlink()
    with pytest.raises(ValueError, match="checkpoint-10 has no optimizer.pt"):
        resumed("true")
    (tmp_path / "training_summary.json").write_text("{}")
    assert resumed("true") == str(tmp_path / "checkpoint-10")  # nothing is left to train
    for checkpoint in tmp_path.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    with pytest.raises(ValueError, match="holds the model of a finished run"):
        resumed("true")


def test_damaged_checkpoint_is_passed_over_and_refused_where_it_is_named(tmp_path, base):
    path = recipe(tmp_path / "run", base, max_steps=2, save_steps=1)
    assert command(path) == 0
    (tmp_path / "run/out/training_summary.json").unlink()  # as if it had been interrupted
    first, second = (tmp_path / f"run/out/checkpoint-{step}" for step in (1, 2))
    last, named = (parse_recipe(path, [f"resume_from_checkpoint={each}"])[1] for each in ("true", second))
    (second / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model.safetensors"}}')
    assert checkpoint_to_resume(last, {}) == checkpoint_to_resume(named, {}) == str(second)
    files = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "config.json", "trainer_state.json")
    damaged = {name: (second / name).read_bytes()[:-40] for name in files}
    damaged["model.safetensors.index.json"] = b'{"weight_map": {"a": "a_missing_shard.safetensors"}}'
    for name, content in damaged.items():
        undamaged = (second / name).read_bytes()
        (second / name).write_bytes(content)
        assert checkpoint_to_resume(last, {}) == str(first), name
        with pytest.raises(ValueError, match="checkpoint-2 is incomplete or damaged"):
            checkpoint_to_resume(named, {})
        (second / name).write_bytes(undamaged)
    for checkpoint, found in ((second, str(first)), (first, None)):  # written last
        (checkpoint / "trainer_state.json").unlink()
        assert checkpoint_to_resume(last, {}) == found


def test_complete_run_that_is_resumed_stays_as_it_is(tmp_path, base, capsys):
    """Also in the middle of an epoch; with another step to go it goes on."""
    path = recipe(tmp_path / "run", base, max_steps=3, lr_scheduler_type="constant")
    results, summary = [], tmp_path / "run/out/training_summary.json"
    for options in ([], ["--resume"], ["max_steps=4", "--resume"]):
        before = summary.read_bytes() if options else None
        assert command(path, *options) == 0
        results.append(weights(tmp_path / "run/out"))
        assert (summary.read_bytes() == before) == (len(options) == 1)
        assert json.loads(summary.read_text())["steps"] == 3 + (len(options) > 1)
    first, again, longer = results
    assert not changed(first, again) and changed(first, longer) and checkpoints(tmp_path / "run") == {3, 4}
    assert command(path) == 2
    assert "checkpoint-4 is of an earlier run: continue it with --resume, or change" in capsys.readouterr().err


def test_a_resumed_run_saves_and_logs_as_its_recipe_says_now(tmp_path):
    state = TrainerState(max_steps=9, save_steps=100, logging_steps=50)  # a checkpoint's
    args = TrainingArguments(str(tmp_path), save_steps=2, logging_steps=1, use_cpu=True)
    IdentityCallback({}).on_train_begin(args, state, TrainerControl())
    assert (state.save_steps, state.logging_steps) == (2, 1)


def test_summary_is_that_of_a_complete_run(tmp_path):
    summary = tmp_path / "training_summary.json"
    summary.write_text("{}")
    begin, args = IdentityCallback({"stage": "lora"}), TrainingArguments(str(tmp_path), use_cpu=True)
    for step, left in ((3, "training_summary.json"), (2, "training_settings.json")):
        begin.on_train_begin(args, TrainerState(max_steps=3, global_step=step), TrainerControl())
        assert begin.complete == (step == 3) and [path.name for path in tmp_path.iterdir()] == [left]
    for notes, over in (({"steps": 3}, True), ({"steps": 2, "stopped_early": True}, True), ({"steps": 2}, False)):
        summary.write_text(json.dumps(notes))  # the last checkpoint is older
        (tmp_path / "model.safetensors").touch()
        begin.on_train_begin(args, TrainerState(max_steps=3, global_step=2), TrainerControl())
        assert begin.complete == summary.is_file() == over


@pytest.mark.parametrize("number, epoch, evaluates", [(15, 1.5, False), (15, 2.0, True), (0, 1.5, True)])
def test_a_signal_ends_no_epoch(number, epoch, evaluates, tmp_path):
    stop, control = SaveAndStop(), TrainerControl(should_evaluate=True, should_save=True)
    stop.signal = number
    stop.on_epoch_end(TrainingArguments(str(tmp_path), use_cpu=True), TrainerState(epoch=epoch), control)
    assert control.should_evaluate == control.should_save == evaluates


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_of_a_terminal_or_scheduler_reaches_workers_too_and_still_saves(tmp_path, base, number):
    path = recipe(tmp_path / "run", base, max_steps=100000, dataloader_num_workers=1)
    command = [sys.executable, "-m", "omnifusion_hf.cli", "train", str(path)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 120
    while not (tmp_path / "run/out/checkpoint-3/trainer_state.json").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number and f"{number.name}: stopped with a checkpoint at step" in errors
    assert callbacks.is_whole(tmp_path / f"run/out/checkpoint-{max(checkpoints(tmp_path / 'run'))}")


def stop_one_of_two(rank: int, folder: Path):
    ranks.join_as(rank, folder / "store")
    stop, control = SaveAndStop(), TrainerControl()
    stop.signal = signal.SIGTERM if rank == 1 else 0
    stop.on_step_end(TrainingArguments(str(folder), use_cpu=True), TrainerState(), control)
    (folder / f"{rank}").write_text(f"{control.should_save} {control.should_training_stop} {int(stop.signal)}")


def test_signal_to_one_rank_stops_all_at_the_same_step(tmp_path):
    assert ranks.start_ranks(stop_one_of_two, tmp_path) == [0, 0]
    assert [(tmp_path / name).read_text() for name in "01"] == ["True True 15"] * 2

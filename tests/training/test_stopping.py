"""Signals stop a run with a checkpoint; a run that was cut off anywhere goes on as if it had not been."""

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import conversations
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import distributed as dist
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from omnifusion_hf.cli import main
from omnifusion_hf.training import train as train_module
from omnifusion_hf.training.stopping import SaveAndStop, begin_run, checkpoint_to_resume, is_whole
from omnifusion_hf.training.train import parse_recipe


STEPS = 8


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A model with dropout in its adapter: the state of the random numbers counts too."""
    return conversations.write_model(tmp_path_factory.mktemp("base"), projector_type="transformer")


def recipe(folder: Path, base: Path, **changes) -> Path:
    """Two epochs over shuffled samples, a checkpoint every third step."""
    folder.mkdir()
    fields = {"max_steps": STEPS, "save_steps": 3, "lr_scheduler_type": "cosine"}
    return conversations.write_recipe(folder, base, **fields | changes)


def mixed_and_packed(folder: Path, base: Path) -> Path:
    """As `recipe`, of a mixture of two sources, several samples to a row, read by a worker process."""
    path = recipe(folder, base, packing=True, max_length=160, dataloader_num_workers=1)
    fields = yaml.safe_load(path.read_text())
    sources = [{"path": fields["data_path"], "weight": weight} for weight in (1, 2)]
    (folder / "mixture.yaml").write_text(yaml.safe_dump({"sources": sources}))
    path.write_text(yaml.safe_dump(fields | {"data_path": str(folder / "mixture.yaml")}))
    return path


def run(path: Path, *options: str) -> int:
    return main(["train", str(path), *options])


def checkpoints(folder: Path) -> set[int]:
    return {int(path.name.split("-")[1]) for path in (folder / "out").glob("checkpoint-*")}


def log_of(folder: Path) -> list[dict]:
    """What was logged of each step, without times."""
    state = json.loads((folder / f"out/checkpoint-{STEPS}/trainer_state.json").read_text())
    keys = ("step", "loss", "grad_norm", "learning_rate")
    return [{key: entry[key] for key in keys} for entry in state["log_history"] if "loss" in entry]


def assert_same_run(one: Path, other: Path):
    assert log_of(one) == log_of(other) and len(log_of(one)) == STEPS
    first, second = (load_file(folder / "out/model.safetensors") for folder in (one, other))
    assert all(torch.equal(first[name], second[name]) for name in first)


class SignalAtStep(TrainerCallback):
    """Sends this process a signal in the middle of a step."""

    def __init__(self, number: int, step: int):
        self.number, self.step = number, step

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step + 1 == self.step:
            os.kill(os.getpid(), self.number)


def send_in_step(patch: pytest.MonkeyPatch, number: int, step: int):
    def trainer(**options) -> Trainer:
        return Trainer(**options, callbacks=[SignalAtStep(number, step)])

    patch.setattr(train_module, "Trainer", trainer)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_saves_at_the_steps_end_and_the_run_goes_on_as_if_undisturbed(tmp_path, base, capsys, number):
    assert run(recipe(tmp_path / "whole", base)) == 0
    path, before = recipe(tmp_path / "stopped", base), signal.getsignal(number)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stop:
        send_in_step(patch, number, step=5)
        run(path)
    assert stop.value.code == 128 + number and signal.getsignal(number) is before
    assert f"{number.name}: stopped with a checkpoint at step 5 of {STEPS}" in capsys.readouterr().err
    assert checkpoints(tmp_path / "stopped") == {3, 5}
    assert not (tmp_path / "stopped/out/training_summary.json").exists()
    assert run(path, "--resume") == 0
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")


def test_signal_in_the_last_step_ends_a_finished_run(tmp_path, base, monkeypatch):
    send_in_step(monkeypatch, signal.SIGTERM, step=STEPS)
    assert run(recipe(tmp_path / "run", base)) == 0
    assert (tmp_path / "run/out/training_summary.json").exists()


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
    save = Trainer._save_rng_state

    def die(trainer: Trainer, folder: str):
        if trainer.state.global_step == step:
            os.kill(os.getpid(), signal.SIGKILL)
        save(trainer, folder)

    Trainer._save_rng_state = die
    run(path)


@pytest.mark.parametrize("make", [recipe, mixed_and_packed])
def test_run_killed_in_the_middle_of_a_checkpoint_goes_on_from_the_one_before_as_if_undisturbed(tmp_path, base, make):
    assert run(make(tmp_path / "whole", base)) == 0
    path = make(tmp_path / "killed", base)
    process = multiprocessing.get_context("forkserver").Process(target=die_while_saving, args=(path, 6))
    process.start()
    process.join(150)
    assert process.exitcode == -signal.SIGKILL
    assert checkpoints(tmp_path / "killed") == {3, 6}
    assert (tmp_path / "killed/out/checkpoint-6/model.safetensors").exists()
    assert run(path, "--resume") == 0
    assert_same_run(tmp_path / "killed", tmp_path / "whole")


def test_control_without_the_random_state_the_runs_differ(tmp_path, base):
    for name in ("whole", "stopped"):
        assert run(recipe(tmp_path / name, base)) == 0
    for file in tmp_path.glob("stopped/out/checkpoint-*/rng_state.pth"):
        file.unlink()
    for step in (6, STEPS):
        (tmp_path / f"stopped/out/checkpoint-{step}/trainer_state.json").unlink()
    assert run(tmp_path / "stopped/recipe.yaml", "--resume") == 0
    with pytest.raises(AssertionError):
        assert_same_run(tmp_path / "stopped", tmp_path / "whole")


def test_half_written_checkpoints_are_not_resumed_from(tmp_path):
    args = TrainingArguments(str(tmp_path), resume_from_checkpoint="true", use_cpu=True)
    for step in (3, 6, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}/trainer_state.json").write_text("{}")
        torch.save({"cpu": torch.zeros(9)}, tmp_path / f"checkpoint-{step}/rng_state.pth")
    assert checkpoint_to_resume(args, {}).endswith("checkpoint-10")
    states = (tmp_path / "checkpoint-10/rng_state.pth").read_bytes()
    (tmp_path / "checkpoint-10/rng_state.pth").write_bytes(states[:-9])
    assert checkpoint_to_resume(args, {}).endswith("checkpoint-6")
    (tmp_path / "checkpoint-6/trainer_state.json").write_text('{"log_history": [')
    assert checkpoint_to_resume(args, {}).endswith("checkpoint-3")
    (tmp_path / "checkpoint-3/trainer_state.json").unlink()
    assert checkpoint_to_resume(args, {}) is None


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.pt", "scheduler.pt", "config.json"])
def test_checkpoint_with_a_file_that_is_cut_off_is_passed_over_and_refused_where_it_is_named(tmp_path, base, file):
    path = recipe(tmp_path / "run", base, max_steps=2, save_steps=1)
    assert run(path) == 0
    out = tmp_path / "run/out"
    last = parse_recipe(path, ["resume_from_checkpoint=true"])[1]
    assert checkpoint_to_resume(last, {}).endswith("checkpoint-2")
    cut = out / "checkpoint-2" / file
    cut.write_bytes(cut.read_bytes()[:-40])
    assert checkpoint_to_resume(last, {}).endswith("checkpoint-1")
    named = parse_recipe(path, [f"resume_from_checkpoint={out}/checkpoint-2"])[1]
    with pytest.raises(ValueError, match="checkpoint-2 was not written to its end or is damaged"):
        checkpoint_to_resume(named, {})


def test_checkpoint_without_one_of_its_shards_is_not_whole(tmp_path):
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "trainer_state.json").write_text("{}")
    for number, whole in ((1, False), (2, True)):
        save_file({"a": torch.zeros(9)}, tmp_path / f"model-0000{number}-of-00002.safetensors")
        assert is_whole(tmp_path) == whole


def test_folders_of_other_names_are_no_checkpoints(tmp_path):
    args = TrainingArguments(str(tmp_path), resume_from_checkpoint="true", use_cpu=True)
    for name in ("checkpoint-3", "checkpoint-old", "checkpoint-12-copy", "my-checkpoint-9"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "trainer_state.json").write_text("{}")
    assert checkpoint_to_resume(args, {}).endswith("checkpoint-3")


def test_run_is_not_resumed_as_another_and_none_starts_among_its_checkpoints(tmp_path, base, capsys):
    path = recipe(tmp_path / "run", base, max_steps=3)
    assert run(path) == 0
    others = {
        "stage=finetune": "stage was pretrain and is finetune",
        "learning_rate=0.5": "learning_rate was 0.01 and is 0.5",
        "optim=adafactor": "optimizer was .* and is adafactor",
        "data_seed=7": "data_seed was 42 and is 7",
        "gradient_accumulation_steps=2": "global_batch was 2 and is 4",
    }
    for other, message in others.items():
        assert run(path, other, "--resume") == 2
        assert re.search(f"checkpoint-3 is of a run with other settings: {message}. Go on", capsys.readouterr().err)
    assert run(path) == 2
    assert "checkpoint-3 is of an earlier run: go on from it by --resume, or change" in capsys.readouterr().err
    assert run(path, "max_steps=4", "bf16=true", "--resume") == 0
    assert checkpoints(tmp_path / "run") == {3, 4}


def test_complete_run_that_is_resumed_stays_as_it_is(tmp_path, base):
    """Also in the middle of an epoch; with another step to go it goes on."""
    path = recipe(tmp_path / "run", base, max_steps=3, lr_scheduler_type="constant")
    weights, summary = [], tmp_path / "run/out/training_summary.json"
    for options in ([], ["--resume"], ["max_steps=4", "--resume"]):
        before = summary.read_bytes() if options else None
        assert run(path, *options) == 0
        weights.append(load_file(tmp_path / "run/out/model.safetensors"))
        assert (summary.read_bytes() == before) == (len(options) == 1)
        assert json.loads((tmp_path / "run/out/training_summary.json").read_text())["steps"] == 3 + (len(options) > 1)
    first, again, longer = weights
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], longer[name]) for name in first)


def test_summary_is_that_of_a_complete_run(tmp_path):
    (tmp_path / "training_summary.json").write_text("{}")
    begin_run(TrainingArguments(str(tmp_path), use_cpu=True), {"stage": "lora"})
    assert [path.name for path in tmp_path.iterdir()] == ["training_settings.json"]


def test_ctrl_c_at_a_terminal_reaches_workers_too_and_still_saves(tmp_path, base):
    path = recipe(tmp_path / "run", base, max_steps=100000, dataloader_num_workers=1)
    command = [sys.executable, "-m", "omnifusion_hf.cli", "train", str(path)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 120
    while not (tmp_path / "run/out/checkpoint-3/trainer_state.json").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT and "SIGINT: stopped with a checkpoint at step" in errors
    args = TrainingArguments(str(tmp_path / "run/out"), resume_from_checkpoint="true", use_cpu=True)
    assert checkpoint_to_resume(args, {}).endswith(f"checkpoint-{max(checkpoints(tmp_path / 'run'))}")


def stop_one_of_two(rank: int, folder: Path):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    stop, control = SaveAndStop(), TrainerControl()
    stop.signal = signal.SIGTERM if rank == 1 else 0
    stop.on_step_end(TrainingArguments(str(folder), use_cpu=True), TrainerState(), control)
    (folder / f"{rank}").write_text(f"{control.should_save} {control.should_training_stop} {int(stop.signal)}")
    dist.destroy_process_group()


def test_signal_to_one_rank_stops_all_at_the_same_step(tmp_path):
    context = multiprocessing.get_context("forkserver")
    processes = [context.Process(target=stop_one_of_two, args=(rank, tmp_path)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(100)
    assert [(tmp_path / name).read_text() for name in "01"] == ["True True 15"] * 2

"""The shipped recipes are the paper's table, and their global batch is the same on any number of devices."""

import json
import subprocess
import sys
from pathlib import Path

import conversations
import pytest
import yaml

import omnifusion_hf
from omnifusion_hf.training.train import accumulation, parse_recipe, train


# PEFT 0.21 reads an attribute that transformers renamed
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

RECIPES = Path(omnifusion_hf.__file__).parent / "recipes"

# stage -> learning rate, global batch
PAPER = {"pretrain": (1e-3, 256), "finetune": (2e-5, 128), "lora": (2e-5, 128)}
# recipe -> stage, sequence length, conversation format
SHIPPED = {
    "pretrain": ("pretrain", 2048, "llava"),
    "sft": ("finetune", 2048, "llava"),
    "sft_lora": ("lora", 2048, "llava"),
    "sft_grid": ("finetune", 4096, "llava"),
    "tex_adapter": ("pretrain", 2048, "llava"),
    "tex_lora": ("lora", 2048, "llava"),
    "v1_1_pretrain": ("pretrain", 2048, "v1.1"),
    "v1_1_sft": ("finetune", 2048, "v1.1"),
}


def test_every_recipe_is_in_the_table_of_this_test():
    assert {path.stem for path in RECIPES.glob("*.yaml")} == set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_recipe_says_what_the_paper_says(name):
    stage, length, conversation_format = SHIPPED[name]
    model_data, args = parse_recipe(RECIPES / f"{name}.yaml", ["use_cpu=true"])
    assert (model_data.stage, model_data.max_length, model_data.conversation_format) == (
        stage,
        length,
        conversation_format,
    )
    assert (args.learning_rate, model_data.global_batch_size) == PAPER[stage]
    assert (args.weight_decay, args.bf16, args.num_train_epochs) == (0.0, True, 1)
    assert "adamw" in args.optim and model_data.optimizer is None
    assert model_data.vision_tuning == "frozen"
    assert args.output_dir == f"out/{name}"


@pytest.mark.parametrize("name", SHIPPED)
def test_global_batch_is_the_recipes_on_any_number_of_devices(name):
    given = yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))
    steps = [accumulation(given, processes)["gradient_accumulation_steps"] for processes in (1, 2, 4, 8)]
    batches = [given["per_device_train_batch_size"] * n * processes for n, processes in zip(steps, (1, 2, 4, 8))]
    assert batches == [PAPER[given["stage"]][1]] * 4
    args = parse_recipe(RECIPES / f"{name}.yaml", ["use_cpu=true"])[1]
    assert args.gradient_accumulation_steps == steps[0]


def test_stages_of_one_model_follow_each_other():
    """Each second recipe starts where its first one ends."""
    for first, second in [("pretrain", "sft"), ("pretrain", "sft_lora"), ("tex_adapter", "tex_lora")]:
        args = parse_recipe(RECIPES / f"{first}.yaml", ["use_cpu=true"])[1]
        assert parse_recipe(RECIPES / f"{second}.yaml", ["use_cpu=true"])[0].model_name_or_path == args.output_dir


@pytest.mark.parametrize(
    ("overrides", "processes", "message"),
    [
        ([], 3, "256 is no multiple of per_device_train_batch_size 8 x 3"),
        (["per_device_train_batch_size=512"], 1, "256 is no multiple of per_device_train_batch_size 512 x 1"),
        (["gradient_accumulation_steps=4"], 1, "global_batch_size or gradient_accumulation_steps, not both"),
        (["global_batch_size=many"], 1, "global_batch_size=many"),
        (["global_batch_size=0"], 1, "global_batch_size=0"),
    ],
)
def test_a_batch_that_cannot_be_made_is_refused_with_its_numbers(overrides, processes, message, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    with pytest.raises(ValueError, match=message):
        parse_recipe(RECIPES / "pretrain.yaml", ["use_cpu=true", *overrides])


def test_accumulation_may_be_given_instead():
    overrides = ["use_cpu=true", "global_batch_size=null", "gradient_accumulation_steps=4"]
    assert parse_recipe(RECIPES / "pretrain.yaml", overrides)[1].gradient_accumulation_steps == 4


def test_run_accumulates_to_the_global_batch_and_prints_it(tmp_path, capsys):
    base = conversations.write_model(tmp_path)
    summary = train(*parse_recipe(conversations.write_recipe(tmp_path, base, global_batch_size=8)))
    assert "global batch 8 = 2 per process x 1 processes x 4 steps of accumulation" in capsys.readouterr().out
    assert summary["global_batch"] == 8
    state = json.loads((tmp_path / "out/checkpoint-4/trainer_state.json").read_text())
    assert state["epoch"] == 4  # 4 steps on 8 samples


def test_batch_that_one_process_with_several_devices_makes_otherwise_is_refused(tmp_path, monkeypatch):
    base = conversations.write_model(tmp_path)
    model_data, args = parse_recipe(conversations.write_recipe(tmp_path, base, global_batch_size=8))
    monkeypatch.setattr(type(args), "train_batch_size", 4)
    with pytest.raises(ValueError, match="one process per device"):
        train(model_data, args)


def test_two_processes_learn_what_one_learns(tmp_path):
    """LoRA on LLM and encoders, one global batch; the control is a batch of half the size."""
    base = conversations.write_model(tmp_path)
    tuning = {"stage": "lora", "vision_tuning": "lora", "lora_rank": 4, "lora_dropout": 0.0}
    sizes = {"global_batch_size": 8, "per_device_train_batch_size": 1, "max_steps": 2}
    recipe = conversations.write_recipe(tmp_path, base, **tuning, **sizes)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "omnifusion_hf.cli", "train", str(recipe), f"output_dir={tmp_path / 'two'}"]
    done = subprocess.run(command, cwd=RECIPES.parent, capture_output=True, text=True, timeout=170)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "global batch 8 = 1 per process x 2 processes x 4 steps" in done.stdout
    for folder, batch in (("one", 8), ("half", 4)):
        train(*parse_recipe(recipe, [f"output_dir={tmp_path / folder}", f"global_batch_size={batch}"]))
    logs = {folder: log_of(tmp_path / folder) for folder in ("one", "two", "half")}
    for figure in ("loss", "grad_norm"):
        one, two, half = ([entry[figure] for entry in logs[folder]] for folder in ("one", "two", "half"))
        assert one == pytest.approx(two, rel=1e-5) and one != pytest.approx(half, rel=1e-3)


def log_of(folder: Path) -> list[dict]:
    state = json.loads((folder / "checkpoint-2/trainer_state.json").read_text())
    return [entry for entry in state["log_history"] if "loss" in entry]

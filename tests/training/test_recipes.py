"""Fields of a recipe, the shipped recipes (the paper's table), and a global batch that devices do not change."""

import conversations
import pytest
import tiny
import transformers
import yaml

from omnifusion_hf.io import RECIPES
from omnifusion_hf.training.arguments import accumulation, check_smoothing, describe_batch, parse_recipe


# stage -> learning rate, global batch
PAPER = {"pretrain": (1e-3, 256), "finetune": (2e-5, 128), "lora": (2e-5, 128)}
# recipe -> stage, sequence length, conversation format
SHIPPED = dict.fromkeys(("pretrain", "tex_adapter"), ("pretrain", 2048, "llava"))
SHIPPED |= {"finetune": ("finetune", 2048, "llava"), "finetune_grid": ("finetune", 4096, "llava")}
SHIPPED |= dict.fromkeys(("finetune_lora", "tex_lora"), ("lora", 2048, "llava"))
SHIPPED |= {f"v1_1_{stage}": (stage, 2048, "v1.1") for stage in ("pretrain", "finetune")}


MISTAKEN = {
    "lerning_rate=1": "unknown key `lerning_rate`; did you mean `learning_rate`?", "seed=[1": r"seed=\[1 is not YAML",
    "learning=1": "unknown key `learning`", "learning_rate=fast": "learning_rate.*'fast'",
    "learning_rate=[1, 2]": r"learning_rate.*'\[1, 2\]'",
    "auto_find_batch_size=true": "auto_find_batch_size must stay False", "stage=sft": "stage.*'sft'.*pretrain",
    "remove_unused_columns=true": "remove_unused_columns must stay False", "data_path=null": "required: data_path",
    "bf16": "`bf16` is not an override; write key=value",
}  # fmt: skip


@pytest.mark.parametrize(("override", "message"), MISTAKEN.items())
def test_mistaken_fields_are_named(tmp_path, override, message):
    recipe = conversations.write_recipe(tmp_path, tmp_path)
    assert parse_recipe(recipe)
    with pytest.raises(ValueError, match=message):
        parse_recipe(recipe, [override])


def test_fields_have_the_types_that_their_classes_say(tmp_path):
    recipe = conversations.write_recipe(tmp_path, tmp_path)
    overrides = ["learning_rate=1e-3", "seed=-1", "bf16=yes", "max_length=64", "label_names=[labels]", "run_name=a b"]
    overrides += ["save_strategy=no", "lr_scheduler_kwargs={num_cycles: 2}"]
    model_data, args = parse_recipe(recipe, overrides)
    assert args.save_strategy == "no"
    assert (args.learning_rate, args.seed, args.bf16, args.run_name) == (1e-3, -1, True, "a b")
    assert (args.label_names, args.lr_scheduler_kwargs, model_data.max_length) == (["labels"], {"num_cycles": 2}, 64)


def test_smoothing_over_several_batches_is_refused_where_transformers_adds_their_losses_up(tmp_path, monkeypatch):
    recipe, smooth = conversations.write_recipe(tmp_path, tmp_path), "label_smoothing_factor=0.1"
    _, args = parse_recipe(recipe, [smooth, "gradient_accumulation_steps=2"])
    monkeypatch.setattr(transformers, "__version__", "5.14.1")
    with pytest.raises(ValueError, match="update to 5.15, or take each step from one batch"):
        check_smoothing(args, tiny.config())
    check_smoothing(parse_recipe(recipe, [smooth])[1], tiny.config())


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_recipe_says_what_the_paper_says_with_the_same_global_batch_on_any_number_of_devices(path):
    stage, length, conversation_format = SHIPPED[path.stem]
    model_data, args = parse_recipe(path, ["use_cpu=true"])
    assert (model_data.stage, model_data.max_length) == (stage, length)
    assert model_data.conversation_format == conversation_format
    assert (args.learning_rate, model_data.global_batch_size) == PAPER[stage]
    assert (args.weight_decay, args.bf16, args.num_train_epochs) == (0.0, True, 1)
    assert "adamw" in args.optim and model_data.optimizer is None
    assert model_data.vision_tuning == "frozen"
    assert args.output_dir == f"out/{path.stem}"
    given = yaml.safe_load(path.read_text(encoding="utf-8"))
    steps = [accumulation(given, processes)["gradient_accumulation_steps"] for processes in (1, 2, 4, 8)]
    batches = [given["per_device_train_batch_size"] * n * processes for n, processes in zip(steps, (1, 2, 4, 8))]
    assert batches == [PAPER[stage][1]] * 4
    assert args.gradient_accumulation_steps == steps[0]


def test_stages_of_one_model_follow_each_other():
    """Each second recipe starts where its first one ends."""
    for first, second in [("pretrain", "finetune"), ("pretrain", "finetune_lora"), ("tex_adapter", "tex_lora")]:
        args = parse_recipe(RECIPES / f"{first}.yaml", ["use_cpu=true"])[1]
        assert parse_recipe(RECIPES / f"{second}.yaml", ["use_cpu=true"])[0].model_name_or_path == args.output_dir


IMPOSSIBLE = {  # message -> overrides; without one there are three processes
    "256 is not a multiple of per_device_train_batch_size 8 x 3": (),
    "256 is not a multiple of per_device_train_batch_size 512 x 1": ("per_device_train_batch_size=512",),
    "global_batch_size or gradient_accumulation_steps, not both": ("gradient_accumulation_steps=4",),
    "global_batch_size=many": ("global_batch_size=many",),
    "global_batch_size=0": ("global_batch_size=0",),
}


@pytest.mark.parametrize("message", IMPOSSIBLE)
def test_a_batch_that_cannot_be_made_is_refused_with_its_numbers(message, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1" if IMPOSSIBLE[message] else "3")
    with pytest.raises(ValueError, match=message):
        parse_recipe(RECIPES / "pretrain.yaml", ["use_cpu=true", *IMPOSSIBLE[message]])


def test_lists_may_be_of_several_tools_and_empty(tmp_path):
    path = conversations.write_recipe(
        tmp_path, tmp_path, report_to=["tensorboard", "wandb"], eval_metrics=["vqa", "anls"]
    )
    recipe, args = parse_recipe(path)
    assert (args.report_to, recipe.eval_metrics) == (["tensorboard", "wandb"], ["vqa", "anls"])
    recipe, args = parse_recipe(path, ["report_to=none", "eval_metrics=[]"])  # again in one process
    assert (args.report_to, recipe.eval_metrics) == ([], [])


def test_accumulation_may_be_given_instead_and_one_process_with_several_devices_is_refused(tmp_path, monkeypatch):
    path = conversations.write_recipe(tmp_path, tmp_path, global_batch_size=8)
    given = ["global_batch_size=null", "gradient_accumulation_steps=4"]
    assert parse_recipe(path, given)[1].gradient_accumulation_steps == 4
    _, args = parse_recipe(path)
    assert describe_batch(args).startswith("global batch 8 = 2 per process")
    monkeypatch.setattr(type(args), "n_gpu", 2)
    with pytest.raises(ValueError, match="one process per device"):
        describe_batch(args)

"""A resumed run has the settings and the content that decide its result; others may differ."""

import copy
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import conversations
import pages
import pytest
import tiny
import yaml
from safetensors.torch import load_file, save_file
from training_runs import command

from omnifusion_hf.training.arguments import parse_recipe
from omnifusion_hf.training.identity import FREE, changes_of_run, content_hash, identity_of


pytestmark = pages.OTHERS_DEPRECATIONS


@pytest.fixture(scope="module")
def lora_run(tmp_path_factory) -> Path:
    """The recipe of a run of one step, which nothing changes."""
    pytest.importorskip("peft")
    folder = tmp_path_factory.mktemp("run")
    base = conversations.write_model(folder / "tiny")
    path = conversations.write_recipe(folder, base, stage="lora", lora_rank=2, max_steps=1)
    assert command(path) == 0
    return path


OVERRIDES = {
    "adam_beta2=0.95": "adam_beta2 was 0.999 and is 0.95", "max_grad_norm=0.5": "max_grad_norm was 1.0 and is 0.5",
    "lora_dropout=0.5": "lora_dropout was 0.05 and is 0.5", "warmup_steps=3": "warmup_steps was 0 and is 3",
    "train_sampling_strategy=group_by_length": "train_sampling_strategy was random and is group_by_length",
    "conversation_format=v1.1": "conversation_format was llava and is v1.1", "optim=adafactor": "and is adafactor",
    "lr_scheduler_kwargs={num_cycles: 2}": "lr_scheduler_kwargs was None and is {'num_cycles': 2}",
    "accelerator_config={even_batches: false}": "accelerator_config.even_batches was True and is False",
    "stage=finetune": "stage was lora and is finetune", "learning_rate=0.5": "learning_rate was 0.01 and is 0.5",
    "data_seed=7": "data_seed was 42 and is 7", "gradient_accumulation_steps=2": "global_batch was 2 and is 4",
    "vision_tuning=full": "vision_tuning was frozen and is full",
    "eval_share=0.25 & eval_strategy=epoch": "eval_share was None and is 0.25",
}  # fmt: skip


@pytest.mark.parametrize(("override", "message"), OVERRIDES.items())
def test_what_decides_the_result_is_the_same_when_a_run_goes_on(lora_run, override, message, capsys):
    assert command(lora_run, *override.split(" & "), "--resume") == 2
    assert message in (said := capsys.readouterr().err)
    assert said.count(" and is ") == 1 + override.startswith("conversation")  # there the samples differ, too


def copied(recipe: Path, base: Path, data: Path) -> list[str]:
    """Copies the base model and the data of a run; returns the overrides that name the copies."""
    fields = yaml.safe_load(recipe.read_text())
    shutil.copytree(fields["model_name_or_path"], base)
    shutil.copytree(Path(fields["data_path"]).parent, data)
    return [f"model_name_or_path={base}", f"data_path={data}/samples.json"]


def test_what_does_not_decide_it_may_differ_and_a_moved_base_and_data_are_the_same(lora_run, tmp_path, capsys):
    free = ["logging_steps=7", "save_steps=9", "dataloader_num_workers=1", "bf16=true", "seed=42", "run_name=x"]
    moved = copied(lora_run, tmp_path / "other name", tmp_path / "other data")
    assert command(lora_run, *free, *moved, "--resume") == 0, capsys.readouterr().err


@pytest.mark.parametrize("what", ["an answer", "an image", "the base model", "its tokenizer"])
def test_other_content_under_the_same_name_is_another_run(lora_run, what, tmp_path, capsys):
    base, data = tmp_path / "tiny", tmp_path / "data"
    moved = copied(lora_run, base, data)
    text = {"an answer": data / "samples.json", "its tokenizer": base / "tokenizer.json"}.get(what)
    if text:
        text.write_text(text.read_text().replace("blue", "gray", 1) + "\n")
    elif what == "an image":
        tiny.image(9).save(data / "3.png")
    else:
        weights = load_file(base / "model.safetensors")
        weights["lm_head.weight"][0] += 1
        save_file(weights, base / "model.safetensors", {"format": "pt"})
    name = "source.0.content" if what in ("an answer", "an image") else "base_model"
    assert command(lora_run, *moved, "--resume") == 2
    assert re.search(rf"settings: {name} was \w{{16}} and is \w{{16}}\. Continue", capsys.readouterr().err)


def test_every_field_is_compared_but_the_documented_ones(lora_run):
    """Of both dataclasses, whatever fields this version of transformers has."""
    model_data, args = parse_recipe(lora_run)
    dataset = SimpleNamespace(identity=lambda: [{"samples": 1}])
    not_numbers = {"model_name_or_path", "accelerator_config", "parallelism_config"}
    before, compared = identity_of(model_data, args, dataset, with_lora=True), set()
    for given in (model_data, args):
        for name in given.__dataclass_fields__.keys() - not_numbers:
            changed = copy.copy(given)
            setattr(changed, name, str(lora_run.parent) if name == "lora_weights" else 7777)
            now = identity_of(*(changed if each is given else each for each in (model_data, args)), dataset, True)
            compared |= {name} if changes_of_run(before, now) else set()
    assert {"learning_rate", "adam_epsilon", "neftune_noise_alpha", "lora_alpha", "dataloader_drop_last"} <= compared
    left = (model_data.__dataclass_fields__.keys() | args.__dataclass_fields__.keys()) - compared
    assert all(FREE.fullmatch(name) or name in ("accelerator_config", "dataloader_num_workers") for name in left)


def test_versions_of_transformers_are_named_where_something_else_differs():
    before = {"transformers": "5.13", "warmup_ratio": 0.1, "learning_rate": 1.0, "started_from": "tiny"}
    assert changes_of_run(before, {"transformers": "5.24", "learning_rate": 1.0, "warmup_steps": 3}) == []
    changes = ["transformers was 5.13 and is 5.24", "learning_rate was 1.0 and is 2.0"]
    assert sorted(changes_of_run(before, {"transformers": "5.24", "learning_rate": 2.0})) == sorted(changes)


def test_large_files_are_known_by_their_size_their_end_and_a_part_of_them(tmp_path):
    path, hashes = tmp_path / "x.safetensors", set()
    with path.open("wb") as file:
        file.truncate(2**27)
    for place in (None, 0, 2**26 + 5, 2**27 - 1):
        with path.open("rb+") as file:
            file.seek(place or 0)
            file.write(b"" if place is None else b"x")
        hashes.add(content_hash([path]))
    assert len(hashes) == 4

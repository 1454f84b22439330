"""Several processes, of which one has a batch without images: nobody waits, and all is as in one process."""

import json
import os
import sys
from functools import partial
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import conversations
import numpy as np
import pytest
import ranks
import tiny
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from conversations import sample, turn
from safetensors.torch import load_file
from torch import nn
from training_runs import ACCELERATE, figures, launch, logits, rerun
from transformers import AutoModelForImageTextToText

from omnifusion_hf.training.stages import STAGES


ADAPTERS = ["mlp", "transformer", "concatenation", "summation", "attention"]
JOBS = product(["ddp", "ddp-unused", "fsdp2"], ["mlp"], ["adapter", "lora", "llm", "all"], ["plain", "checkpointing"])
JOBS = [",".join(job) for job in (*JOBS, *product(["ddp", "fsdp2"], ADAPTERS[1:], ["adapter", "all"], ["plain"]))]


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ranks") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # Python 3.11's fork server knows no other
        assert ranks.run_ranks(folder, *JOBS) == [0, 0]
    return folder


@pytest.mark.parametrize("job", JOBS)
def test_two_ranks_of_which_one_has_no_image_give_the_loss_and_gradients_of_one_process(results, job):
    alone, together = ranks.reference(job), torch.load(results / f"{job}.pt")
    assert together["loss"] == pytest.approx(alone["loss"], rel=1e-6)
    assert set(together["gradients"]) == set(alone["gradients"])
    for name, gradient in alone["gradients"].items():
        scale = max(1.0, gradient.abs().max().item())  # a bias sums over all tokens: some of its sums cancel
        torch.testing.assert_close(together["gradients"][name], gradient, rtol=1e-5, atol=1e-6 * scale)
    adapter = [gradient for name, gradient in alone["gradients"].items() if "multi_modal_projector" in name]
    assert adapter and any(gradient.any() for gradient in adapter)


@pytest.mark.parametrize("job", ["ddp,mlp,llm,plain", "fsdp2,transformer,adapter,plain"])
def test_control_without_the_blank_view_the_ranks_do_not_come_together(results, tmp_path, job):
    folder = tmp_path / "out"
    assert 0 not in ranks.run_ranks(folder, job, cured=False)
    assert not list(folder.iterdir())


def hand_copies(module: nn.Module, args: tuple) -> tuple:
    """DeepSpeed ZeRO-3 gives modules other tensors than their callers gave: other nodes of the graph."""
    return tuple(arg.clone() if torch.is_tensor(arg) and arg.requires_grad else arg for arg in args)


@pytest.mark.parametrize("projector_type", ADAPTERS)
def test_adapters_have_the_same_gradients_where_modules_are_handed_copies_of_their_inputs(projector_type):
    gradients = []
    for hooks in ([], [hand_copies]):
        model = ranks.make_model(projector_type, "adapter", "plain")
        for module in model.model.multi_modal_projector.modules():
            for hook in hooks:
                module.register_forward_pre_hook(hook)
        ranks.loss_of(model, ranks.batches(model.config)[0], model.config).backward()
        gradients.append([weight.grad for weight in model.model.multi_modal_projector.parameters()])
    assert all(gradient.any() for gradient in gradients[0])
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("projector_type", ADAPTERS)
def test_blocks_to_wrap_are_there(projector_type):
    encoders = ["clip", "siglip", "dinov2", "internvl"]
    model = tiny.model(tiny.config(encoders, projector_type=projector_type))
    assert model._no_split_modules <= {type(module).__name__ for module in model.modules()}
    blocks = {"MistralDecoderLayer", "CLIPEncoderLayer", "SiglipEncoderLayer", "Dinov2Layer", "InternVLVisionLayer"}
    assert blocks <= model._no_split_modules


@pytest.mark.parametrize("name", ["ddp", "fsdp2", "zero3"])
def test_the_launcher_knows_every_key_of_the_configurations(name, tmp_path):
    known = {action.dest for action in launch_command_parser()._actions}
    given = yaml.safe_load((ACCELERATE / f"{name}.yaml").read_text())
    for section in ("fsdp_config", "deepspeed_config"):  # whose keys become options, and nobody looks at others
        assert set(given.get(section, {})) <= known
    assert load_config_from_file(str(ACCELERATE / f"{name}.yaml")).num_processes == 8
    misspelt = tmp_path / "misspelt.yaml"
    misspelt.write_text(yaml.safe_dump(given | {"num_processed": 8}))
    with pytest.raises(ValueError, match="unknown keys.*num_processed"):
        load_config_from_file(str(misspelt))


TEXT = [turn("human", "What colour is the sky?"), turn("gpt", "The sky is blue.")]
HALF_TEXT = [sample(index) if index % 2 else {"id": f"t{index}", "conversations": TEXT} for index in range(8)]
write_recipe = partial(conversations.write_recipe, samples=HALF_TEXT)


LORA = {"lora_rank": 4, "lora_alpha": 8, "lora_dropout": 0.0}
STAGE_OPTIONS = [{"stage": "pretrain"}, {"stage": "finetune"}, {"stage": "lora", "vision_tuning": "lora"} | LORA]


@pytest.mark.parametrize("options", STAGE_OPTIONS, ids=["pretrain", "finetune", "lora"])
def test_launched_on_two_processes_a_run_learns_what_one_process_learns(tmp_path, base, options):
    """One global batch; the control is a batch of half the size."""
    sizes = {"global_batch_size": 4, "per_device_train_batch_size": 1, "max_steps": 2}
    recipe = write_recipe(tmp_path / "two", base, **options, **sizes)
    printed = launch("ddp", "-m", "omnifusion_hf.cli", "train", recipe)
    assert "global batch 4 = 1 per process x 2 processes x 2 steps of accumulation" in printed
    assert json.loads((tmp_path / "two/out/training_summary.json").read_text())["global_batch"] == 4
    for name, batch in (("one", 4), ("half", 2)):
        changes = [f"output_dir={tmp_path / name}/out", f"global_batch_size={batch}", "per_device_train_batch_size=2"]
        rerun(recipe, *changes)
    for figure in ("loss", "grad_norm"):
        one, two, half = (figures(tmp_path / name / "out", figure) for name in ("one", "two", "half"))
        assert np.ravel(one) == pytest.approx(np.ravel(two), rel=1e-5)
        assert np.ravel(one) != pytest.approx(np.ravel(half), rel=1e-3)


SHARDED = {"fsdp2": {"use_cpu": True}, "zero3": {"use_cpu": False}}  # accelerate runs no DeepSpeed on a "CPU"


@pytest.fixture(scope="module", params=SHARDED)
def sharded(request, base, tmp_path_factory) -> Path:
    """Folders of all stages, run in one process and on two that shard the model, these with a stop in the middle."""
    if request.param == "zero3" and find_spec("deepspeed") is None:
        pytest.skip("needs DeepSpeed: pip install deepspeed (whose first run on a CPU compiles for some minutes)")
    folder = tmp_path_factory.mktemp(request.param)
    recipes = []
    for stage in STAGES:
        rerun(write_recipe(folder / f"{stage}_alone", base, stage=stage, per_device_train_batch_size=2, **LORA))
        options = {"stage": stage, "per_device_train_batch_size": 1, **SHARDED[request.param], **LORA}
        recipes.append(write_recipe(folder / stage, base, **options))
    launch(request.param, Path(__file__).parents[1] / "helpers/sharded_on_cpu.py", *recipes)
    return folder


@pytest.mark.parametrize("stage", STAGES)
def test_sharded_and_resumed_run_has_the_losses_and_files_of_an_undisturbed_process_and_they_load(sharded, stage):
    alone, together = sharded / f"{stage}_alone", sharded / stage
    losses = [np.ravel(figures(folder / "out", "loss")) for folder in (together, alone)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    weights = "adapter_model.safetensors" if stage == "lora" else "model.safetensors"
    for name in ("out/checkpoint-2", "out/checkpoint-4", "out"):
        expected, found = load_file(alone / name / weights), load_file(together / name / weights)
        assert found.keys() == expected.keys()
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    first = load_file(together / "out/checkpoint-2" / weights)
    assert any((first[name] - tensor).abs().max() > 0.01 for name, tensor in found.items())
    alone, together = alone / "out", together / "out"
    assert {path.name for path in together.iterdir()} == {path.name for path in alone.iterdir()}
    config = together / ("adapter_config.json" if stage == "lora" else "config.json")
    assert json.loads(config.read_text()) == json.loads((alone / config.name).read_text())
    found, expected = (logits(AutoModelForImageTextToText.from_pretrained(path), path) for path in (together, alone))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)

"""Training runs by recipe over tiny parts, their logs, and what they changed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import conversations
import tiny
import torch
from safetensors.torch import load_file
from tiny import assistant, user
from transformers import AutoProcessor

from omnifusion_hf import OmniFusionForConditionalGeneration
from omnifusion_hf.cli import main
from omnifusion_hf.io import RECIPES
from omnifusion_hf.training.arguments import parse_recipe
from omnifusion_hf.training.stages import part_of
from omnifusion_hf.training.train import train


ACCELERATE = RECIPES / "accelerate"


def run(folder: Path, base: Path, samples: list | None = None, **changes) -> dict:
    """Trains in `folder` and returns the summary."""
    return rerun(conversations.write_recipe(folder, base, samples, **changes))


def rerun(recipe: Path, *overrides: str) -> dict:
    """Trains by a recipe that is there; returns the summary."""
    return train(*parse_recipe(recipe, overrides))


def resume(recipe: Path, *overrides: str) -> dict:
    return rerun(recipe, "resume_from_checkpoint=true", *overrides)


def command(recipe: Path, *options: str) -> int:
    """The exit code of `omnifusion train`."""
    return main(["train", str(recipe), *options])


def launch(configuration: str, *command) -> str:
    """Runs a command on two processes; returns its output."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
    command = [*launcher, ACCELERATE / f"{configuration}.yaml", "--num_processes=2", *command]
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Those of a plain folder, or of a LoRA run."""
    return load_file(next(folder.glob("*model.safetensors")))


def changed(before: dict, after: dict) -> set[str]:
    assert set(before) == set(after)
    return {name for name in before if not torch.equal(before[name], after[name])}


def parts_changed(before: Path, after: Path) -> set[str]:
    """Parts of which a weight differs between two folders."""
    return {part_of(name) for name in changed(weights(before), weights(after))}


def log_of(folder: Path, figure: str = "loss") -> list[dict]:
    """The log lines with this figure, of the last checkpoint in a run's `output_dir`."""
    states = sorted(folder.glob("checkpoint-*/trainer_state.json"), key=lambda path: int(path.parent.name[11:]))
    history = json.loads(states[-1].read_text())["log_history"]
    return [entry for entry in history if figure in entry]


def figures(folder: Path, *names: str) -> list[tuple]:
    """These figures of each logged step."""
    return [tuple(entry[name] for name in names) for entry in log_of(folder)]


def logits(model, folder: Path) -> torch.Tensor:
    """Those of a question about an image, tokenized by the processor in a folder."""
    inputs = tiny.prompt(AutoProcessor.from_pretrained(folder), [user(tiny.image(0), "What colour is the sky?")])
    with torch.no_grad():
        return model.eval()(**inputs).logits


def batch(model, images: bool = True) -> dict:
    question = user(tiny.image(0), "What colour is the sky?") if images else user("What colour is the sky?")
    messages = [question, assistant("The sky is blue.")]
    return conversations.collate(tiny.processor(model.config), [{"messages": messages, "name": "sample"}])


def step(model, inputs: dict) -> torch.optim.AdamW:
    """One AdamW step with weight decay, which would move every parameter it knows of."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.01, weight_decay=0.5)
    model.train()
    model(**inputs).loss.backward()
    optimizer.step()
    return optimizer


def loss_and_gradients(model, **inputs) -> tuple[torch.Tensor, dict]:
    model.zero_grad()
    loss = model(**inputs).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_step(found: tuple[torch.Tensor, dict], expected: tuple[torch.Tensor, dict], floor: float = 0.0):
    """Equal loss and gradients; `floor`: a share of the largest gradient below which others are rounding."""
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=0)
    assert set(found[1]) == set(expected[1])
    least = floor * max(gradient.abs().max().item() for gradient in expected[1].values())
    for name, gradient in expected[1].items():
        atol = 1e-5 * max(gradient.abs().max().item(), least)
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-5, atol=atol, msg=name)


def saved(model, folder) -> dict[str, torch.Tensor]:
    """The weights of the folder that a run would save."""
    model.save_pretrained(folder)
    return OmniFusionForConditionalGeneration.from_pretrained(folder, dtype="auto").state_dict()

"""The `omnifusion` command: `train` works, mistakes give one line and exit code 2."""

import re
import resource
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import conversations
import pytest
import tiny
import torch
from huggingface_hub.errors import StrictDataclassFieldValidationError
from huggingface_hub.utils import httpx
from jinja2 import TemplateSyntaxError
from PIL import Image
from safetensors import SafetensorError

from omnifusion_hf import cli
from omnifusion_hf.cli import build_parser, main


def test_train_runs_a_recipe_with_overrides(tmp_path):
    base = conversations.write_model(tmp_path / "base")
    recipe = conversations.write_recipe(tmp_path, base)
    assert main(["train", str(recipe), "max_steps=1", f"output_dir={tmp_path / 'other'}"]) == 0
    assert (tmp_path / "other/training_summary.json").exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize("override", ["lerning_rate=1", "model_name_or_path=/absent/model", "data_path=absent.json"])
def test_mistake_is_one_line_and_exit_code_2(tmp_path, capsys, override):
    base = conversations.write_model(tmp_path / "base")
    recipe = conversations.write_recipe(tmp_path, base)
    assert main(["train", str(recipe), override]) == 2
    printed = capsys.readouterr().err
    assert printed.count("omnifusion: error: ") == 1 and "Traceback" not in printed
    assert override.split("=")[0 if override.startswith("lern") else 1] in printed


def test_missing_recipe_is_a_mistake(capsys):
    assert main(["train", "absent.yaml"]) == 2
    assert "absent.yaml" in capsys.readouterr().err


def test_mistake_in_a_data_worker_shows_no_stack_trace(tmp_path, capsys):
    base = conversations.write_model(tmp_path / "base")
    recipe = conversations.write_recipe(tmp_path, base)
    assert main(["train", str(recipe), "max_length=8", "dataloader_num_workers=1"]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("omnifusion: error: ") and "max_length is 8" in last


class Foreign(Exception):
    """As wandb's, whose package need not be there."""


@pytest.mark.parametrize(
    "error, code, said",
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(28, "No space left on device"), 2, "error: [Errno 28] No space left on device"),
        (SafetensorError("I/O error: No space\n left"), 2, "error: I/O error: No space left"),
        (
            RuntimeError("PytorchStreamWriter failed writing"),
            2,
            "error: a file could not be written, is the disk full?",
        ),
        (httpx.ConnectError("Name or service not known"), 2, "error: Name or service not known"),
        (httpx.InvalidURL("Invalid port: ':bad'"), 2, "error: Invalid port: ':bad'"),
        (StrictDataclassFieldValidationError("side", TypeError("an int")), 2, "error: Validation error for field"),
        (TemplateSyntaxError("unknown tag", 1), 2, "error: unknown tag line 1"),
        (RecursionError("maximum recursion depth exceeded"), 2, "error: maximum recursion depth exceeded"),
        (MemoryError(), 2, "error: MemoryError"),
        (torch.OutOfMemoryError("CUDA out of memory."), 2, "error: CUDA out of memory."),
        (Foreign("No API key configured."), 2, "error: No API key configured."),
    ],
)
def test_what_the_user_can_mend_is_one_line_and_an_exit_code(monkeypatch, capsys, error, code, said):
    monkeypatch.setattr(cli, "tasks", lambda options: (_ for _ in ()).throw(error))
    monkeypatch.setitem(sys.modules, "wandb.errors", SimpleNamespace(Error=Foreign))
    assert main(["tasks"]) == code
    printed = capsys.readouterr().err
    assert printed.startswith(f"omnifusion: {said}") and printed.count("\n") == 1


@pytest.mark.parametrize("error", [KeyError("x"), TypeError("x"), RuntimeError("x"), AssertionError(), Exception("x")])
def test_fault_of_the_package_shows_its_traceback(monkeypatch, error):
    monkeypatch.setattr(cli, "tasks", lambda options: (_ for _ in ()).throw(error))
    with pytest.raises(type(error)):
        main(["tasks"])


def cut(file: Path):
    file.write_bytes(file.read_bytes()[:-50])


def nest(file: Path):
    file.write_text("[" * 200_000)


def misspell(file: Path):
    file.write_text(file.read_text().replace('"mlp"', '"lmp"'))


DAMAGE = [("model.safetensors", cut), ("config.json", nest), ("config.json", misspell), ("config.json", cut)]
DAMAGE += [("tokenizer.json", cut), ("tokenizer.json", nest), ("processor_config.json", cut)]


@pytest.mark.parametrize("file, damage", DAMAGE)
@pytest.mark.parametrize("command", ["ask", "train", "report"])
def test_damaged_model_folder_is_named_in_one_line(model_folder, tmp_path, capsys, command, file, damage):
    folder = shutil.copytree(model_folder, tmp_path / "damaged")
    recipe = conversations.write_recipe(tmp_path, folder)
    damage(folder / file)
    words = {
        "ask": ["ask", str(tmp_path / "data/0.png"), "What?", "--model", str(folder)],
        "train": ["train", str(recipe)],
        "report": [
            "report",
            "-o",
            str(tmp_path / "x"),
            "--model",
            str(folder),
            "--data",
            f"{tmp_path}/data/samples.json",
        ],
    }
    assert main(words[command]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"omnifusion: error: cannot load {folder}: ")


@pytest.mark.parametrize("command", ["ask", "train", "merge", "views", "report", "card", "build"])
def test_missing_folder_is_said_before_the_hub(command, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    absent, data = str(tmp_path / "absent"), tmp_path / "data"
    recipe = conversations.write_recipe(tmp_path, absent)
    words = {
        "ask": ["ask", f"{data}/0.png", "What?", "--model", absent],
        "train": ["train", str(recipe)],
        "merge": ["merge", absent, "-o", str(tmp_path / "x")],
        "views": ["views", f"{data}/0.png", "-o", str(tmp_path / "x"), "--model", absent],
        "report": ["report", "-o", str(tmp_path / "x"), "--model", absent, "--data", f"{data}/samples.json"],
        "card": ["card", absent],
        "build": ["build", "--vision", absent, "--text", absent, "-o", str(tmp_path / "x")],
    }
    assert main(words[command]) == 2
    said = "cannot load `{}`: it is no folder" if command == "build" else "there is no folder {}"
    assert capsys.readouterr().err.splitlines()[-1].startswith("omnifusion: error: " + said.format(absent))


def test_full_disk_while_saving_is_one_line(tmp_path, capsys):
    """A limit on the size of files has the same effect: the optimiser's state, or the weights, do not fit."""
    recipe = conversations.write_recipe(tmp_path, conversations.write_model(tmp_path / "base"), save_steps=1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for size, override in ((100_000, "stage=pretrain"), (350_000, "stage=finetune")):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            code = main(["train", str(recipe), override, f"output_dir={tmp_path}/{size}"])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        last = capsys.readouterr().err.splitlines()[-1]
        assert (
            code == 2 and last.startswith("omnifusion: error: ") and ("large" in last or "is the disk full?" in last)
        )


def test_unreachable_url_is_one_line(tmp_path, capsys):
    tiny.image(0).save(tmp_path / "0.png")
    assert main(["ask", "http://no.such.host.invalid/0.png", "What?"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("omnifusion: error: ")


def test_views_draws_an_image_and_tells_its_tokens(tmp_path, capsys):
    image, output = tmp_path / "in.png", tmp_path / "out.png"
    Image.new("RGB", (800, 600)).save(image)
    grid = ["--strategy", "grid", "--fit", "pad", "--context-length", "5000"]
    regions = ["--region", "10,20,60,70", "--region", "100,20,160,70.5", "--max-regions", "1"]
    assert main(["views", str(image), "-o", str(output), *grid, *regions]) == 0
    assert "6 views x 576 + 2 marks = 3458 tokens, 69.2% of a context of 5000" in capsys.readouterr().out
    assert Image.open(output).format == "PNG"
    assert main(["views", str(image), "-o", str(output), "--side", "64", "--tokens", "16"]) == 0
    assert "1 view x 16 + 2 marks = 18 tokens" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["absent.png"], "absent.png"),
        ([__file__], "Not an image file"),
        (["in.png", "--region", "9,9,5,5"], "box 0"),
        (["in.png", "--region", "9,9,5"], "is not a box"),
        (["in.png", "--max-regions", "-1"], "max_regions"),
        (["in.png", "--model", "absent"], "absent"),
    ],
)
def test_mistake_in_views_is_one_line_and_leaves_no_file(arguments, said, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # else it tries for long to reach the Hub
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (300, 200)).save("in.png")
    assert main(["views", *arguments, "-o", "out.png"]) == 2
    printed = capsys.readouterr().err
    assert printed.count("omnifusion: error: ") == 1 and said in printed and "Traceback" not in printed
    assert [path.name for path in tmp_path.iterdir()] == ["in.png"]


@pytest.mark.parametrize(
    "line, field, words",
    [
        ("train recipe.yaml a=1 --resume b=2", "overrides", ["a=1", "b=2"]),
        ("ask one.png --model folder two.png question", "images_and_question", ["one.png", "two.png", "question"]),
        ("report one -o out two --errors", "results", ["one", "two"]),
    ],
)
def test_options_may_stand_between_words(line, field, words, capsys):
    assert getattr(build_parser().parse_args(line.split()), field) == words
    with pytest.raises(SystemExit, match="2"):
        build_parser().parse_args([*line.split(), "--no-such-option"])
    assert "unrecognized arguments: --no-such-option" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["serve folder", "demo"])
def test_a_port_is_1_to_65535(command, capsys):
    for port in ("0", "65536", "99999", "http"):
        with pytest.raises(SystemExit, match="2"):
            build_parser().parse_args([*command.split(), "--port", port])
        assert "--port" in (said := capsys.readouterr().err) and port in said
    assert build_parser().parse_args([*command.split(), "--port", "65535"]).port == 65535


def test_wrong_usage_exits_with_code_2():
    with pytest.raises(SystemExit, match="2"):
        main([])


def test_help_lists_the_commands(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    said = capsys.readouterr().out
    commands = "build train merge ask views demo serve report tasks card push"
    assert [line.split()[0] for line in said.splitlines() if re.match(r" {4}\w", line)] == commands.split()

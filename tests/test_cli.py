"""The `omnifusion` command: quick and complete help, options between words, exit codes and one-line errors."""

import resource
import shlex
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import get_args
from unittest.mock import Mock

import conversations
import pytest
import torch
from huggingface_hub.errors import StrictDataclassFieldValidationError
from huggingface_hub.utils import httpx
from jinja2 import TemplateSyntaxError
from lmms_results import write_results
from safetensors import SafetensorError
from typer.main import get_command

from omnifusion_hf import cli, hub
from omnifusion_hf.build.build import Build
from omnifusion_hf.cli import main, repeat_options
from omnifusion_hf.model.views_omnifusion import ImageFit, ViewStrategy
from omnifusion_hf.options import Fit, Strategy


APP = get_command(cli.app)
COMMANDS = {**APP.commands, **{f"convert {name}": each for name, each in APP.commands["convert"].commands.items()}}
del COMMANDS["convert"]
NO_RECIPE = "no-such-recipe is neither a file nor a recipe of this package (finetune, finetune_grid,"
NOT_WRITTEN = "a file could not be written, is the disk full?"


def parse(words: list[str]) -> dict:
    """The arguments that a command's function gets."""
    name = " ".join(words[: 2 if words[0] == "convert" else 1])
    return COMMANDS[name].make_context(name, repeat_options(words[len(name.split()) :])).params


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_a_help_text_and_every_command_an_example_that_is_accepted(name, capsys):
    assert all(parameter.help for parameter in COMMANDS[name].params)
    assert main([*name.split(), "--help"]) == 0
    examples = [line.strip() for line in capsys.readouterr().out.splitlines() if line.startswith("  omnifusion ")]
    assert examples or name == "tasks"
    for example in examples:
        _, *words = shlex.split(example)
        assert example.startswith(f"omnifusion {name} ") and parse(words)


WITHOUT_TORCH = "import sys; from omnifusion_hf.cli import main; status = main(sys.argv[1:])"
WITHOUT_TORCH += "; assert not {'torch', 'transformers'} & sys.modules.keys(); sys.exit(status)"
NAMES = "ask build card convert data demo merge push report serve tasks train views"
HELP = {"--help": NAMES, "--version": "omnifusion_hf 0.", "convert v1.1 --help": "--vision"}
HELP |= {"train --help": "finetune, finetune_grid,"}
TYPING_ERRORS = {"vews": "No such command 'vews'", "ask --modle x": "No such option: --modle", "": "Missing command"}
TYPING_ERRORS |= {"train no-such-recipe": NO_RECIPE}


@pytest.mark.parametrize("line, said", [*HELP.items(), *TYPING_ERRORS.items(), ("ask x", "AssertionError")])
def test_help_and_typing_errors_import_neither_torch_nor_transformers(line, said):
    """The last is a control: a command that loads a model."""
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *line.split()], capture_output=True, text=True)
    printed = done.stdout if line in HELP else done.stderr
    if line == "--help":
        names = [line.split()[0] for line in printed.partition("Commands:")[2].splitlines() if line.strip()]
        printed = " ".join(sorted(names))
    assert said in " ".join(printed.split()) and done.returncode == (0 if line in HELP else 2 - (line == "ask x"))
    one_line = printed.startswith("omnifusion: error: ") and printed.count("\n") == 1
    assert one_line == (line in TYPING_ERRORS)


def test_choices_are_those_of_the_model():
    assert get_args(Strategy) == get_args(ViewStrategy) and get_args(Fit) == get_args(ImageFit)
    options = {option.name for option in COMMANDS["build"].params}
    assert options - {"output", "preset"} == set(Build.__dataclass_fields__)


@pytest.fixture
def recipe(tmp_path) -> str:
    return str(conversations.write_recipe(tmp_path, conversations.write_model(tmp_path / "base"), save_steps=1))


OF_ONE_COMMAND = {  # in the recipe's folder
    "train recipe.yaml lerning_rate=1": "lerning_rate",
    "train recipe.yaml data_path=absent.json": "absent.json",
    "train recipe.yaml max_length=8 dataloader_num_workers=1": "max_length is 8",  # in a data worker
    "views absent.png -o out.png": "absent.png",
    "views recipe.yaml -o out.png": "Not an image file",
    "views data/0.png -o out.png --region 9,9,5": "is not a box",
    "views data/0.png -o out.png --region 9,9,5,5": "box 0",
    "views data/0.png -o out.png --max-regions -1": "max_regions",
    "ask": "no question",
    "ask nowhere.png What?": "No image at `nowhere.png`",
    "ask http://no.such.host.invalid/0.png What?": "http://no.such.host.invalid/0.png",
    "ask data/0.png": "the question is missing",
    "ask 'What colour is it?'": "'What colour is it?' comes with 0 images; write omnifusion ask IMAGE",
    "ask --text-only data/0.png What?": "'What?' comes with 1 images",
}


@pytest.mark.parametrize("words", OF_ONE_COMMAND)
def test_a_wrong_argument_is_one_line_and_leaves_no_file(words, recipe, refused, monkeypatch):
    monkeypatch.chdir(Path(recipe).parent)
    assert OF_ONE_COMMAND[words] in refused(*shlex.split(words))
    assert not Path("out.png").exists()


class Foreign(Exception):
    """Like the error of wandb, which is not a dependency."""


OF_USERS = {  # error -> what is printed, by default its own words
    OSError(28, "No space left on device"): "[Errno 28] No space left on device",
    SafetensorError("I/O error: No space\n left"): "I/O error: No space left", MemoryError(): "MemoryError",
    RuntimeError("PytorchStreamWriter failed writing"): NOT_WRITTEN, httpx.InvalidURL("Invalid port: ':bad'"): None,
    StrictDataclassFieldValidationError("side", TypeError("an int")): "Validation error for field",
    TemplateSyntaxError("unknown tag", 1): "unknown tag line 1", RecursionError("depth exceeded"): None,
    torch.OutOfMemoryError("CUDA out of memory."): None, httpx.ConnectError("Name not known"): None,
    Foreign("No API key configured."): None, KeyboardInterrupt(): "interrupted",
}  # fmt: skip


@pytest.mark.parametrize("error", OF_USERS, ids=lambda error: type(error).__name__)
def test_an_error_that_the_user_can_correct_is_one_line_and_an_exit_code(monkeypatch, capsys, error):
    monkeypatch.setattr(hub, "push", Mock(side_effect=error))
    monkeypatch.setitem(sys.modules, "wandb.errors", SimpleNamespace(Error=Foreign))
    code, start = (130, "") if isinstance(error, KeyboardInterrupt) else (2, "error: ")
    assert main(["push", "folder", "me/omni"]) == code
    printed = capsys.readouterr().err
    assert printed.startswith(f"omnifusion: {start}{OF_USERS[error] or error}") and printed.count("\n") == 1


@pytest.mark.parametrize("error", [KeyError("x"), TypeError("x"), RuntimeError("x"), AssertionError(), Exception("x")])
def test_a_fault_of_the_package_shows_its_traceback(monkeypatch, error):
    monkeypatch.setattr(hub, "push", Mock(side_effect=error))
    with pytest.raises(type(error)):
        main(["push", "folder", "me/omni"])


DAMAGE = {
    "cut": lambda file: file.write_bytes(file.read_bytes()[:-50]),
    "nested": lambda file: file.write_text("[" * 200_000),
    "misspelt": lambda file: file.write_text(file.read_text().replace('"mlp"', '"lmp"')),
    "absent": Path.unlink,
}
DAMAGED = ["cut model.safetensors", "cut config.json", "cut tokenizer.json", "cut processor_config.json"]
DAMAGED += ["nested config.json", "nested tokenizer.json", "misspelt config.json", "absent config.json"]
LOADING = {  # commands that load a model, as words
    "ask": "ask data/0.png What? --model FOLDER",
    "train": "train recipe.yaml",
    "report": "report -o x --model FOLDER --data data/samples.json",
    "merge": "merge FOLDER -o x",
    "views": "views data/0.png -o x --model FOLDER",
    "card": "card FOLDER",
    "build": "build --vision FOLDER --text FOLDER -o x",
    "demo": "demo --model FOLDER",
    "serve": "serve FOLDER --port 8765",
}
ABSENT = dict.fromkeys(LOADING, "PLACE/absent") | {"ask of a name": "absent", "ask of a part": "../absent"}


@pytest.mark.parametrize("damage", DAMAGED)
@pytest.mark.parametrize("command", ["ask", "train", "report"])
def test_a_damaged_model_folder_is_named_in_one_line(model_folder, tmp_path, refused, monkeypatch, command, damage):
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(model_folder, tmp_path / "damaged")
    conversations.write_recipe(tmp_path, folder)
    kind, file = damage.split()
    DAMAGE[kind](folder / file)
    assert refused(*LOADING[command].replace("FOLDER", str(folder)).split()).startswith(f"cannot load {folder}: ")


@pytest.mark.parametrize("command", ABSENT)
def test_a_missing_folder_is_named_before_the_hub(command, tmp_path, refused, monkeypatch):
    pytest.importorskip({"demo": "gradio", "serve": "fastapi"}.get(command, "torch"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # else it tries for long to reach the Hub
    monkeypatch.chdir(tmp_path)
    absent = ABSENT[command].replace("PLACE", str(tmp_path))
    conversations.write_recipe(tmp_path, absent)
    said = "cannot load `{}`: it is not a folder" if command == "build" else "there is no folder {}"
    words = LOADING[command.split()[0]].replace("FOLDER", absent).split()
    assert refused(*words).startswith(said.format(absent))


OF_PACKAGES = {  # extra -> package, module of ours that imports it or None, command
    "demo": ("gradio", "serving.gradio_app", "demo"),
    "serve": ("fastapi", "serving.openai_server", "serve FOLDER"),
    "plot": ("matplotlib.figure", None, "report results -o out"),
    "data": ("datasets", None, "train recipe.yaml data_path=rows.parquet"),
    "lora": ("peft", None, "train recipe.yaml stage=lora"),
}


@pytest.mark.parametrize("extra", OF_PACKAGES)
def test_a_missing_package_is_named_with_its_install_command(extra, recipe, tmp_path, refused, monkeypatch):
    package, ours, command = OF_PACKAGES[extra]
    monkeypatch.chdir(tmp_path)
    write_results(tmp_path / "results")
    (tmp_path / "rows.parquet").touch()
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"omnifusion_hf.{ours}", raising=False)
    said = refused(*command.replace("FOLDER", str(tmp_path / "base")).split())
    assert said.endswith(f"pip install 'omnifusion_hf[{extra}]'.") and not list(tmp_path.glob("out/*"))


def test_a_full_disk_while_saving_is_one_line(recipe, tmp_path, refused):
    """A limit on the size of files has the same effect: the optimiser's state, or the weights, do not fit."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for size, override in ((100_000, "stage=pretrain"), (350_000, "stage=finetune")):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            said = refused("train", recipe, override, f"output_dir={tmp_path}/{size}")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert "large" in said or "is the disk full?" in said


PARSED = {
    "train recipe.yaml a=1 --resume b=2": {"overrides": ["a=1", "b=2"], "resume": True},
    "ask 1.png --model folder 2.png Q?": {"images_and_question": ["1.png", "2.png", "Q?"], "model": "folder"},
    "report one -o out two --errors": {"results": ["one", "two"], "output": "out"},
    "report -o out --perturb blur noise --epsilon 1 2.5": {"perturb": ["blur", "noise"], "epsilon": [1, 2.5]},
    "report -o out --perturb all --epsilon -1": {"perturb": ["all"], "epsilon": [-1]},
    "report --perturb -o out": {"perturb": [""], "output": "out"},
    "card x --base-model a/b c/d --language": {"base_model": ["a/b", "c/d"], "language": [""]},
    "views a.png -o b.png --region 1,2,3,4 --region -5,0,9,9": {"region": ["1,2,3,4", "-5,0,9,9"]},
    "build --vision a --vision b --text c -o d --layer -1": {"vision": ["a", "b"], "layers": [-1]},
}


@pytest.mark.parametrize("line, expected", PARSED.items())
def test_options_may_be_between_words_and_take_several(line, expected, capsys):
    parsed = parse(line.split())
    assert {name: parsed[name] for name in expected} == expected
    assert main([*line.split(), "--no-such-option"]) == 2
    assert "No such option: --no-such-option" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["serve folder", "demo"])
def test_a_port_is_1_to_65535(command, capsys):
    for port in ("0", "65536", "99999", "http"):
        assert main([*command.split(), "--port", port]) == 2
        assert "'--port'" in capsys.readouterr().err
    assert parse([*command.split(), "--port", "65535"])["port"] == 65535


def test_the_module_runs_as_the_command_does():
    done = subprocess.run([sys.executable, "-m", "omnifusion_hf.cli", "tasks"], capture_output=True, text=True)
    assert done.returncode == 0 and (Path(done.stdout.strip()) / "im2latex.yaml").is_file()


@pytest.mark.parametrize("words", ["ask --text-only Hello --model m", "demo --model m", "serve m --port 1"])
def test_commands_that_load_a_model_take_the_same_options(words, monkeypatch, refused):
    given = Mock(side_effect=ValueError("seen"))
    for place in ("inference", "serving.gradio_app", "serving.openai_server"):
        monkeypatch.setattr(f"omnifusion_hf.{place}.load", given)
    monkeypatch.setattr("socket.create_server", lambda *address, **kind: nullcontext())
    options = "--device cpu --dtype bfloat16 --quantization 4bit --attention eager"
    assert refused(*words.split(), *options.split()) == "seen"
    wanted = {"device": "cpu", "dtype": "bfloat16", "quantization": "4bit", "attn_implementation": "eager"}
    given.assert_called_once_with("m", **wanted)

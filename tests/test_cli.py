"""The `omnifusion` command: `train` works, mistakes give one line and exit code 2."""

import re

import conversations
import pytest
from PIL import Image

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


def test_views_draws_a_picture_and_tells_its_tokens(tmp_path, capsys):
    picture, output = tmp_path / "in.png", tmp_path / "out.png"
    Image.new("RGB", (800, 600)).save(picture)
    grid = ["--strategy", "grid", "--fit", "pad", "--context-length", "5000"]
    regions = ["--region", "10,20,60,70", "--region", "100,20,160,70.5", "--max-regions", "1"]
    assert main(["views", str(picture), "-o", str(output), *grid, *regions]) == 0
    assert "6 views x 576 + 2 marks = 3458 tokens, 69.2% of a context of 5000" in capsys.readouterr().out
    assert Image.open(output).format == "PNG"
    assert main(["views", str(picture), "-o", str(output), "--side", "64", "--tokens", "16"]) == 0
    assert "1 view x 16 + 2 marks = 18 tokens" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["absent.png"], "absent.png"),
        ([__file__], "Not a picture file"),
        (["in.png", "--region", "9,9,5,5"], "box 0"),
        (["in.png", "--region", "9,9,5"], "is no box"),
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
        ("ask one.png --model folder two.png question", "pictures_and_question", ["one.png", "two.png", "question"]),
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

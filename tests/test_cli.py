"""The `omnifusion` command: `train` works, mistakes give one line and exit code 2."""

import subprocess
import sys

import conversations
import pytest

from omnifusion_hf.cli import main


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


def test_wrong_usage_exits_with_code_2():
    with pytest.raises(SystemExit, match="2"):
        main([])


def test_help_is_quick_and_lists_the_commands():
    """No command's imports run before it is chosen."""
    code = "import sys; sys.modules['torch.nn'] = None\nfrom importlib import util\n"
    code += "spec = util.spec_from_file_location('cli', sys.argv.pop(1)); cli = util.module_from_spec(spec)\n"
    code += "spec.loader.exec_module(cli); cli.main(['--help'])"
    source = sys.modules[main.__module__].__file__
    result = subprocess.run([sys.executable, "-c", code, source], capture_output=True, text=True)
    assert result.returncode == 0 and "train" in result.stdout, result.stderr

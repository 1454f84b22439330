"""docs/views.md: its commands and its code run as written, and its drawings are those that they make."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from omnifusion_hf.cli import main


ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/views.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", PAGE, flags=re.DOTALL) for line in block.splitlines()]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.split()[-1])
def test_a_drawing_is_what_its_command_makes(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    assert main(shlex.split(command)[1:]) == 0
    name = command.split()[-1]
    shown, drawn = (np.asarray(Image.open(path)).astype(int) for path in (ROOT / "docs/views" / name, tmp_path / name))
    assert shown.shape == drawn.shape and np.abs(shown - drawn).mean() < 0.1
    assert np.abs(shown - np.roll(drawn, 1, axis=1)).mean() > 0.1  # control: one pixel off is not the same
    assert (ROOT / "docs/views" / name).stat().st_size < 300_000


def test_the_code_runs_as_written(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    names = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL):
        exec(compile(block, "docs/views.md", "exec"), names)
    assert names["inputs"]["image_view_index"].tolist() == [0, 1]
    assert "views x 36 + 2 marks" in capsys.readouterr().out

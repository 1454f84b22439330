"""The README's code runs as written."""

import re
from pathlib import Path

from PIL import Image


ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)


def test_fifteen_lines_answer_about_the_bundled_picture(monkeypatch, capsys):
    code = BLOCKS[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 15
    monkeypatch.chdir(ROOT)
    exec(compile(code, "README.md", "exec"), {})
    seen = capsys.readouterr().out.strip()
    assert seen
    original = Image.open
    monkeypatch.setattr(Image, "open", lambda source: Image.new("RGB", original(source).size, "white"))
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out.strip() != seen  # control: the answer depends on the picture


def test_assembling_from_parts(parts, tmp_path, monkeypatch):
    """With folders of tiny parts in the place of the published names."""
    code = BLOCKS[1].replace("openai/clip-vit-large-patch14-336", str(parts / "clip"))
    code = code.replace("mistralai/Mistral-7B-v0.1", str(parts / "llm"))
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    names = {path.name for path in (tmp_path / "my-omnifusion").iterdir()}
    assert {"config.json", "model.safetensors", "processor_config.json", "tokenizer.json"} <= names

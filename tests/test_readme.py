"""The README's code runs as written."""

import re
import shlex
from pathlib import Path

import conversations
from PIL import Image

from omnifusion_hf.cli import main


ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
SHELL = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)


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


def test_a_model_of_ones_own_is_built_and_trained(parts, tmp_path, monkeypatch):
    """The commands as written, with tiny parts and four samples in the place of what they name."""
    (block,) = [block for block in SHELL if "omnifusion build" in block]
    for published, ours in (("clip-vit-l-336", "clip"), ("dinov2-l", "dinov2"), ("mistral-7b", "llm")):
        assert published in block
        block = block.replace(published, str(parts / ours))
    samples = conversations.write(tmp_path, [conversations.sample(index) for index in range(4)])
    block = (
        block.replace("captions.json", str(samples))
        .replace("=pictures", f"={tmp_path}")
        .replace("recipes/", f"{ROOT}/recipes/")
    )
    monkeypatch.chdir(tmp_path)
    quick = ["output_dir=trained", "max_steps=1", "use_cpu=true", "bf16=false", "report_to=none"]
    for line in block.splitlines():
        words = shlex.split(line)[1:]
        assert main(words + (quick if words[0] == "train" else [])) == 0
    for folder in ("my-omnifusion", "trained"):
        names = {path.name for path in (tmp_path / folder).iterdir()}
        assert {"config.json", "model.safetensors", "processor_config.json", "tokenizer.json"} <= names

"""The README's code prints what the README says (that all pages run is tested in test_docs.py)."""

import shlex

import conversations
import pages
from pages import ROOT
from PIL import Image

from omnifusion_hf.cli import main


README = ROOT / "README.md"
BLOCKS = pages.blocks(README.read_text(encoding="utf-8"))


def test_the_readme_is_short_and_its_first_block_prints_the_answer_that_it_promises(ran_page, tmp_path, monkeypatch):
    assert len(README.read_text(encoding="utf-8").splitlines()) < 120
    code = BLOCKS[0].code
    assert BLOCKS[0].language == "python" and len([line for line in code.splitlines() if line.strip()]) <= 15
    printed, commands = ran_page(README).printed
    assert printed == "568\n" and code.rstrip().endswith("  # 568")
    assert commands.startswith("star\n") and "   # star\n" in BLOCKS[2].code
    original = Image.open
    monkeypatch.setattr(Image, "open", lambda source: Image.new("RGB", original(source).size, "white"))
    assert printed != pages.run_page(README, tmp_path).printed[0]  # control: the answer depends on the image


def test_the_commands_build_and_train_a_model(parts, tmp_path, monkeypatch):
    """As written, with tiny parts and four samples instead of the published ones."""
    (block,) = [block.code for block in BLOCKS if "omnifusion build" in block.code]
    samples = conversations.write(tmp_path, [conversations.sample(index) for index in range(4)])
    ours = {"clip-vit-l-336": parts / "clip", "dinov2-l": parts / "dinov2", "mistral-7b": parts / "llm"}
    for published, replacement in (ours | {"captions.json": samples, "=images": f"={tmp_path}"}).items():
        assert block.count(published) == 1
        block = block.replace(published, str(replacement))
    monkeypatch.chdir(tmp_path)
    quick = ["output_dir=trained", "max_steps=1", "use_cpu=true", "bf16=false", "report_to=none"]
    for line in block.splitlines():
        words = shlex.split(line)[1:]
        assert main(words + (quick if words[0] == "train" else [])) == 0
    for folder in ("my-omnifusion", "trained"):
        names = {path.name for path in (tmp_path / folder).iterdir()}
        assert {"config.json", "model.safetensors", "processor_config.json", "tokenizer.json"} <= names

"""What the README's code does (that it runs is tested with all pages, in test_docs.py)."""

import shlex

import conversations
import pages
from pages import ROOT
from PIL import Image

from omnifusion_hf.cli import main


README = ROOT / "README.md"
BLOCKS = pages.blocks(README.read_text(encoding="utf-8"))


def test_fifteen_lines_answer_about_the_bundled_image(ran_page, tmp_path, monkeypatch):
    (code,) = [block.code for block in BLOCKS if block.language == "python"]
    assert len([line for line in code.splitlines() if line.strip()]) <= 15
    (seen,) = ran_page(README).printed
    assert seen == "568\n" and code.rstrip().endswith("  # 568")  # what the image shows, and what the block promises
    original = Image.open
    monkeypatch.setattr(Image, "open", lambda source: Image.new("RGB", original(source).size, "white"))
    (blank,) = pages.run_page(README, tmp_path).printed
    assert blank != seen  # control: the answer depends on the image


def test_a_model_of_ones_own_is_built_and_trained(parts, tmp_path, monkeypatch):
    """The commands as written, with tiny parts and four samples in the place of what they name."""
    (block,) = [block.code for block in BLOCKS if "omnifusion build" in block.code]
    for published, ours in (("clip-vit-l-336", "clip"), ("dinov2-l", "dinov2"), ("mistral-7b", "llm")):
        assert published in block
        block = block.replace(published, str(parts / ours))
    samples = conversations.write(tmp_path, [conversations.sample(index) for index in range(4)])
    block = (
        block.replace("captions.json", str(samples))
        .replace("=images", f"={tmp_path}")
        .replace("omnifusion_hf/recipes/", f"{ROOT}/omnifusion_hf/recipes/")
    )
    monkeypatch.chdir(tmp_path)
    quick = ["output_dir=trained", "max_steps=1", "use_cpu=true", "bf16=false", "report_to=none"]
    for line in block.splitlines():
        words = shlex.split(line)[1:]
        assert main(words + (quick if words[0] == "train" else [])) == 0
    for folder in ("my-omnifusion", "trained"):
        names = {path.name for path in (tmp_path / folder).iterdir()}
        assert {"config.json", "model.safetensors", "processor_config.json", "tokenizer.json"} <= names

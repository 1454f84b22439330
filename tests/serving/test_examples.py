"""serving/examples.py: examples of a folder or a JSONL file; what is wrong is named."""

import json
import shutil

import pytest

from omnifusion_hf.inference import EXAMPLES
from omnifusion_hf.serving.examples import QUESTION, read_examples


@pytest.fixture
def folder(tmp_path):
    for name in ("b.png", "a.PNG"):
        shutil.copy(EXAMPLES.parent / "shape-1.png", tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


def test_the_default_are_the_bundled_images_with_their_questions():
    first = read_examples()[0]
    assert first == {"text": "What color is the cross?", "files": [str(EXAMPLES.parent / "colour-1.png")]}
    assert len(read_examples()) == len(json.loads(EXAMPLES.read_text()))


def test_a_folder_gives_its_images_alone(folder):
    wanted = [{"text": QUESTION, "files": [str(folder / name)]} for name in ("a.PNG", "b.png")]
    assert read_examples(folder) == wanted


def test_a_jsonl_file_gives_its_questions_with_paths_from_its_folder(folder):
    lines = [{"image": "b.png", "question": "What?"}, {"image": str(folder / "a.PNG"), "question": "Где?"}]
    (folder / "own.jsonl").write_text("\n\n".join(map(json.dumps, lines)))
    wanted = [("What?", [str(folder / "b.png")]), ("Где?", [str(folder / "a.PNG")])]
    assert [(each["text"], each["files"]) for each in read_examples(folder / "own.jsonl")] == wanted


WRONG = {
    r"own.jsonl, line 2: ": '{"image": "b.png", "question": "a"}\n{',
    r"own.jsonl: example 1 is {'image': 'b.png'}, not": '{"image": "b.png"}',
    "example 1 is .*, not": '["b.png", "What?"]',
    "example 1: there is no image .*c.png": '{"image": "c.png", "question": "What?"}',
    "own.jsonl has no examples": "",
    "there is no folder or file .*own.jsonl; give --examples a folder": None,
}


@pytest.mark.parametrize("message, lines", WRONG.items())
def test_a_wrong_source_is_refused_with_the_place(folder, lines, message):
    if lines is not None:
        (folder / "own.jsonl").write_text(lines)
    with pytest.raises(ValueError, match=message):
        read_examples(folder / "own.jsonl")

"""`omnifusion data`: samples as the model sees them, and the problems of a whole set."""

import os

import conversations
import data_files
import pytest
from PIL import Image

from omnifusion_hf.cli import main
from omnifusion_hf.inference import TINY
from omnifusion_hf.training.mixture import Source
from omnifusion_hf.training.preview import mistakes, preview


@pytest.fixture
def data(tmp_path):
    """Three good samples, then one without its image, one whose last turn is the user's, one that is too long, one
    whose image is cut after its header, another that is too long."""
    missing, unanswered, long = conversations.sample(3, image="absent.png"), *map(conversations.sample, (4, 5))
    unanswered["conversations"].pop()
    long["conversations"][1]["value"] = "word " * 3000
    more = long | {"id": "of another name"}
    samples = [*map(conversations.sample, range(3)), missing, unanswered, long, conversations.sample(6), more]
    path = conversations.write(tmp_path, samples)
    (tmp_path / "6.png").write_bytes((tmp_path / "6.png").read_bytes()[:60])
    return path


def test_printed_samples_mark_what_is_trained_and_count_visual_tokens_without_weights(
    data, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("transformers.AutoModelForImageTextToText.from_pretrained", lambda *a: pytest.fail("loaded"))
    assert main(["data", str(data), "--samples", "1", "--drawings", str(tmp_path / "views")]) == 0
    said = capsys.readouterr().out
    answer = conversations.sample(0)["conversations"][1]["value"]
    assert "sample 0" in said and "36 visual" in said
    assert "<img_start><image> x 36<img_end><user>" in said and f"<bot>⟦{answer}</s>⟧" in said
    assert "samples can be used" in said and Image.open(tmp_path / "views/sample-0-image-0.png").width > 100


def test_every_problem_is_counted_with_an_example(data, capsys):
    problems = preview(Source(str(data)), str(TINY), samples=0, max_length=512)
    said = capsys.readouterr().out
    assert said.startswith("3 of 8 samples can be used.\n2 x ") and len(problems.kinds) == 4
    assert all(word in said for word in ("absent.png", "max_length is 512", "cannot read"))


def test_a_large_set_is_checked_by_several_processes_to_the_same_result(data, monkeypatch):
    monkeypatch.setattr("omnifusion_hf.training.preview.MANY", 2)
    assert preview(Source(str(data)), str(TINY), samples=0).kinds.total() == 5
    assert mistakes([None] * 3, None).num_workers == len(os.sched_getaffinity(0))  # control


@pytest.mark.parametrize("streaming", [False, True])
def test_three_samples_are_printed_by_default_and_a_stream_is_not_read_to_its_end(tmp_path, streaming, capsys):
    samples = data_files.mixed(5)
    samples[1]["conversations"].pop()  # cannot be read: nobody answers
    path = tmp_path / "rows.parquet"
    data_files.hf_dataset(samples).to_parquet(path)
    problems = preview(Source(str(path), streaming=streaming), str(TINY))
    assert sum(problems.kinds.values()) == (0 if streaming else 1)
    said = capsys.readouterr().out
    assert said.count(" trained\n") == 3
    assert ("4 of 5 samples can be used." in said) is not streaming
    assert ("The data is streamed" in said) is streaming

"""lab/ablations.py, ablation_report.py and small.py: finished runs are skipped, tables, boxes of small things."""

import json
from itertools import product
from random import Random
from unittest.mock import Mock

import numpy as np
import pytest
from transformers import AutoProcessor

from lab import ablation_data, ablation_report, ablations, dataset, pretrain_encoder, pretrain_llm, small
from lab.tokenizer import build_tokenizer


def finish(folder, name: str, seed: int, accuracy: float, samples: int = 64):
    """Writes the result of a run."""
    row = {"n": 10, "accuracy": accuracy, "edit_distance": 1 - accuracy, "blind_accuracy": 0.1}
    stage = {"samples": samples, "final_loss": 0.5, "trained_parameters": {"multi_modal_projector": 1234}}
    found = {"experiment": name, "seed": seed, "split": "test", "cpu_seconds": {"training": 10.0}}
    found |= {"stages": {"stage2": stage}, "topics": {"colour": row, "text, 1 character": row}}
    ablations.result_path(folder, name, seed).write_text(json.dumps(found))


def test_finished_runs_are_skipped_and_half_written_ones_and_failed_ones_are_not(tmp_path, monkeypatch):
    finish(tmp_path, "mlp", 0, 0.5)
    half = ablations.result_path(tmp_path, "mlp", 1)
    half.with_name(half.name + ".incomplete").write_text('{"experiment": "mlp"')
    assert ablations.missing_runs(tmp_path, ["mlp", "grid"], (0, 1)) == [("grid", 0), ("mlp", 1), ("grid", 1)]
    monkeypatch.setattr(ablations, "assemble", Mock(side_effect=RuntimeError))
    with pytest.raises(RuntimeError):
        ablations.run("grid", 0, tmp_path, ablations.STEPS, "test", 10)
    assert {name: set(seeds) for name, seeds in ablation_report.read_results(tmp_path).items()} == {"mlp": {0}}


def test_runs_have_files_of_their_own_the_same_number_of_samples_and_a_comparison():
    paths = {ablations.result_path(ablations.RESULTS, n, s) for n in ablations.EXPERIMENTS for s in ablations.SEEDS}
    assert len(paths) == len(ablations.EXPERIMENTS) * len(ablations.SEEDS)
    steps = {"stage1": 3, "stage2": 5}
    assert {sum(ablations.steps_of(e, steps).values()) for e in ablations.EXPERIMENTS.values()} == {8}
    assert {n for c in ablation_report.COMPARISONS for n in (c.name, c.baseline)} == set(ablations.EXPERIMENTS)


def test_mean_and_sample_standard_deviation():
    cells = [ablation_report.cell(values) for values in ([0.8, 0.9, 1.0], [0.8], [])]
    assert cells == ["0.900 ± 0.100", "0.800", "–"]  # the population's deviation would be 0.082
    # Student's t with 2 degrees of freedom: 4.3027 * 0.1 / sqrt(3)
    assert ablation_report.interval([0.8, 0.9, 1.0]) == pytest.approx(0.24841, abs=1e-4)


def test_differences_pair_equal_seeds_and_runs_of_different_length_share_no_table(tmp_path):
    for run in (("mlp", 0, 0.5), ("mlp", 1, 0.7), ("transformer", 1, 0.6), ("transformer", 2, 0.9)):
        finish(tmp_path, *run)
    comparison = next(c for c in ablation_report.COMPARISONS if c.name == "transformer")
    found = ablation_report.differences(ablation_report.read_results(tmp_path), comparison, "all")
    assert found == pytest.approx([-0.1])
    finish(tmp_path, "grid", 0, 0.5, samples=65)
    with pytest.raises(ValueError, match="mixes runs"):
        ablation_report.read_results(tmp_path)


def test_a_report_is_written_between_its_marks_and_repeatable(tmp_path):
    results, document = tmp_path / "results", tmp_path / "ablations.md"
    results.mkdir()
    for name, seed in product(("mlp", "transformer"), (0, 1)):
        finish(results, name, seed, 0.5 + seed / 10 + len(name) / 100)
    first, last = ablation_report.MARKS
    document.write_text(f"above\n{first}\nold\n{last}\nbelow\n")
    ablation_report.report(results, document, list(ablations.EXPERIMENTS))
    once = document.read_text()
    assert once.startswith("above\n") and once.endswith("\nbelow\n") and "old" not in once
    assert "| mlp | 2 | 0.580 ± 0.071 |" in once and "+0.080 ± 0.000" in once
    ablation_report.report(results, document, list(ablations.EXPERIMENTS))
    assert document.read_text() == once
    assert "<svg" in document.with_suffix(".svg").read_text()


@pytest.mark.parametrize("kind", ["scene", "text"])
def test_boxes_contain_all_ink(kind):
    for index in range(5):
        drawing = small.render_small("validation", kind, index)
        ink = (drawing.image != drawing.image[0, 0]).any(-1)
        assert ink.any()
        for left, top, right, bottom in drawing.facts["boxes"]:
            ink[int(max(top - 2, 0)) : int(bottom + 3), int(max(left - 2, 0)) : int(right + 3)] = False
        assert not ink.any()


def test_a_seed_draws_data_and_order(tmp_path, monkeypatch):
    monkeypatch.setattr(ablation_data, "SMALL_IMAGES", 40)
    ablation_data.write_small_images(tmp_path / "small")

    def drawn(seed: int, regions: bool = False) -> list[dict]:
        rng = Random(seed)
        samples = ablation_data.small_samples(tmp_path / "small", rng, 64, regions)
        ablation_data.write_stage(tmp_path / "s.json", samples, rng)
        return json.loads((tmp_path / "s.json").read_text())

    plain, with_regions = drawn(0), drawn(0, regions=True)
    assert plain == drawn(0) != drawn(1)
    assert [s["id"] for s in plain] == [s["id"] for s in with_regions] and not any("regions" in s for s in plain)
    boxes = np.array(with_regions[0]["regions"][0])
    assert boxes.shape[1] == 4 and (boxes[:, 2:] > boxes[:, :2]).all()


def test_a_run_trains_both_stages_writes_one_file_and_has_the_experiments_views_from_stage_2_on(tmp_path, monkeypatch):
    """With all that runs share at the smallest size: random encoder and LLM, a few images of both worlds."""
    encoder, llm, small_images = tmp_path / "encoder", tmp_path / "llm", tmp_path / "small"
    pretrain_encoder.donut_swin(32, (1, 1, 1)).save_pretrained(encoder)
    pretrain_encoder.image_processor().save_pretrained(encoder)
    tokenizer = build_tokenizer()
    pretrain_llm.tiny_mistral(len(tokenizer), width=64, layers=1).save_pretrained(llm)
    tokenizer.save_pretrained(llm)
    monkeypatch.setattr(dataset, "SHARD", 50)
    dataset.write_shard(tmp_path / "train", 0, dataset.PLANS["stage2"][0])
    monkeypatch.setattr(ablation_data, "PLAIN_SHARDS", (0,))
    monkeypatch.setattr(ablation_data, "SMALL_IMAGES", 20)
    ablation_data.write_small_images(small_images)
    for name, value in {"OUT": tmp_path, "SMALL": small_images, "LLM": llm, "ENCODERS": {"swin": encoder}}.items():
        monkeypatch.setattr(ablations, name, value)
    results = tmp_path / "results"
    ablations.run("regions", 2, results, {"stage1": 1, "stage2": 1}, "validation", 2)
    assert ablations.missing_runs(results, ["regions"], (1, 2)) == [("regions", 1)]
    found = ablation_report.read_results(results)["regions"][2]
    assert [stage["steps"] for stage in found["stages"].values()] == [1, 1]
    assert set(found["topics"]) == set(small.TOPICS) and len(list(results.iterdir())) == 1
    ablations.assemble(ablations.EXPERIMENTS["grid"], 0, tmp_path / "assembled")
    for views in (1, 5):
        assert AutoProcessor.from_pretrained(tmp_path / "assembled").count_tokens((384, 384)).views == [views]
        ablations.set_views(tmp_path / "assembled", "grid")

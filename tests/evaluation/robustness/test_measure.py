"""robustness/measure.py: the conditions, the changed questions and the summary; robustness/plots.py draws them."""

from dataclasses import replace

import conversations
import data_files
import numpy as np
import pytest
from conversations import sample, turn
from datasets import Dataset

from omnifusion_hf.evaluation.answers import Answer
from omnifusion_hf.evaluation.questions import read_questions
from omnifusion_hf.evaluation.robustness import measure, plots
from omnifusion_hf.evaluation.robustness.measure import conditions_of, summary, swap_images
from omnifusion_hf.evaluation.robustness.perturbations import PERTURBATIONS, PGD, RANDOM, REMOVED, SWAPPED


def test_conditions_always_include_clean_and_swapped_images_and_random_signs_beside_pgd():
    """Each epsilon once, weakest first."""
    assert conditions_of(["removed"]) == [(None, None), ("removed", None), (SWAPPED, None)]
    attacked = [(None, None), (PGD, 3.0), (PGD, 5.0), (RANDOM, 3.0), (RANDOM, 5.0), (SWAPPED, None)]
    assert conditions_of([PGD], [5, 3, 3.0]) == attacked


def test_all_means_every_perturbation_and_an_unknown_one_is_refused():
    assert {name for name, _ in conditions_of(["all"])} == {None, *PERTURBATIONS}
    with pytest.raises(ValueError, match="--perturb bluur is unknown; use all or some of blur,"):
        conditions_of(["blur", "bluur"])


@pytest.fixture
def questions(tmp_path):
    """Two tasks, the first with two questions about one image and one about two images, with a region in it."""
    two = [turn("human", "Is <image> older than <image>?"), turn("gpt", "Yes.")]
    samples = [sample(0), sample(1, image="0.png"), sample(2, image=["2.png", "3.png"], conversations=two), sample(4)]
    samples[2]["regions"] = [[[0, 0, 20, 20]], []]
    samples += [sample(5, task="other", image="1.png"), sample(6, task="other", image="2.png")]
    return read_questions(conversations.write(tmp_path, samples))


def test_swapped_images_are_others_of_the_task_and_their_regions_move_with_them(questions):
    swapped, of_task = swap_images(questions), {image for question in questions[:4] for image in question.images}
    for before, after in zip(questions, swapped, strict=True):
        assert all(old != new for old, new in zip(before.images, after.images, strict=True))
        assert (before.name, before.text, before.truth) == (after.name, after.text, after.truth)
        moved = list(zip(after.images, after.regions, strict=True))
        assert after.task == "other" or all((image.name == "2.png") == bool(boxes) for image, boxes in moved)
    assert {image for question in swapped[:4] for image in question.images} == of_task


def test_a_row_with_the_same_image_is_not_another_image(tmp_path):
    files = [data_files.image_files(sample(index))[0] for index in (0, 1, 0, 0)]
    rows = [{"question": f"{index}?", "answer": "x", "image": {"bytes": file}} for index, file in enumerate(files)]
    Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
    questions = read_questions(str(tmp_path / "rows.parquet"))
    for before, after in zip(questions, swap_images(questions), strict=True):
        assert before.images[0].read() != after.images[0].read()


def test_removed_images_leave_the_text(questions):
    bare = measure.without_images(questions[2])
    assert bare.images == [] and bare.regions == [] and bare.text == questions[2].text
    alone = [{"role": "user", "content": [part for part in questions[2].messages[0]["content"] if "image" in part]}]
    with pytest.raises(ValueError, match="a turn is an image alone; leave out --perturb removed"):
        measure.without_images(replace(questions[2], messages=alone))


def test_noise_differs_between_questions_and_is_the_same_in_every_batch(processor, questions):
    def noisy(seed: int, *chosen) -> np.ndarray:
        return measure.present_perturbed(processor, ("noise", 32.0), seed, list(chosen))["pixel_values"]

    first, second = questions[:2]  # about the same image
    together, alone = noisy(0, first, second), noisy(0, second)
    assert np.array_equal(together[1:], alone) and not np.array_equal(together[:1], alone)
    assert not np.array_equal(noisy(1, second), alone)


def test_the_seed_of_an_image_is_the_same_at_every_strength(processor, questions, monkeypatch):
    seeds = []
    record = replace(PERTURBATIONS["noise"], apply=lambda image, strength, seed: seeds.append(seed) or image)
    monkeypatch.setitem(PERTURBATIONS, "noise", record)
    for strength in record.strengths:
        measure.present_perturbed(processor, ("noise", strength), 0, questions[2:3])
    first, second, *others = seeds
    assert first != second  # a seed for each of the two images
    assert others == [first, second] * (len(record.strengths) - 1)


def answer(name: str, score: float, *condition, task: str = "t") -> Answer:
    return Answer(name, task, "?", [], ["x"], "x", float(score), *condition)


def test_the_summary_counts_by_condition_and_task():
    answers = [answer(str(n), n > 1, task="ab"[n % 2]) for n in range(4)] + [answer("0", 0, "blur", 1.0, task="a")]
    clean, blurred = summary(answers, [(None, None), ("blur", 1.0)])
    assert (clean["n"], clean["accuracy"], clean["tasks"]["b"]["accuracy"]) == (4, 0.5, 0.5)
    assert clean["interval"][0] < 0.5 < clean["interval"][1]
    assert (blurred["perturbation"], blurred["strength"], blurred["n"], blurred["accuracy"]) == ("blur", 1.0, 1, 0)


@pytest.mark.parametrize("names", [["blur"], [PGD, "blur"], ["all"]], ids=["one panel", "two", "all"])
def test_the_plot_draws_the_accuracies_of_its_rows_all_fully_visible_with_the_whole_legend(
    names, tmp_path, monkeypatch
):
    drawn, conditions = [], conditions_of([*names, REMOVED])
    monkeypatch.setattr(plots, "save_figure", lambda figure, *_: drawn.append(figure))
    rows = summary([answer("0", n % 2, *pair) for n, pair in enumerate(conditions)], conditions)
    plots.draw_robustness(tmp_path / "plot.png", rows)
    (figure,) = drawn
    figure.canvas.draw()
    legend, (left, bottom, right, top) = figure.legends[0].get_window_extent(), figure.bbox.extents
    assert left <= legend.x0 and legend.x1 <= right and bottom <= legend.y0 and legend.y1 <= top
    assert len(figure.legends[0].get_texts()) == 4 + (names != ["blur"])
    for axes, name in zip(figure.axes, plots.panels_of(rows)):
        wanted = [row["accuracy"] for row in rows if row["perturbation"] == name]
        assert list(axes.lines[-1].get_ydata()) == wanted and axes.get_title() == name.replace("_", " ")
        low, high = (axes.transData.transform((0, value))[1] for value in (0, 1))
        radius = axes.lines[-1].get_markersize() / 2 * figure.dpi / 72
        assert axes.bbox.y0 < low - radius and high + radius < axes.bbox.y1

"""lab/robustness.py: questions that `omnifusion report` reads, groups that fit their images, tables of figures."""

import csv

import numpy as np

from lab import robustness
from lab.evaluate import TOPICS
from lab.world import render
from omnifusion_hf.evaluation.questions import read_questions
from omnifusion_hf.evaluation.robustness.measure import conditions_of
from omnifusion_hf.evaluation.robustness.perturbations import PERTURBATIONS


def test_questions_are_held_out_and_their_images_in_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(robustness, "SEEN", 1)
    robustness.write_questions(tmp_path, 2)
    questions = read_questions(tmp_path / "questions.json")
    assert [question.task for question in questions] == [topic for topic in TOPICS for _ in range(2)]
    with open(tmp_path / "groups.csv", newline="") as file:
        listed = {row["image"] for row in csv.DictReader(file)}
    assert {image.name for question in questions for image in question.images} == listed
    monkeypatch.setattr(robustness, "SEEN", 0)
    robustness.write_questions(tmp_path / "seen", 1)
    seen = {(question.text, question.images[0].name) for question in read_questions(tmp_path / "seen/questions.json")}
    assert not seen & {(question.text, question.images[0].name) for question in questions}


def test_groups_of_images():
    for index in range(20):
        scene, text = render("validation", "scene", index), render("validation", "text", index)
        number, colour, ink = robustness.groups_of(scene)
        assert int(number) == len(scene.facts["things"]) and ink == ""
        assert colour in {thing.colour for thing in scene.facts["things"]}
        glyphs = np.median(text.image.mean(axis=-1)) > text.image.mean()  # most pixels are paper
        assert robustness.groups_of(text) == ("", "", "dark on light" if glyphs else "light on dark")


def test_tables_hold_every_condition_and_topic():
    figures = {"n": 1, "accuracy": 0.5, "interval": [0.1, 0.9]}
    row = figures | {"tasks": dict.fromkeys(TOPICS, figures)}
    rows = [row | {"perturbation": name, "strength": strength} for name, strength in conditions_of(["all"])]
    table = robustness.tables({"rows": rows})
    assert all(f"| {name} |" in table for name in (*PERTURBATIONS, *TOPICS, "none"))
    assert table.count("0.500 (0.10–0.90)") == len(rows) and "| blur 2 |" in table

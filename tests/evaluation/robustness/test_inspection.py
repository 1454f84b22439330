"""evaluation/inspection.py: what `omnifusion report` does with a model, with answers and with lmms-eval's samples."""

import json
import re
import shutil

import conversations
import pytest
import tiny
from conversations import sample, turn
from safetensors.torch import load_file, save_file

from omnifusion_hf.cli import main
from omnifusion_hf.evaluation.answers import Answer, read_answers
from omnifusion_hf.evaluation.robustness import inspection
from omnifusion_hf.evaluation.robustness.perturbations import PGD, RANDOM, SWAPPED
from omnifusion_hf.inference import EXAMPLES, TINY, load


@pytest.fixture(scope="module")
def demo_questions(tmp_path_factory):
    """The bundled examples as a file of questions, and groups of their images."""
    folder = tmp_path_factory.mktemp("questions")
    samples, lines = [], ["image,kind"]
    for number, example in enumerate(json.loads(EXAMPLES.read_text(encoding="utf-8"))):
        said = [turn("human", "<image>\n" + example["question"]), turn("gpt", example["truth"])]
        samples.append({"id": number, "image": example["image"], "conversations": said})
        lines.append(f"{example['image']},{'scene' if number < 7 else 'glyphs'}")
    (folder / "questions.json").write_text(json.dumps(samples), encoding="utf-8")
    (folder / "groups.csv").write_text("\n".join(lines), encoding="utf-8")
    return folder


def test_report_asks_perturbs_attacks_and_shows(demo_questions, tmp_path, capsys):
    data, groups = demo_questions / "questions.json", demo_questions / "groups.csv"
    asked = ["report", "--model", str(TINY), "--data", str(data), "--image-folder", str(EXAMPLES.parent)]
    asked += ["-o", str(tmp_path), "--max-new-tokens", "24"]
    perturbed = ["--perturb", "rotation", "removed", "pgd", "--epsilon", "8"]
    assert main([*asked, *perturbed, "--errors", "--groups", str(groups)]) == 0
    names = {"answers.jsonl", "settings.json", "robustness.json", "robustness.png", "errors.html"}
    assert {path.name for path in tmp_path.iterdir()} == names | {"groups.json", "groups.md", "groups.png"}
    rows = json.loads((tmp_path / "robustness.json").read_text(encoding="utf-8"))["rows"]
    printed = capsys.readouterr().out
    assert f"as they are: accuracy {rows[0]['accuracy']:.3f} (95% interval" in printed and ", 13 questions" in printed
    assert all(f"{row['perturbation']}" in printed for row in rows[1:]) and "pgd 8.0: accuracy" in printed
    accuracy = {(row["perturbation"], row["strength"]): row["accuracy"] for row in rows}
    assert accuracy[None, None] >= 0.8 and accuracy[SWAPPED, None] <= 0.4 and accuracy["removed", None] <= 0.4
    assert accuracy[PGD, 8.0] <= accuracy[RANDOM, 8.0] - 0.3
    assert accuracy["rotation", 5.0] > accuracy["rotation", 45.0]
    kinds = json.loads((tmp_path / "groups.json").read_text(encoding="utf-8"))["columns"]["kind"]["groups"]
    assert [row["group"] for row in kinds] == ["glyphs", "scene"] and sum(row["n"] for row in kinds) == rows[0]["n"]
    before = read_answers(tmp_path / "answers.jsonl")
    again = ["report", str(tmp_path / "answers.jsonl"), "--errors", "-o", str(tmp_path / "again")]
    assert main([*again, "--image-folder", str(EXAMPLES.parent)]) == 0
    pages = [(folder / "errors.html").read_text(encoding="utf-8") for folder in (tmp_path, tmp_path / "again")]
    assert pages[0].split("<table>")[1] == pages[1].split("<table>")[1] and "left out" in pages[1]
    assert main([*asked, "--seed", "1"]) == 2 and "seed=0, now it is 1" in capsys.readouterr().err
    assert read_answers(tmp_path / "answers.jsonl") == before


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--model", "m"], "--model and --data go together"),
        (["--errors"], "there are no answers"),
        (["--perturb", "blur", "--errors"], "--perturb asks a model"),
        (["--epsilon", "8", "--errors"], "--epsilon is of the attack"),
        (["results", "--epsilon", "8"], "--epsilon is of the attack"),
        (["results", "--image-folder", "x"], "--image-folder is of the images of --data"),
        ([], "nothing to report"),
    ],
)
def test_flags_that_do_not_go_together(tmp_path, capsys, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()
    results = {"results": {"pope": {"pope_accuracy,none": 0.5}}}
    (tmp_path / "results/20260101_000000_results.json").write_text(json.dumps(results), encoding="utf-8")
    assert main(["report", "-o", str(tmp_path / "out"), *flags]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--perturb", "blur", "pgd", "--epsilon", "-1"], "epsilon must lie in 0..255"),
        (["--perturb", "blur", "--epsilon", "8"], "--epsilon is of the attack"),
        (["--groups", "absent.csv"], "absent.csv"),
        (["absent.jsonl", "--errors"], "absent.jsonl"),
        (["absent", "--errors"], "absent"),
        (["--perturb", "blur", "--data", "one"], "nothing to swap"),
        (["--perturb", "blur", "--data", "none"], "none.json has no question about an image"),
    ],
)
def test_what_cannot_be_done_is_refused_before_a_model_is_loaded(tmp_path, capsys, monkeypatch, flags, message):
    tiny.image().save(tmp_path / "0.png")
    data = {"one": [sample(0)], "none": [sample(0, conversations=[turn("human", "Hello?"), turn("gpt", "Hi.")])]}
    del data["none"][0]["image"]
    for name, samples in data.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(samples), encoding="utf-8")
    flags = [str(tmp_path / f"{flag}.json") if flag in data else flag for flag in flags]
    monkeypatch.setattr(inspection, "load", lambda folder: pytest.fail("a model was loaded"))
    given = ["--model", "m", "--data", str(tmp_path / "one.json")]
    assert main(["report", "-o", str(tmp_path / "out"), *given, *flags]) == 2
    assert message in capsys.readouterr().err


def test_a_template_that_marks_no_answer_is_refused_before_anything_is_asked(tmp_path, capsys, monkeypatch):
    model, processor = load(TINY)
    processor.chat_template = re.sub(r"\{%-? (end)?generation -?%\}", "", processor.chat_template)
    monkeypatch.setattr(inspection, "load", lambda folder: (model, processor))
    asked = ["--model", "m", "--data", str(conversations.write(tmp_path, [sample(0), sample(1)])), "--perturb", "pgd"]
    assert main(["report", "-o", str(tmp_path / "out"), *asked]) == 2
    assert "marks no answer" in capsys.readouterr().err and not (tmp_path / "out/answers.jsonl").exists()


def test_a_replaced_model_is_not_served_the_answers_of_the_old_one(tmp_path, capsys):
    folder, data = tmp_path / "model", conversations.write(tmp_path, [sample(0), sample(1)])
    shutil.copytree(TINY, folder)
    asked = ["report", "--model", str(folder), "--data", str(data), "-o", str(tmp_path / "out")]
    asked += ["--max-new-tokens", "2"]
    assert main(asked) == 0
    before = read_answers(tmp_path / "out/answers.jsonl")
    shutil.copytree(folder, tmp_path / "copy")  # control: copied anew it is the same model
    shutil.rmtree(folder)
    (tmp_path / "copy").rename(folder)
    assert main(asked) == 0
    weights = load_file(folder / "model.safetensors")
    save_file({name: 0 * weight for name, weight in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    assert main(asked) == 2 and "holds answers with model_sha256=" in capsys.readouterr().err
    assert read_answers(tmp_path / "out/answers.jsonl") == before


def test_questions_without_images_are_left_out_and_no_strength_is_no_plot(tmp_path):
    text_only = sample(2, conversations=[turn("human", "Hello?"), turn("gpt", "Hi.")])
    del text_only["image"]
    data = conversations.write(tmp_path, [sample(0), sample(1), text_only])
    asked = ["report", "--model", str(TINY), "--data", str(data), "-o", str(tmp_path / "out")]
    assert main([*asked, "--max-new-tokens", "2", "--perturb", "swapped"]) == 0
    content = json.loads((tmp_path / "out/robustness.json").read_text(encoding="utf-8"))
    assert [row["n"] for row in content["rows"]] == [2, 2] and content["questions_without_images"] == 1
    assert len(read_answers(tmp_path / "out/answers.jsonl")) == 3 + 2
    assert not (tmp_path / "out/robustness.png").exists()


def test_answers_of_two_runs_are_not_mixed(tmp_path, capsys):
    line = Answer("0", "t", "?", [], ["x"], "y", 0.0).as_line()
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text(line, encoding="utf-8")
    assert main(["report", str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl"), "--errors", "-o", str(tmp_path)]) == 2
    assert "t, 0 was answered twice" in capsys.readouterr().err


def test_errors_and_groups_of_what_lmms_eval_logged(tmp_path):
    """The images are those that the plug-in kept (`log_images`)."""
    images, run = tmp_path / "images/colours", tmp_path / "results"
    images.mkdir(parents=True)
    run.mkdir()
    lines = []
    for number, said in enumerate(["red", "blue", ""]):
        tiny.image(number).save(images / f"{number}-0.png")
        logged = {"doc_id": number, "input": f"Question {number}?", "target": "red", "filtered_resps": said}
        lines.append(json.dumps(logged | {"exact_match": float(said == "red")}))
    config = {"model_args": f"pretrained=mine,log_images={tmp_path / 'images'}"}
    content = {"results": {"colours": {"exact_match,none": 1 / 3}}, "config": config, "model_name": "mine"}
    content["higher_is_better"] = {"colours": {"exact_match": True}}
    (run / "20260101_000000_results.json").write_text(json.dumps(content), encoding="utf-8")
    (run / "20260101_000000_samples_colours.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "groups.csv").write_text("image,group\n0-0.png,a\n1-0.png,b\n2-0.png,b\n", encoding="utf-8")
    asked = ["report", str(run), "--errors", "--groups", str(tmp_path / "groups.csv"), "-o", str(tmp_path / "report")]
    assert main([*asked, "--image-folder", str(tmp_path / "images")]) == 0
    page = (tmp_path / "report/errors.html").read_text(encoding="utf-8")
    assert page.count('src="data:image/jpeg') == 2 and "Question 1?" in page and "Question 0?" not in page
    a, b = json.loads((tmp_path / "report/groups.json").read_text())["columns"]["group"]["groups"]
    assert (a["accuracy"]["value"], b["accuracy"]["value"], b["answer_rate"]["value"]) == (1, 0, 0.5)
    assert (tmp_path / "report/report.md").is_file()  # the scores' tables beside
    assert main(asked) == 0  # what a run says of its folder is no permission
    assert 'src="data:image/jpeg' not in (tmp_path / "report/errors.html").read_text(encoding="utf-8")

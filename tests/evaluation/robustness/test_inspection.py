"""robustness/inspection.py: `omnifusion report` with a model, with answers and with lmms-eval's samples."""

import contextlib
import io
import json
import re
import shutil
from types import SimpleNamespace

import conversations
import pytest
import tiny
from conversations import sample, turn
from lmms_results import write_results, write_samples

from omnifusion_hf.cli import main
from omnifusion_hf.evaluation.answers import CLEAN, Answer, read_answers
from omnifusion_hf.evaluation.robustness import inspection
from omnifusion_hf.evaluation.robustness.measure import summary
from omnifusion_hf.evaluation.robustness.perturbations import PGD, RANDOM, SWAPPED
from omnifusion_hf.inference import EXAMPLES, TINY, load


def report_on(folder, *flags: str, model=TINY) -> list[str]:
    """The command for a report on the questions of a folder."""
    data = ["--data", str(folder / "samples.json"), "-o", str(folder / "out"), "--max-new-tokens", "2"]
    return ["report", "--model", str(model), *data, *flags]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A report on the bundled model with the bundled examples: its folder, command, rows by condition and output."""
    folder = tmp_path_factory.mktemp("report")
    samples, lines = [], ["image,kind"]
    for number, example in enumerate(json.loads(EXAMPLES.read_text(encoding="utf-8"))):
        turns = [turn("human", "<image>\n" + example["question"]), turn("gpt", example["truth"])]
        samples.append({"id": number, "image": example["image"], "conversations": turns})
        lines.append(f"{example['image']},{'scene' if number < 7 else 'glyphs'}")
    (folder / "samples.json").write_text(json.dumps(samples), encoding="utf-8")
    (folder / "groups.csv").write_text("\n".join(lines), encoding="utf-8")
    command = report_on(folder, "--image-folder", str(EXAMPLES.parent), "--max-new-tokens", "24")
    flags = ["--perturb", "rotation", "removed", "pgd", "--epsilon", "8", "--errors"]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main([*command, *flags, "--groups", str(folder / "groups.csv")]) == 0
    rows = json.loads((folder / "out/robustness.json").read_text(encoding="utf-8"))["rows"]
    by_condition = {(row["perturbation"], row["strength"]): row for row in rows}
    return SimpleNamespace(folder=folder / "out", command=command, rows=by_condition, printed=printed.getvalue())


def test_a_report_writes_its_files_with_groups_of_the_questions_and_prints_the_accuracy_of_each_condition(run):
    names = {"answers.jsonl", "settings.json", "robustness.json", "robustness.png", "errors.html"}
    assert {path.name for path in run.folder.iterdir()} == names | {"groups.json", "groups.md", "groups.png"}
    lines = run.printed.splitlines()
    for (name, strength), row in run.rows.items():
        condition = " ".join(str(part) for part in (name, strength) if part is not None) or "clean"
        (line,) = [line for line in lines if line.startswith(f"{condition}: accuracy {row['accuracy']:.3f} (95% ")]
        assert line.endswith(", 13 questions")


def test_the_accuracy_of_several_tasks_is_printed_for_each(capsys):
    answers = [Answer(str(n), task, "?", [], ["x"], "x", 1.0) for n, task in enumerate("aab")]
    for some, tasks in ((answers, ["  a: accuracy 1.000", "  b: accuracy 1.000"]), (answers[:2], [])):
        inspection.print_accuracy(summary(some, [CLEAN]))
        first, *rest = capsys.readouterr().out.splitlines()
        assert first.endswith(f", {len(some)} questions") and [line[:19] for line in rest] == tasks


def test_accuracy_falls_with_the_strength_and_without_the_right_image(run):
    accuracy = {condition: row["accuracy"] for condition, row in run.rows.items()}
    assert accuracy[None, None] >= 0.8 and accuracy[SWAPPED, None] <= 0.4 and accuracy["removed", None] <= 0.4
    assert accuracy[PGD, 8.0] <= accuracy[RANDOM, 8.0] - 0.3
    assert accuracy["rotation", 5.0] > accuracy["rotation", 45.0]

    kinds = json.loads((run.folder / "groups.json").read_text(encoding="utf-8"))["columns"]["kind"]["groups"]
    assert [(row["group"], row["n"]) for row in kinds] == [("glyphs", 6), ("scene", 7)]


def test_answers_of_a_report_give_the_same_page_of_errors_again(run, tmp_path):
    again = ["report", str(run.folder / "answers.jsonl"), "--errors", "-o", str(tmp_path)]
    assert main([*again, "--image-folder", str(EXAMPLES.parent)]) == 0
    pages = [(folder / "errors.html").read_text(encoding="utf-8") for folder in (run.folder, tmp_path)]
    assert pages[0].split("<table>")[1] == pages[1].split("<table>")[1] and "left out" in pages[1]


def test_answers_of_another_seed_or_of_a_replaced_model_are_not_continued(run, tmp_path, capsys, monkeypatch):
    out = shutil.copytree(run.folder, tmp_path / "out")
    command, before = [*run.command, "-o", str(out)], read_answers(out / "answers.jsonl")
    assert main(command) == 0  # control: the same model and seed
    assert main([*command, "--seed", "1"]) == 2 and "seed=0, now it is 1" in capsys.readouterr().err
    model, processor = load(TINY)
    model.lm_head.weight.data.zero_()
    monkeypatch.setattr(inspection, "load", lambda folder: (model, processor))
    assert main(command) == 2 and "holds answers with model_sha256=" in capsys.readouterr().err
    assert read_answers(out / "answers.jsonl") == before


def without_answer(index: int) -> dict:
    return {"id": f"s{index}", "question": "Hello?"}


def without_image(index: int) -> dict:
    return {"id": f"s{index}", "conversations": [turn("human", "Hello?"), turn("gpt", "Hi.")]}


MODEL = f"--model {TINY} --data samples.json"
REFUSED = [
    ("--model m", "--model and --data go together"),
    ("--errors", "there are no answers"),
    ("--perturb blur --errors", "--perturb evaluates a model"),
    ("--epsilon 8 --errors", "--epsilon belongs to the attack"),
    ("results --epsilon 8", "--epsilon belongs to the attack"),
    ("results --image-folder x", "--image-folder holds the images of --data"),
    ("", "nothing to report"),
    ("empty", "--output_path"),
    (f"{MODEL} --perturb blur pgd --epsilon -1", "epsilon must lie in 0..255"),
    (f"{MODEL} --perturb random_signs --epsilon nan", "epsilon must lie in 0..255"),
    (f"{MODEL} --perturb blur --epsilon 8", "--epsilon belongs to the attack"),
    (f"{MODEL} --groups absent.csv", "absent.csv"),
    (f"{MODEL} absent.jsonl --errors", "absent.jsonl"),
    (f"{MODEL} absent --errors", "absent"),
    (f"{MODEL} --perturb blur", "nothing to swap"),
    (f"{MODEL} --perturb blur --data none.json", "none.json has no question about an image"),
    (f"{MODEL} --data open.json", "open.json: open, s0 has no right answer to compare with"),
]


@pytest.mark.parametrize("flags, message", REFUSED)
def test_flags_and_files_that_do_not_go_together_are_refused_before_a_model_is_loaded(
    tmp_path, capsys, monkeypatch, flags, message
):
    conversations.write(tmp_path, [sample(0)])
    (tmp_path / "open.json").write_text(json.dumps([without_answer(0)]), encoding="utf-8")
    (tmp_path / "none.json").write_text(json.dumps([without_image(0)]), encoding="utf-8")
    (tmp_path / "empty").mkdir()
    write_results(tmp_path / "results")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(inspection, "load", lambda folder: pytest.fail("a model was loaded"))
    assert main(["report", "-o", "out", *flags.split()]) == 2
    assert message in capsys.readouterr().err


def test_a_template_that_marks_no_answer_is_refused_before_the_first_answer(tmp_path, capsys, monkeypatch):
    model, processor = load(TINY)
    processor.chat_template = re.sub(r"\{%-? (end)?generation -?%\}", "", processor.chat_template)
    monkeypatch.setattr(inspection, "load", lambda folder: (model, processor))
    conversations.write(tmp_path, [sample(0), sample(1)])
    assert main(report_on(tmp_path, "--perturb", "pgd")) == 2
    assert "marks no answer" in capsys.readouterr().err and not (tmp_path / "out/answers.jsonl").exists()


def test_questions_without_images_are_only_evaluated_clean_and_without_strengths_there_is_no_plot(tmp_path):
    conversations.write(tmp_path, [sample(0), sample(1), without_image(2)])
    assert main(report_on(tmp_path, "--perturb", "swapped")) == 0
    content = json.loads((tmp_path / "out/robustness.json").read_text(encoding="utf-8"))
    assert [row["n"] for row in content["rows"]] == [2, 2] and content["questions_without_images"] == 1
    assert len(read_answers(tmp_path / "out/answers.jsonl")) == 3 + 2
    assert not (tmp_path / "out/robustness.png").exists()


def test_answers_of_two_runs_are_not_mixed(tmp_path, capsys):
    files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for file in files:
        file.write_text(Answer("0", "t", "?", [], ["x"], "y", 0.0).as_line(), encoding="utf-8")
    assert main(["report", *map(str, files), "--errors", "-o", str(tmp_path)]) == 2
    assert "t, 0 was answered twice" in capsys.readouterr().err


def test_errors_of_samples_that_lmms_eval_logged_with_images_of_the_permitted_folder(tmp_path):
    """The folder that a run names (`log_images`) is no permission to show its images."""
    images, rows = tmp_path / "images", []
    (images / "colours").mkdir(parents=True)
    for number, text in enumerate(["red", "blue", ""]):
        tiny.image(number).save(images / f"colours/{number}-0.png")
        row = {"input": f"Question {number}?", "target": "red", "filtered_resps": text}
        rows.append(row | {"exact_match": float(text == "red")})
    config, better = {"model_args": f"pretrained=x,log_images={images}"}, {"colours": {"exact_match": True}}
    scores = {"colours": {"exact_match,none": 1 / 3}}
    write_results(tmp_path / "results", results=scores, config=config, higher_is_better=better)
    write_samples(tmp_path / "results", "colours", rows)
    command = ["report", str(tmp_path / "results"), "--errors"]
    for options, shown in ((["--image-folder", str(images)], 2), ([], 0)):
        assert main([*command, "-o", str(tmp_path / "report"), *options]) == 0
        page = (tmp_path / "report/errors.html").read_text(encoding="utf-8")
        assert page.count('src="data:image/jpeg') == shown and "Question 1?" in page and "Question 0?" not in page
    assert (tmp_path / "report/report.md").is_file()
